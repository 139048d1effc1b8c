"""The names of a network's own arrays, out of what training programs save around and beside them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from shuffle_jax.naming import some

COUNTERS = ("num_batches_tracked", "n_averaged", "num_updates")
"""Of steps: torch's beside running statistics, which it does not use with a fixed momentum, and those of averages."""

WRAPPERS = (
    "module",  # DataParallel and averaged models
    "_orig_mod",  # torch.compile
    *("state_dict", "model_state_dict", "model", "net", "network", "backbone"),
    *("ema", "ema_model", "model_ema", "ema_state_dict", "state_dict_ema"),
)
"""Names of what is put around a network. No network that is converted has a module of such a name."""

BESIDE = (
    *("optimizer", "optimizer_state_dict", "optimizer_states", "scheduler", "lr_scheduler", "lr_schedulers"),
    *("scaler", "hyper_parameters", "callbacks", "loops", "args", "config"),
)
"""Names of what training programs save beside a network."""


def plain(arrays: Mapping[str, Any], part: str | None = None) -> dict[str, np.ndarray]:
    """Arrays by the names that the definition of their network gives them.

    Counters do not count, and prefixes that all names have are taken off, one after the other: those of
    :data:`WRAPPERS`. What stands beside a state-dict in a nested dictionary (an epoch, an optimizer) is left out.

    Args:
        arrays: by name, or a dictionary of such dictionaries.
        part: which one, where there are several networks, such as "ema".

    Raises:
        ValueError: there are several networks and no part is named, or none of this name.

    >>> list(plain({"n_averaged": 3, "module._orig_mod.fc.bias": np.zeros(2)}))
    ['fc.bias']
    """
    found = dict(_flat(arrays))
    if part is not None:
        heads, found = _heads(found), _inside(found, part)
        if not found:
            raise ValueError(f"there is no part {part!r}: choose one of {some(heads)}")
    while True:
        found = {name: array for name, array in found.items() if not _is_counter(name, array)}
        around = [head for head in _heads(found) if head in WRAPPERS]
        if not around or not all(name.partition(".")[0] in (*WRAPPERS, *BESIDE) and "." in name for name in found):
            return {name: _array(name, array) for name, array in found.items()}
        if len(around) > 1:
            raise ValueError(f"there are several networks, {some(around)}: name one as the part (--part {around[0]})")
        found = _inside(found, around[0])


def joined(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The levels of contextual convolutions, ``conv2_1.weight``, ``conv2_2.weight``, ..., as one array, ``weight``.

    >>> {name: array.shape for name, array in joined({f"a.conv2_{d}.weight": np.zeros((d, 5)) for d in (2, 1)}).items()}
    {'a.weight': (3, 5)}
    """
    found: dict[str, list[np.ndarray]] = {}
    for name in sorted(arrays):
        found.setdefault(re.sub(r"conv2_\d\.weight$", "weight", name), []).append(arrays[name])
    return {name: levels[0] if len(levels) == 1 else np.concatenate(levels) for name, levels in found.items()}


def _flat(arrays: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The arrays of nested dictionaries; numbers, texts and lists beside a dictionary are none."""
    nested = any(isinstance(value, Mapping) for value in arrays.values())
    for name, value in arrays.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        elif not nested or hasattr(value, "shape"):
            yield f"{prefix}{name}", value


def _array(name: str, array: Any) -> np.ndarray:
    try:
        return np.asarray(array)
    except (TypeError, RuntimeError) as error:  # a tensor of a type that NumPy lacks, on a GPU, or with a gradient
        raise ValueError(
            f"{name} cannot be handed to NumPy ({str(error).splitlines()[0]}): give tensor.detach().cpu().float()"
        ) from error


def _inside(arrays: Mapping[str, Any], head: str) -> dict[str, Any]:
    return {name.removeprefix(f"{head}."): array for name, array in arrays.items() if name.startswith(f"{head}.")}


def _heads(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(name.partition(".")[0] for name in names))


def _is_counter(name: str, array: Any) -> bool:
    """Counters of steps, and single numbers that stand beside all modules, such as an epoch."""
    return name.rpartition(".")[2] in COUNTERS or ("." not in name and np.ndim(array) == 0)
