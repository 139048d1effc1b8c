"""Complete configurations, each a function whose docstring says what to expect of it."""

from experiments.presets.cifar10 import cifar10_mobilenet, cifar10_resnet
from experiments.presets.convolutions import digits_mobilenet, digits_resnet, folder_mobilenet, folder_resnet
from experiments.presets.digits import digits, digits_dynamic
from experiments.presets.folder import folder, folder_dynamic
from experiments.presets.imagenet import imagenet_mobilenet, imagenet_resnet
from experiments.presets.shift import (
    cifar10_addressnet,
    cifar10_shift_resnet,
    digits_addressnet,
    digits_shift_resnet,
    folder_addressnet,
    folder_shift_resnet,
    tiny_imagenet_addressnet,
    tiny_imagenet_shift_resnet,
)
from experiments.presets.tiny_imagenet import tiny_imagenet_mobilenet, tiny_imagenet_resnet

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
        cifar10_mobilenet,
        cifar10_resnet,
        cifar10_addressnet,
        cifar10_shift_resnet,
        tiny_imagenet_mobilenet,
        tiny_imagenet_resnet,
        tiny_imagenet_addressnet,
        tiny_imagenet_shift_resnet,
        imagenet_mobilenet,
        imagenet_resnet,
    )
}

__all__ = [
    "PRESETS",
    "cifar10_addressnet",
    "cifar10_mobilenet",
    "cifar10_resnet",
    "cifar10_shift_resnet",
    "digits",
    "digits_addressnet",
    "digits_dynamic",
    "digits_mobilenet",
    "digits_resnet",
    "digits_shift_resnet",
    "folder",
    "folder_addressnet",
    "folder_dynamic",
    "folder_mobilenet",
    "folder_resnet",
    "folder_shift_resnet",
    "imagenet_mobilenet",
    "imagenet_resnet",
    "tiny_imagenet_addressnet",
    "tiny_imagenet_mobilenet",
    "tiny_imagenet_resnet",
    "tiny_imagenet_shift_resnet",
]
