"""Running an exported network: JAX alone, none of the code that made it.

An exported network is two files. The first is what ``jax.export`` serialises: the network with its weights as a
StableHLO program, for any batch size and for several platforms. The second, with ``.json`` behind the name of the
first, says what goes in and what comes out, and has the checksum of the first. Neither can run code on loading.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from jax import export as jax_export

from shuffle_jax.typing import Array, Float, Images

FORMAT = 1
"""The newest version of the two files that this code reads."""


@dataclass(frozen=True)
class Exported:
    """A network from a file.

    Attributes:
        about: what the JSON file says; see :func:`load`.
        logits: from normalised float32 images ``(n, h, w, c)`` to float32 logits ``(n, k)``, jitted; compiled once for
            each n.
    """

    about: Mapping[str, Any]
    logits: Callable[[Images], Float[Array, "n k"]]

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names in the order of the logits."""
        return tuple(self.about["classes"])


def sidecar(path: Path) -> Path:
    """The JSON file beside an exported network."""
    return path.with_name(path.name + ".json")


def load(path: Path | str) -> Exported:
    """Loads an exported network.

    Args:
        path: of the program; its JSON file lies beside it and holds ``format``, ``bytes``, ``sha256``, ``input`` and
            ``output`` (shape and dtype), ``classes``, ``preprocessing``, ``network``, ``folded``, ``platforms`` and
            ``versions``.

    Raises:
        ValueError: a file is missing, damaged, of a newer format, or not for this platform; the message says which.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no exported network {path}: make one with experiments.export")
    about = _about(sidecar(path))
    content = path.read_bytes()
    if len(content) != about["bytes"] or hashlib.sha256(content).hexdigest() != about["sha256"]:
        raise ValueError(
            f"{path} is damaged or does not belong to {sidecar(path).name}: it has {len(content)} bytes of "
            f"{about['bytes']} and another checksum; copy both files again, or export again"
        )
    platform = platform_name()
    if platform not in about["platforms"]:
        raise ValueError(
            f"{path} runs on {', '.join(about['platforms'])}, not on {platform}: export it with --platforms {platform}"
        )
    # An older JAX reads a newer program for three weeks at most, and fails only when it is called.
    written = str(about["versions"].get("jax"))
    unreadable = f"{path} was written by JAX {written} and JAX {jax.__version__} cannot read it"
    if _release(written) > _release(jax.__version__):
        raise ValueError(f"{unreadable}: update JAX, or export again with this version")
    try:
        program = jax_export.deserialize(bytearray(content))
    except Exception as error:  # ValueError, KeyError, flatbuffers' own
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{unreadable} ({reason}): export again with this version") from error
    return Exported(about, jax.jit(program.call))


def _about(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"there is no {path}: an exported network is two files, keep them together")
    try:
        about = json.loads(path.read_text())
        version = int(about["format"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}): copy it again, or export again") from error
    if version > FORMAT:
        raise ValueError(
            f"{path} has format {version}, this version reads up to {FORMAT}: update shuffle_jax, or export again"
        )
    expected = ("bytes", "sha256", "input", "output", "classes", "preprocessing", "platforms", "versions")
    missing = [name for name in expected if name not in about]
    if missing:
        raise ValueError(f"{path} is damaged (it lacks {', '.join(missing)}): copy it again, or export again")
    return about


def _release(version: str) -> tuple[int, ...]:
    """The first two numbers of a version; (0, 0) if it has none."""
    numbers = re.match(r"(\d+)\.(\d+)", version)
    return (int(numbers[1]), int(numbers[2])) if numbers else (0, 0)


def platform_name() -> str:
    """This process's platform as exports name it: a GPU is "cuda" or "rocm"."""
    platform = jax.default_backend()
    if platform != "gpu":
        return platform
    return "rocm" if "rocm" in jax.devices()[0].client.platform_version.lower() else "cuda"
