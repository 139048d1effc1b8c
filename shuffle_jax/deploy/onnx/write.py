"""Writing a network to an ONNX file, which is checked before it is called written."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from shuffle_jax import __version__
from shuffle_jax.deploy.onnx.graph import INPUT, OUTPUT
from shuffle_jax.deploy.onnx.run import needed, session
from shuffle_jax.deploy.onnx.tidy import tidied
from shuffle_jax.deploy.onnx.trace import graph_of
from shuffle_jax.files import replace_file
from shuffle_jax.typing import Array, Float, Images, PyTree

OPSET, IR_VERSION = 17, 8
"""Of 2022: what runtimes on devices have caught up with."""

BATCHES = (1, 3, 64)
"""Numbers of images with which a file is checked."""

TOLERANCE = {"float32": 1e-5, "float16": 2e-2}
"""Largest difference of the logits from the network's, relative to the largest logit, by the type of the weights."""

Weights = Literal["float32", "float16"]
"""The type in which kernels are kept."""


def export(
    apply: Callable[[PyTree, Images], Float[Array, "n k"]],
    params: PyTree,
    path: Path | str,
    *,
    classes: Sequence[str],
    preprocessing: dict[str, Any],
    image_shape: tuple[int, int, int],
    about: dict[str, Any],
    weights: Weights = "float32",
) -> dict[str, Any]:
    """Writes ``images -> apply(params, images)`` for any batch size, as one file.

    What ONNX Runtime computes on the CPU is compared with the network, on random images at the sizes of
    :data:`BATCHES`; only then is the file written, in one move.

    Args:
        apply: from normalised float32 images ``(n, h, w, c)`` to logits.
        params: its arrays; they become constants of the file.
        path: where to write it.
        classes: the class names in the order of the logits.
        preprocessing: what brings a picture to the input, as plain values.
        image_shape: (h, w, c).
        about: what else to write down, as plain values.
        weights: "float16" halves the file: kernels are kept so, and computed with in float32.

    Returns:
        What the metadata of the file says, see :func:`shuffle_jax.deploy.onnx.run.load`; with ``"bytes"`` its size and
        with ``"difference"`` the largest difference of the logits, relative to the largest.

    Raises:
        ValueError: a package is missing, the network has something that ONNX has not (the message names it), or it does
            not fit the classes.
        ArithmeticError: the file would not be the network.
    """
    needed()
    described = {
        "input": {"name": INPUT, "shape": ["n", *image_shape], "dtype": "float32"},
        "output": {"name": OUTPUT, "shape": ["n", len(classes)], "dtype": "float32"},
        "classes": list(classes),
        "preprocessing": preprocessing,
        "opset": OPSET,
        "weights": weights,
        "versions": {"shuffle_jax": __version__},
        **about,
    }
    nodes, constants, outputs = _traced(apply, params, image_shape)
    if outputs != len(classes):
        raise ValueError(f"the network has {outputs} logits for {len(classes)} classes: give one name for each")
    images = np.random.default_rng(0).normal(size=(max(BATCHES), *image_shape)).astype(np.float32)
    expected = np.asarray(jax.jit(apply)(params, images), np.float32)
    if not np.isfinite(expected).all():
        raise ArithmeticError(f"on random images the network's own logits are not finite: {path} is not written")
    content, difference = b"", 0.0
    for kept in dict.fromkeys(("float32", weights)):
        content = _model(nodes, constants if kept == "float32" else _halved(constants), described, image_shape)
        difference = _difference(content, images, expected)
        if not difference <= TOLERANCE[kept]:
            raise ArithmeticError(
                f"with {kept} weights the logits of ONNX Runtime differ from the network's by {difference:.1e} of the "
                f"largest, and not by {TOLERANCE[kept]:.0e} at most: {path} is not written"
            )
    replace_file(Path(path), content)
    return {**described, "bytes": len(content), "difference": difference}


def _traced(
    apply: Callable[[PyTree, Images], Float[Array, "n k"]], params: PyTree, image_shape: tuple[int, int, int]
) -> tuple[list[Any], dict[str, np.ndarray], int]:
    """Nodes, constants, and how many logits there are."""
    graph, logits = graph_of(apply, params, image_shape)
    nodes, constants = tidied(graph, graph.plain(logits))
    return nodes, constants, logits.shape[-1]


def _halved(constants: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Kernels in half precision; what has one axis, such as a bias, stays as it is."""
    largest = float(np.finfo(np.float16).max)
    found = {}
    for name, value in constants.items():
        kernel = value.dtype == np.float32 and sum(size > 1 for size in value.shape) > 1
        if kernel and np.abs(value).max() > largest:
            raise ValueError(f"a weight is {np.abs(value).max():.3g}, and float16 ends at {largest:.0f}: use float32")
        found[name] = value.astype(np.float16) if kernel else value
    return found


def _model(
    nodes: list[Any], constants: dict[str, np.ndarray], about: dict[str, Any], image_shape: tuple[int, int, int]
) -> bytes:
    """The file's content; half-precision constants are cast where it begins."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    made, initializers = [], []
    for name, value in constants.items():
        half = value.dtype == np.float16
        initializers.append(numpy_helper.from_array(value, f"{name}_half" if half else name))
        if half:
            made.append(helper.make_node("Cast", [f"{name}_half"], [name], to=TensorProto.FLOAT))
    for node in nodes:
        given: dict[str, Any] = {
            k: helper.np_dtype_to_tensor_dtype(v) if k == "to" else v for k, v in node.attributes.items()
        }
        made.append(helper.make_node(node.op, node.inputs, node.outputs, **given))
    images = helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["n", *image_shape])
    logits = helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, about["output"]["shape"])
    graph = helper.make_graph(made, "network", [images], [logits], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    model.producer_name, model.producer_version = "shuffle_jax", __version__
    helper.set_model_props(model, {key: json.dumps(value, ensure_ascii=False) for key, value in about.items()})
    onnx.checker.check_model(model, full_check=True)
    content: bytes = model.SerializeToString()
    return content


def _difference(content: bytes, images: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference over all batches, relative to the largest logit."""
    run = session(content)
    worst = max(float(np.abs(run(images[:count]) - expected[:count]).max()) for count in BATCHES)
    return worst / float(np.abs(expected).max())
