"""A trained network as a folder in the layout of the Hugging Face hub: written, and loaded without running its content.

::

    folder/
      model.safetensors   the hardened variables by their paths, such as params/stem/conv/kernel
      config.json         the network, the class names, preprocessing, the checksum of the weights, what was measured
      README.md           the model card, whose YAML header the hub reads
      figures/*.png       what the card shows

Nothing here is pickled, and a part of the network that the folder names by its import path is only imported from the
library, or from modules that are named by whoever loads.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from shuffle_jax import __version__
from shuffle_jax.deploy.exported import Exported, described
from shuffle_jax.files import replace_file
from shuffle_jax.models import NetworkConfig, build
from shuffle_jax.models.config import upgraded
from shuffle_jax.models.parts import KINDS, load_part
from shuffle_jax.typing import PyTree

FORMAT = 1
"""The newest version of config.json that this code reads."""

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
"""Names in the folder."""


@dataclass(frozen=True)
class Network(Exported):
    """A network from a folder: used as one from a file, and with its variables, to go on from.

    Attributes:
        network: from normalised images to logits, ``network.apply(variables, images)``.
        variables: hardened ones.
    """

    network: nn.Module = field(repr=False)
    variables: dict[str, PyTree] = field(repr=False)


def needed() -> None:
    """Raises a ValueError that names the extra, if its package is missing."""
    try:
        import safetensors  # noqa: F401
    except ImportError as error:
        raise ValueError(f"{error.name or error} is not installed: pip install 'shuffle_jax[hub]'") from error


def save_network(
    folder: Path | str,
    network: Mapping[str, Any],
    variables: dict[str, PyTree],
    *,
    classes: Sequence[str],
    preprocessing: Mapping[str, Any],
    card: str,
    about: Mapping[str, Any],
    figures: Sequence[Path] = (),
) -> int:
    """Writes a folder that :func:`load_network` reads; each file is replaced in one move.

    Args:
        folder: made if it is missing.
        network: its configuration as plain values.
        variables: of that network, hardened.
        classes: the class names in the order of the logits.
        preprocessing: what brings a picture to the input, as plain values.
        card: the text of README.md.
        about: what else to write down, as plain values.
        figures: what the card shows, as ``figures/NAME``.

    Returns:
        The size of the weights in bytes.

    Raises:
        ValueError: the package safetensors is missing.
    """
    needed()
    from safetensors.numpy import save

    folder = Path(folder)
    arrays = {"/".join(path): np.ascontiguousarray(leaf) for path, leaf in flatten_dict(variables).items()}
    content = save(arrays, {"format": "np"})
    size = preprocessing["size"]
    described = {
        "format": FORMAT,
        "library_name": "shuffle_jax",
        "sha256": hashlib.sha256(content).hexdigest(),
        "input": {"shape": ["n", size, size, preprocessing["channels"]], "dtype": "float32"},
        "output": {"shape": ["n", len(classes)], "dtype": "float32"},
        "network": network,
        "classes": list(classes),
        "preprocessing": preprocessing,
        "versions": {"shuffle_jax": __version__},
        **about,
    }
    for figure in figures:
        replace_file(folder / "figures" / figure.name, figure.read_bytes())
    replace_file(folder / WEIGHTS, content)
    replace_file(folder / CONFIG, json.dumps(described, indent=2, ensure_ascii=False).encode() + b"\n")
    replace_file(folder / CARD, card.encode())
    return len(content)


def is_folder(path: Path) -> bool:
    """Whether it is a folder of this layout, and not that of a run."""
    return (path / WEIGHTS).is_file() and (path / CONFIG).is_file()


def load_network(folder: Path | str, modules: Sequence[str] = ()) -> Network:
    """Loads a network from a folder, also one that was downloaded from the hub.

    Args:
        folder: as :func:`save_network` writes it.
        modules: from which parts of the network may be imported, beside those of the library.

    Raises:
        ValueError: a file is missing, damaged or of a newer version, the network has a part from another module, or the
            package safetensors is missing.
    """
    needed()
    from safetensors import SafetensorError
    from safetensors.numpy import load

    folder = Path(folder)
    about = _about(folder)
    content = (folder / WEIGHTS).read_bytes()
    if hashlib.sha256(content).hexdigest() != about["sha256"]:
        raise ValueError(f"{folder / WEIGHTS} does not belong to {CONFIG} beside it, or is damaged: copy both again")
    try:
        arrays = load(content)
    except SafetensorError as error:
        raise ValueError(f"{folder / WEIGHTS} holds no arrays ({error}): copy it again") from error
    variables = unflatten_dict({tuple(name.split("/")): jnp.asarray(value) for name, value in arrays.items()})
    network = build(_config(folder, about["network"], modules), len(about["classes"]))
    apply = partial(network.apply, train=False)
    images = jax.ShapeDtypeStruct((1, *about["input"]["shape"][1:]), jnp.float32)
    try:
        jax.eval_shape(apply, variables, images)
    except Exception as error:  # Flax's own, of many lines
        reason = str(error).partition("\n")[0]
        raise ValueError(f"the weights in {folder} are not those of its network ({reason}): export it again") from error
    return Network(about, partial(jax.jit(apply), variables), network, variables)


def _about(folder: Path) -> dict[str, Any]:
    for name in (WEIGHTS, CONFIG):
        if not (folder / name).is_file():
            raise ValueError(f"there is no {folder / name}: make the folder with experiments.export --format hub")
    return described(folder / CONFIG, FORMAT, ("sha256", "input", "output", "network", "classes", "preprocessing"))


def _config(folder: Path, value: Mapping[str, Any], modules: Sequence[str]) -> NetworkConfig:
    """The configuration of the network; a text in it imports nothing but modules of the library, and those allowed."""
    given = upgraded(value)
    for kind in KINDS:
        if ":" not in (text := str(given[kind])):
            continue
        module = text.partition(":")[0]
        own = module.partition(".")[0] == "shuffle_jax" and _is_own(load_part(text))
        if not own and module not in modules:
            raise ValueError(
                f"the network in {folder} has the part {text}, code that is not in the folder: if you trust it, load "
                f"with modules=[{module!r}]"
            )
    try:
        return NetworkConfig(**_plain(given))
    except TypeError as error:
        raise ValueError(f"{folder / CONFIG} describes a network of another version ({error})") from error


def _is_own(part: Any) -> bool:
    """Whether a part is a module of the library, and nothing that a file of the library has imported."""
    kind = part.func if isinstance(part, partial) else part
    return isinstance(kind, type) and issubclass(kind, nn.Module) and kind.__module__.startswith("shuffle_jax.")


def _plain(value: Any) -> Any:
    """Values as the fields of a configuration have them, from those of JSON."""
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items() if name != "type"}
    return tuple(map(_plain, value)) if isinstance(value, list) else value
