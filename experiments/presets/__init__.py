"""Complete configurations, each a function whose docstring says what to expect of it."""

from experiments.presets.cifar10 import cifar10_mobilenet, cifar10_resnet
from experiments.presets.convolutions import digits_mobilenet, digits_resnet, folder_mobilenet, folder_resnet
from experiments.presets.digits import digits, digits_dynamic
from experiments.presets.folder import folder, folder_dynamic
from experiments.presets.imagenet import imagenet_mobilenet, imagenet_resnet
from experiments.presets.tiny_imagenet import tiny_imagenet_mobilenet, tiny_imagenet_resnet

PRESETS = {
    preset.__name__.replace("_", "-"): preset
    for preset in (
        digits,
        digits_dynamic,
        digits_mobilenet,
        digits_resnet,
        folder,
        folder_dynamic,
        folder_mobilenet,
        folder_resnet,
        cifar10_mobilenet,
        cifar10_resnet,
        tiny_imagenet_mobilenet,
        tiny_imagenet_resnet,
        imagenet_mobilenet,
        imagenet_resnet,
    )
}

__all__ = [
    "PRESETS",
    "cifar10_mobilenet",
    "cifar10_resnet",
    "digits",
    "digits_dynamic",
    "digits_mobilenet",
    "digits_resnet",
    "folder",
    "folder_dynamic",
    "folder_mobilenet",
    "folder_resnet",
    "imagenet_mobilenet",
    "imagenet_resnet",
    "tiny_imagenet_mobilenet",
    "tiny_imagenet_resnet",
]
