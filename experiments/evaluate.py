"""Evaluates a trained run: `python -m experiments.evaluate RUN [--twin OTHER_RUN]`.

Prints top-1, top-5 and loss on the test split of the network as trained (relaxed), hardened, and with the fixed
shuffle of its paper in place of the learned permutations. That last row keeps all other weights: how far it falls
says how much the weights rely on the permutations learned with them. For the accuracy of a network trained with the
fixed shuffle from the start, train one (`--network.mixer shuffle`) and name its run as --twin.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from experiments.cli import main, parse, quiet_libraries
from shuffle_jax.deploy.harden import Diagnosis
from shuffle_jax.files import replace_file
from shuffle_jax.models import build
from shuffle_jax.nn.auto_shuffle import relaxed_permutations
from shuffle_jax.train.console import Console
from shuffle_jax.train.experiment import Experiment, restore
from shuffle_jax.train.step import evaluate, make_eval_step
from shuffle_jax.typing import PyTree


@dataclass(frozen=True)
class Arguments:
    """What to evaluate."""

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of a run, as experiments.train writes it."""

    checkpoint: str = "last"
    """Which checkpoint: "last", "best" (by relaxed top-1 accuracy), or a step."""

    twin: Path | None = None
    """Folder of another run on the same data, to stand beside it: the same network with the fixed shuffle, say."""

    layers: bool = False
    """Also print one line per learned permutation."""

    devices: int | None = None
    """How many local devices to use; all by default."""

    json: Path | None = None
    """Also write the numbers to this file."""


def run(arguments: Sequence[str] | None = None) -> None:
    """Parses the command line, evaluates and prints."""
    options = parse(Arguments, arguments, prog="python -m experiments.evaluate", description=__doc__)
    quiet_libraries()
    experiment, variables, step = restore(options.run, options.checkpoint, options.devices)
    rows, diagnoses = results(experiment, variables)
    if options.twin is not None:
        twin, twin_variables, _ = restore(options.twin, options.checkpoint, options.devices)
        if twin.config.data != experiment.config.data:
            raise ValueError(
                f"{options.twin} was trained on other data than {options.run}: name a twin on the same data"
            )
        rows[f"twin: {options.twin}"] = _accuracy(twin, twin_variables)

    console = Console(total_steps=1, steps_per_epoch=1)
    title = f"{options.run}, step {step}, {len(experiment.dataset.test)} test images"
    table = [[name, r["top1"], r["top5"], r["loss"]] for name, r in rows.items()]
    console.table(title, ["network", "top-1", "top-5", "loss"], table)
    if diagnoses:
        certified = sum(bool(d.certified) for d in diagnoses.values())
        console.message(f"{certified} of {len(diagnoses)} permutations certified")
    if options.layers:
        columns = ["layer", "P/Pmax", "residual", "max slack", "l1 bound", "certified"]
        cells = [
            [layer, float(d.penalty), float(d.residual), float(d.max_row_slack), float(d.l1_bound), bool(d.certified)]
            for layer, d in diagnoses.items()
        ]
        console.table("learned permutations", columns, cells)
    if options.json is not None:
        layers = {layer: {k: v.item() for k, v in d._asdict().items()} for layer, d in diagnoses.items()}
        text = json.dumps({"step": step, "networks": rows, "permutations": layers}, indent=2)
        replace_file(options.json, f"{text}\n".encode())


def results(
    experiment: Experiment, variables: dict[str, PyTree]
) -> tuple[dict[str, dict[str, float]], dict[str, Diagnosis]]:
    """Accuracies by network, and the diagnosis of each learned permutation.

    Args:
        experiment: the parts of the run.
        variables: of its network.

    Returns:
        ``top1``, ``top5`` and ``loss`` of "relaxed", "hardened" and "fixed shuffle, same weights"; of "as trained"
        alone for a network without learned permutations.
    """
    if not relaxed_permutations(variables["params"]):
        return {"as trained": _accuracy(experiment, variables)}, {}
    hard = experiment.harden(variables)
    fixed = dataclasses.replace(
        experiment,
        network=build(dataclasses.replace(experiment.config.network, mixer="shuffle"), len(experiment.dataset.classes)),
    )
    rows = {
        "relaxed": _accuracy(experiment, variables),
        "hardened": _accuracy(experiment, hard.variables),
        "fixed shuffle, same weights": _accuracy(fixed, hard.variables),
    }
    return rows, hard.diagnoses


def _accuracy(experiment: Experiment, variables: dict[str, PyTree]) -> dict[str, float]:
    step = make_eval_step(experiment.network, experiment.mesh, pixels=experiment.pixels)
    return evaluate(step, variables, experiment.batches.test())


if __name__ == "__main__":
    main(run)
