"""Running an exported network: JAX alone, none of the code that made it.

::

    from shuffle_jax.deploy.exported import load

    net = load("network.jax")
    net.predict(["a.png"])  # [[("cat", 0.93), ("dog", 0.05), ("vole", 0.02)]]

An exported network is two files. The first is what ``jax.export`` serialises: the network with its weights as a
StableHLO program, for any batch size and for several platforms. The second, with ``.json`` behind the name of the
first, says what goes in and what comes out, and has the checksum of the first. Neither can run code on loading.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export

from shuffle_jax.typing import Array, Float, Images

if TYPE_CHECKING:
    from shuffle_jax.data.preprocessing import Preprocessing

_FIXED = "an exported network is a fixed program from images to logits"

FORMAT = 1
"""The newest version of the two files that this code reads."""


@dataclass(frozen=True)
class Exported:
    """A network from a file.

    Attributes:
        about: what the JSON file says; see :func:`load`.
        program: from normalised float32 images ``(n, h, w, c)`` to float32 logits ``(n, k)``, jitted.
    """

    about: Mapping[str, Any] = field(repr=False)
    program: Callable[[Images], Float[Array, "n k"]] = field(repr=False)

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names in the order of the logits; equal ones are told apart by a number."""
        from shuffle_jax.data.names import told_apart

        return told_apart(self.about["classes"])

    @property
    def shape(self) -> tuple[int, int, int]:
        """(h, w, c) of an image."""
        _, height, width, channels = self.about["input"]["shape"]
        return height, width, channels

    @property
    def preprocessing(self) -> Preprocessing:
        """The steps between a picture and the input.

        Raises:
            ValueError: the JSON file holds none.
        """
        from shuffle_jax.data.preprocessing import preprocessing_from_json

        return preprocessing_from_json(self.about["preprocessing"])

    def logits(self, images: Images) -> Float[Array, "n k"]:
        """The logits of normalised images; compiled once for each number of them.

        Args:
            images: float32 (n, h, w, c), as :meth:`preprocess` gives them; n may be 0.

        Raises:
            ValueError: the images have another shape or type, or JAX is asked for what the program does not hold, such
                as its gradient.
        """
        shape, dtype = np.shape(images), jnp.result_type(images)
        if len(shape) != 4 or shape[1:] != self.shape or dtype != jnp.float32:
            wanted = f"float32 (n, {', '.join(map(str, self.shape))})"
            raise ValueError(f"the images must be normalised, {wanted}, got {dtype} {shape}: see preprocess()")
        if not shape[0]:
            return jnp.zeros((0, len(self.about["classes"])), self.about["output"]["dtype"])
        try:
            return self.program(images)
        except NotImplementedError as error:  # a rule of vmap that there is not for the call of a program
            raise ValueError(f"{_FIXED}: give all images as one batch (n, h, w, c), without vmap ({error})") from error

    def preprocess(self, paths: Iterable[Path | str]) -> Float[np.ndarray, "n h w c"]:
        """Pictures as they were prepared in the training, for :meth:`logits`.

        Raises:
            ValueError: a file is no readable picture.
        """
        return self.preprocessing.batch(_paths(paths))

    def predict(
        self, paths: Iterable[Path | str], top: int | None = None, batch_size: int = 64
    ) -> list[list[tuple[str, float]]]:
        """The classes of pictures.

        Args:
            paths: of image files; none gives an empty list.
            top: how many classes to give for each picture; all by default.
            batch_size: how many pictures go through the network at once.

        Returns:
            For each picture names and probabilities, the most probable first.

        Raises:
            ValueError: a file is no readable picture, or a number is below 1.
        """
        if batch_size < 1 or (top is not None and top < 1):
            raise ValueError(f"batch_size and top must be at least 1, got {batch_size} and {top}")
        paths, classes = _paths(paths), self.classes
        parts = [paths[start : start + batch_size] for start in range(0, len(paths), batch_size)]
        logits = [row for part in parts for row in in_batches(self.logits, self.preprocess(part), batch_size)]
        return [ranked(row, classes, len(classes) if top is None else top) for row in logits]


def in_batches(
    logits: Callable[[Images], Float[Array, "n k"]], images: Float[np.ndarray, "n h w c"], size: int
) -> Float[np.ndarray, "n k"]:
    """The logits of any number of images, all batches of one size so that the network is compiled once."""
    size = min(size, len(images))
    found = []
    for start in range(0, len(images), size):
        batch = images[start : start + size]
        padding = ((0, size - len(batch)), (0, 0), (0, 0), (0, 0))
        found.append(np.asarray(logits(jnp.asarray(np.pad(batch, padding))))[: len(batch)])
    return np.concatenate(found)


def ranked(logits: Float[np.ndarray, "k"], classes: Sequence[str], top: int) -> list[tuple[str, float]]:
    """The most probable classes with their probabilities."""
    probabilities = np.asarray(jax.nn.softmax(jnp.asarray(logits, jnp.float32)))
    return [(classes[i], float(probabilities[i])) for i in np.argsort(-probabilities, kind="stable")[:top]]


def _paths(paths: Iterable[Path | str]) -> list[Path]:
    if isinstance(paths, str | Path):
        raise ValueError(f"the pictures must be a list, got {str(paths)!r} alone: write [{str(paths)!r}]")
    return [Path(path) for path in paths]


def sidecar(path: Path) -> Path:
    """The JSON file beside an exported network."""
    return path.with_name(path.name + ".json")


def load(path: Path | str) -> Exported:
    """Loads an exported network.

    Args:
        path: of the program, or of an ONNX file, see :func:`shuffle_jax.deploy.onnx.run.load`. The JSON file of a
            program lies beside it and holds ``format``, ``bytes``, ``sha256``, ``input`` and
            ``output`` (shape and dtype), ``classes``, ``preprocessing``, ``network``, ``folded``, ``platforms`` and
            ``versions``.

    Raises:
        ValueError: a file is missing, damaged, of a newer format, or not for this platform; the message says which.
    """
    path = Path(path)
    if path.suffix == ".onnx":
        from shuffle_jax.deploy.onnx import run  # which knows what is loaded here

        return run.load(path)
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
    call = jax.custom_jvp(program.call)
    call.defjvp(_refuse_derivatives)
    return Exported(about, jax.jit(call))


def _refuse_derivatives(primals: Any, tangents: Any) -> Any:
    raise ValueError(f"{_FIXED}, without derivatives: differentiate the network of the run, see load_trained")


def _about(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"there is no {path}: an exported network is two files, keep them together")
    expected = ("bytes", "sha256", "input", "output", "classes", "preprocessing", "platforms", "versions")
    return described(path, FORMAT, expected)


def described(path: Path, newest: int, expected: Sequence[str]) -> dict[str, Any]:
    """What a JSON file says of the network beside it.

    Args:
        path: of the file.
        newest: the newest format that can be read.
        expected: keys that must be there.

    Raises:
        ValueError: the file is damaged, of a newer format, or lacks a key.
    """
    try:
        about: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        version = int(about["format"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error!r}): copy it again, or export again") from error
    if version > newest:
        raise ValueError(
            f"{path} has format {version}, this version reads up to {newest}: update shuffle_jax, or export again"
        )
    if missing := [name for name in expected if name not in about]:
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
