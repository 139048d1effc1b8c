"""Tables of several engines, each in a process of its own: who takes part, and whether they compute the same."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np

from experiments.benchmark import machine
from experiments.benchmark.effort import Effort
from experiments.benchmark.engine import Engine, Outputs, Recipe, running
from experiments.benchmark.measuring import Result, Turn, take_turns

if TYPE_CHECKING:
    from experiments.benchmark.cases import Workload
    from experiments.benchmark.given import Network

TOLERANCE, REDUCED_TOLERANCE = 1e-4, 0.1
"""Largest difference, of the largest value, that still counts as the same: in float32 or more, and where an engine
rounds its factors to bfloat16, or on a GPU to TF32. What is compared there is the same network, not its arithmetic."""

WITHOUT_JAX = (("JAX_PLATFORMS", "cpu"),)
"""In processes of other engines: what asks JAX for its devices there must not take the memory of a GPU."""

MODULE = "experiments.benchmark."

Kind = Literal["inference", "training"]


def engines(kind: Kind, work: Workload, network: Network, compile_torch: bool = False) -> list[Recipe]:
    """Those that take part in a comparison of networks, where they are installed; ours last.

    Args:
        kind: what is compared, the name of a function in the module of each engine.
        work: of all of them.
        network: of all of them.
        compile_torch: have torch.compile take part on a CPU as well.
    """
    found = []
    exact = work.device == "cpu" and work.dtype == "float32"
    if kind == "inference" and exact and all(map(machine.is_there, ("onnxruntime", "onnxscript"))):
        found.append(Recipe("ONNX Runtime", f"{MODULE}onnx_engine:{kind}", (work, network), WITHOUT_JAX))
    found.append(Recipe("torch", f"{MODULE}torch_engine:{kind}", (work, network), WITHOUT_JAX))
    if compile_torch or work.device == "gpu":
        found.append(Recipe("torch.compile", f"{MODULE}torch_engine:{kind}", (work, network, True), WITHOUT_JAX))
    return [*found, Recipe("shuffle_jax", f"{MODULE}jax_engine:{kind}", (work, network))]


def keeping(work: Workload, network: Network) -> list[Recipe]:
    """Torch, ours, ours with remat for a table of memory, each with the memory that it frees given back, and kept."""
    torch, *_, ours = engines("training", work, network)
    all_three = torch, ours, remat(work, network)
    given_back = [one._replace(keep_freed=False) for one in all_three]
    return [*given_back, *(one._replace(name=f"{one.name}, freed memory kept") for one in all_three)]


def remat(work: Workload, network: Network) -> Recipe:
    """Ours, of which the gradient keeps the inputs of units alone."""
    return Recipe("shuffle_jax, remat", f"{MODULE}jax_engine:remat", (work, network))


def layers(work: Workload, shape: str) -> list[Recipe]:
    """A dynamic convolution of ours, and where torch is installed one in torch."""
    found = [Recipe("shuffle_jax", f"{MODULE}convolutions:layer", (work, shape))]
    if machine.is_there("torch"):
        found.append(Recipe("torch", f"{MODULE}torch_dynamic_conv:layer", (work, shape), WITHOUT_JAX))
    return found


def measure_beside(recipes: Sequence[Recipe], tolerance: float, effort: Effort) -> Result:
    """Seconds of each case of each engine in each round, the cases in turn, once all engines agree.

    Raises:
        ArithmeticError: an engine fails, or computes something else.
    """
    with running(recipes, effort) as engines:
        agree({engine.name: engine.ask("outputs") for engine in engines}, tolerance)
        turns = {}
        for engine in engines:
            for name in engine.ask("names"):
                engine.ask("warm", name)
                turns[name] = partial(_turn, engine, name)
        return take_turns(turns, effort)


def measure_peaks(recipes: Sequence[Recipe], effort: Effort) -> Result:
    """Bytes of a step, and with all before it, by engine: one process after the other."""
    held, outputs = {}, {}
    for recipe in recipes:
        with running([recipe], effort) as (engine,):
            held[recipe.name] = engine.ask("peak")
            outputs[recipe.name] = engine.ask("outputs")
    agree(outputs, TOLERANCE)
    return {"peaks": held}


def agree(outputs: dict[str, Outputs], tolerance: float) -> None:
    """Raises ArithmeticError if an output of two engines differs by more than the tolerance of its largest value."""
    (first, expected), *rest = outputs.items()
    for other, found in rest:
        for what in expected:
            a, b = (np.asarray(one[what], np.float64) for one in (expected, found))
            same_shape = a.shape == b.shape
            difference = np.abs(a - b).max() / np.abs(a).max() if same_shape else np.inf
            if not difference <= tolerance:
                how = f"by {difference:.1e} of the largest value, above {tolerance:.0e}"
                raise ArithmeticError(
                    f"{other} and {first} do not compute the same, so they are not compared: the {what} differ "
                    f"{how if same_shape else f'in shape, {b.shape} and {a.shape}'}"
                )


def tolerance_of(kind: Kind, work: Workload) -> float:
    """The largest difference allowed: training is compared in float64, inference as it is measured."""
    exact = kind == "training" or (work.device == "cpu" and work.dtype == "float32")
    return TOLERANCE if exact else REDUCED_TOLERANCE


def _turn(engine: Engine, name: str) -> Turn:
    return engine.ask("turn", name)
