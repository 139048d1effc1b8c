"""Complete configurations, each a function whose docstring says what to expect of it; a file for each data set."""

from __future__ import annotations

from experiments.presets.cifar10 import (
    cifar10_addressnet,
    cifar10_auto,
    cifar10_auto_v1,
    cifar10_dynamic,
    cifar10_mobilenet,
    cifar10_resnet,
    cifar10_shift_resnet,
    cifar10_static_dynamic,
)
from experiments.presets.cifar100 import (
    cifar100_addressnet,
    cifar100_auto,
    cifar100_auto_v1,
    cifar100_dynamic,
    cifar100_mobilenet,
    cifar100_resnet,
    cifar100_shift_resnet,
    cifar100_static_dynamic,
)
from experiments.presets.digits import (
    digits,
    digits_addressnet,
    digits_dynamic,
    digits_mobilenet,
    digits_resnet,
    digits_shift_resnet,
)
from experiments.presets.folder import (
    folder,
    folder_addressnet,
    folder_dynamic,
    folder_mobilenet,
    folder_resnet,
    folder_shift_resnet,
)
from experiments.presets.imagenet import (
    imagenet_addressnet,
    imagenet_auto,
    imagenet_auto_v1,
    imagenet_dynamic,
    imagenet_mobilenet,
    imagenet_resnet,
    imagenet_static_dynamic,
)
from experiments.presets.tiny_imagenet import (
    tiny_imagenet_addressnet,
    tiny_imagenet_auto,
    tiny_imagenet_auto_v1,
    tiny_imagenet_dynamic,
    tiny_imagenet_mobilenet,
    tiny_imagenet_resnet,
    tiny_imagenet_shift_resnet,
    tiny_imagenet_static_dynamic,
)

PRESETS = {
    preset.__name__.replace("_", "-"): preset
    for preset in (
        digits,
        digits_dynamic,
        digits_mobilenet,
        digits_resnet,
        digits_addressnet,
        digits_shift_resnet,
        folder,
        folder_dynamic,
        folder_mobilenet,
        folder_resnet,
        folder_addressnet,
        folder_shift_resnet,
        cifar10_auto,
        cifar10_auto_v1,
        cifar10_dynamic,
        cifar10_static_dynamic,
        cifar10_mobilenet,
        cifar10_resnet,
        cifar10_addressnet,
        cifar10_shift_resnet,
        cifar100_auto,
        cifar100_auto_v1,
        cifar100_dynamic,
        cifar100_static_dynamic,
        cifar100_mobilenet,
        cifar100_resnet,
        cifar100_addressnet,
        cifar100_shift_resnet,
        tiny_imagenet_auto,
        tiny_imagenet_auto_v1,
        tiny_imagenet_dynamic,
        tiny_imagenet_static_dynamic,
        tiny_imagenet_mobilenet,
        tiny_imagenet_resnet,
        tiny_imagenet_addressnet,
        tiny_imagenet_shift_resnet,
        imagenet_auto,
        imagenet_auto_v1,
        imagenet_dynamic,
        imagenet_static_dynamic,
        imagenet_mobilenet,
        imagenet_resnet,
        imagenet_addressnet,
    )
}
