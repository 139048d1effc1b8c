"""From a trained network to one that is used: hardened, folded, exported.

Each name is imported when it is asked for, so that :func:`load` runs an exported network with JAX alone.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shuffle_jax.deploy.exported import Exported, load
    from shuffle_jax.deploy.exporting import export
    from shuffle_jax.deploy.folding import Folded, fold
    from shuffle_jax.deploy.freezing import Frozen, freeze
    from shuffle_jax.deploy.hardening import Diagnosis, Hardened, diagnose, diagnose_all, harden
    from shuffle_jax.deploy.hub import load_network, save_network
    from shuffle_jax.deploy.recalibration import recalibrate
    from shuffle_jax.deploy.routing import Routed, route

__all__ = [
    "Diagnosis",
    "Exported",
    "Folded",
    "Frozen",
    "Hardened",
    "Routed",
    "diagnose",
    "diagnose_all",
    "export",
    "fold",
    "freeze",
    "harden",
    "load",
    "load_network",
    "recalibrate",
    "route",
    "save_network",
]

_HOMES = {
    "exported": ("Exported", "load"),
    "exporting": ("export",),
    "folding": ("Folded", "fold"),
    "freezing": ("Frozen", "freeze"),
    "hardening": ("Diagnosis", "Hardened", "diagnose", "diagnose_all", "harden"),
    "hub": ("load_network", "save_network"),
    "recalibration": ("recalibrate",),
    "routing": ("Routed", "route"),
}


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
