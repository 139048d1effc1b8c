"""Complete configurations, each a function whose docstring says what to expect of it."""

from experiments.presets.convolutions import digits_mobilenet, digits_resnet, folder_mobilenet, folder_resnet
from experiments.presets.digits import digits, digits_dynamic
from experiments.presets.folder import folder, folder_dynamic

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
    )
}

__all__ = [
    "PRESETS",
    "digits",
    "digits_dynamic",
    "digits_mobilenet",
    "digits_resnet",
    "folder",
    "folder_dynamic",
    "folder_mobilenet",
    "folder_resnet",
]
