"""Complete configurations, each a function whose docstring says what to expect of it."""

from experiments.presets.digits import digits, digits_dynamic
from experiments.presets.folder import folder, folder_dynamic

PRESETS = {preset.__name__.replace("_", "-"): preset for preset in (digits, digits_dynamic, folder, folder_dynamic)}

__all__ = ["PRESETS", "digits", "digits_dynamic", "folder", "folder_dynamic"]
