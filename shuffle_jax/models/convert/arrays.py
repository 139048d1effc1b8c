"""Arrays by name from the file formats that carry numbers and no code: .npz and .safetensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

SAFETENSORS = {
    **{f"F{bits}": f"<f{bits // 8}" for bits in (16, 32, 64)},
    **{f"I{bits}": f"<i{bits // 8}" for bits in (8, 16, 32, 64)},
    **{f"U{bits}": f"<u{bits // 8}" for bits in (8, 16, 32, 64)},
    "BOOL": "?",
    "C64": "<c8",
    "BF16": jnp.bfloat16,
    "F8_E4M3": jnp.float8_e4m3fn,
    "F8_E4M3FNUZ": jnp.float8_e4m3fnuz,
    "F8_E5M2": jnp.float8_e5m2,
    "F8_E5M2FNUZ": jnp.float8_e5m2fnuz,
    "F8_E8M0": jnp.float8_e8m0fnu,
}
"""The types of numbers in .safetensors files, by their names there."""

Arrays = Mapping[str, np.ndarray]
"""A state-dict: arrays by the names that torch gives them."""


def load_arrays(path: Path | str) -> dict[str, np.ndarray]:
    """Reads every array of a file.

    Args:
        path: an .npz file, as ``numpy.savez`` writes it, or a .safetensors file, as ``safetensors.torch.save_file``
            does; the latter takes the package safetensors.

    Returns:
        The arrays by name. Floats of any width, bfloat16 and float8 among them, are float32; integers are as they were.

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
                "from the state-dict, by numpy.savez(file, **{n: t.cpu().float().numpy() for n, t in state.items()})"
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
    # NumPy has no bfloat16 of its own and writes its two bytes without a type. One byte may be any of five float8.
    arrays = {name: array.view(jnp.bfloat16) if array.dtype == "V2" else array for name, array in arrays.items()}
    for name, array in arrays.items():
        if array.dtype.type is np.void:
            raise ValueError(
                f"{path}: {name} is of a type that .npz files do not keep ({array.dtype.itemsize} bytes a number): "
                "save it as float32"
            )
    return arrays


def _safetensors(path: Path) -> dict[str, np.ndarray]:
    try:
        from safetensors import SafetensorError, deserialize
    except ImportError as error:
        raise ValueError(
            f"reading {path} takes the package safetensors: pip install 'shuffle_jax[convert]', or give an .npz file"
        ) from error
    try:
        found: list[tuple[str, dict[str, Any]]] = deserialize(path.read_bytes())
    except SafetensorError as error:
        raise ValueError(f"{path} is no whole .safetensors file ({error}): write it again") from error
    # Not by safetensors.numpy, which knows NumPy's own types and no float8.
    for name, array in found:
        if array["dtype"] not in SAFETENSORS:
            raise ValueError(f"{path}: {name} is of type {array['dtype']}, which is not read: save it as float32")
    return {
        name: np.frombuffer(array["data"], SAFETENSORS[array["dtype"]]).reshape(array["shape"]) for name, array in found
    }
