"""Complete configurations, each a function whose docstring says what to expect of it."""

from experiments.presets.digits import digits
from experiments.presets.folder import folder

PRESETS = {preset.__name__: preset for preset in (digits, folder)}

__all__ = ["PRESETS", "digits", "folder"]
