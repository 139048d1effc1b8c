"""Running a network from an ONNX file that this library wrote, by ONNX Runtime."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from shuffle_jax.deploy.exported import Exported
from shuffle_jax.deploy.onnx.graph import INPUT, OUTPUT

SUFFIX = ".onnx"
"""By which such a file is told from one for JAX."""


def needed() -> None:
    """Raises a ValueError that names the extra, if a package of it is missing."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise ValueError(f"{error.name or error} is not installed: pip install 'shuffle_jax[onnx]'") from error


def session(content: bytes) -> Callable[[Any], Any]:
    """From images to logits, on the CPU."""
    import onnxruntime

    found = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])

    def logits(images: Any) -> np.ndarray:
        result: np.ndarray = found.run([OUTPUT], {INPUT: np.asarray(images, np.float32)})[0]
        return result

    return logits


def load(path: Path | str) -> Exported:
    """Loads a network from an ONNX file; its metadata says what goes in and what comes out.

    Args:
        path: of a file that :func:`shuffle_jax.deploy.onnx.write.export` wrote.

    Raises:
        ValueError: there is no such file, it is damaged or of others, or a package is missing.
    """
    needed()
    import onnx

    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no {path}: make it with experiments.export --format onnx")
    content = path.read_bytes()
    try:
        told = {entry.key: entry.value for entry in onnx.load_from_string(content).metadata_props}
    except Exception as error:  # protobuf's own
        raise ValueError(f"{path} is no ONNX file, or damaged: copy it again, or export again") from error
    if missing := [name for name in ("input", "output", "classes", "preprocessing") if name not in told]:
        raise ValueError(
            f"{path} does not say its {', '.join(missing)}: only what experiments.export --format onnx wrote can be "
            "used here, run others with ONNX Runtime"
        )
    try:
        run = session(content)
        return Exported({key: json.loads(value) for key, value in told.items()}, run)
    except Exception as error:  # onnxruntime's own
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{path} cannot be run ({reason}): copy it again, or export again") from error
