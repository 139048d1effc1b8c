"""Writing a network with its weights to a file that JAX alone can run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import export as jax_export

from shuffle_jax import __version__
from shuffle_jax.deploy.exported import FORMAT, sidecar
from shuffle_jax.files import replace_file
from shuffle_jax.typing import Array, Float, Images, PyTree

PLATFORMS = ("cpu", "cuda", "tpu")
"""The platforms of an export unless others are asked for, all in one file."""


def export(
    apply: Callable[[PyTree, Images], Float[Array, "n k"]],
    params: PyTree,
    path: Path | str,
    *,
    classes: Sequence[str],
    preprocessing: dict[str, Any],
    image_shape: tuple[int, int, int],
    about: dict[str, Any],
    platforms: Sequence[str] = PLATFORMS,
) -> dict[str, Any]:
    """Exports ``images -> apply(params, images)`` for any batch size.

    Args:
        apply: from normalised float32 images ``(n, h, w, c)`` to logits.
        params: its arrays; they become constants of the program.
        path: where to write the program; what it says about itself goes beside it, with ``.json`` behind the name.
            Each file is replaced in one move.
        classes: the class names in the order of the logits.
        preprocessing: what brings a picture to the input, as plain values.
        image_shape: (h, w, c).
        about: what else to write down, as plain values.
        platforms: of "cpu", "cuda", "rocm" and "tpu".

    Returns:
        The content of the JSON file, see :func:`shuffle_jax.deploy.exported.load`.

    Raises:
        ValueError: a platform is unknown, or the network does not fit the images or the classes.
    """
    unknown = [name for name in platforms if name not in (*PLATFORMS, "rocm")]
    if unknown or not platforms:
        raise ValueError(f"platforms {list(platforms)} are not among cpu, cuda, rocm and tpu: name one or more of them")
    (n,) = jax_export.symbolic_shape("n")
    images = jax.ShapeDtypeStruct((n, *image_shape), jnp.float32)

    def logits(images: Images) -> Float[Array, "n k"]:
        return apply(params, images)

    # What an unfolded permutation tells XLA on CPU about its layout: a hint, without a promise that later versions
    # read it. Folded networks have none.
    hints = [jax_export.DisabledSafetyCheck.custom_call("LayoutConstraint")]
    with _without_locations():
        program = jax_export.export(jax.jit(logits), platforms=tuple(platforms), disabled_checks=hints)(images)
    outputs = program.out_avals[0].shape
    if outputs[-1] != len(classes):
        raise ValueError(f"the network has {outputs[-1]} logits for {len(classes)} classes: give one name for each")
    content = bytes(program.serialize())
    described = {
        "format": FORMAT,
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "input": {"shape": ["n", *image_shape], "dtype": "float32"},
        "output": {"shape": ["n", len(classes)], "dtype": str(program.out_avals[0].dtype)},
        "classes": list(classes),
        "preprocessing": preprocessing,
        "platforms": list(platforms),
        "versions": {"shuffle_jax": __version__, "jax": version("jax"), "program": program.calling_convention_version},
        **about,
    }
    path = Path(path)
    replace_file(path, content)
    replace_file(sidecar(path), json.dumps(described, indent=2).encode() + b"\n")
    return described


@contextmanager
def _without_locations() -> Iterator[None]:
    """Names of modules and lines of source, with paths of this machine, are a tenth of the file of a small network."""
    limit = jax.config.jax_traceback_in_locations_limit  # type: ignore[attr-defined]
    jax.config.update("jax_traceback_in_locations_limit", 0)
    try:
        with nn.override_named_call(False):
            yield
    finally:
        jax.config.update("jax_traceback_in_locations_limit", limit)
