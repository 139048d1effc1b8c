"""Arrays by name from the file formats that carry numbers and no code: .npz and .safetensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

Arrays = Mapping[str, np.ndarray]
"""A state-dict: arrays by the names that torch gives them."""


def load_arrays(path: Path | str) -> dict[str, np.ndarray]:
    """Reads every array of a file.

    Args:
        path: an .npz file, as ``numpy.savez`` writes it, or a .safetensors file, as ``safetensors.torch.save_file``
            does; the latter takes the package safetensors.

    Returns:
        The arrays by name. Floats of any width, bfloat16 among them, are float32; integers are as they were.

    Raises:
        ValueError: there is no such file, it is of another type, damaged, or holds Python objects.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no file {path}: name an .npz or a .safetensors file")
    match path.suffix:
        case ".npz":
            arrays = _npz(path)
        case ".safetensors":
            arrays = _safetensors(path)
        case suffix:
            raise ValueError(
                f"{path} is of type {suffix or 'none'}, not .npz or .safetensors: where torch is, write one of these "
                "from the state-dict, say by numpy.savez(file, **{name: t.numpy() for name, t in state.items()})"
            )
    if not arrays:
        raise ValueError(f"{path} holds no array: write the state-dict itself, arrays by name")
    return {name: in_float32(array) for name, array in arrays.items()}


def in_float32(array: np.ndarray) -> np.ndarray:
    """Floats as float32, everything else as it is."""
    return array.astype(np.float32) if jnp.issubdtype(array.dtype, jnp.floating) else array


def _npz(path: Path) -> dict[str, np.ndarray]:
    with path.open("rb") as file:  # NumPy would leave a damaged one open
        try:
            found = np.load(file, allow_pickle=False)  # objects could run code
            if isinstance(found, np.ndarray):
                raise ValueError("one array without a name")
            arrays = {name: found[name] for name in found.files}
        except Exception as error:  # zipfile, zlib and NumPy raise many kinds, by where the damage is
            raise ValueError(
                f"{path} is no .npz file of plain arrays ({error}): write it with numpy.savez, numbers only"
            ) from error
    # NumPy has no bfloat16 of its own and writes its two bytes without a type.
    return {name: array.view(jnp.bfloat16) if array.dtype == "V2" else array for name, array in arrays.items()}


def _safetensors(path: Path) -> dict[str, np.ndarray]:
    try:
        from safetensors import SafetensorError
        from safetensors.numpy import load_file
    except ImportError as error:
        raise ValueError(
            f"reading {path} takes the package safetensors: pip install 'shuffle_jax[convert]', or give an .npz file"
        ) from error
    try:
        arrays: dict[str, Any] = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is no whole .safetensors file ({error}): write it again") from error
    return arrays
