"""Evaluates a trained run: `python -m experiments.evaluate RUN [--twin OTHER_RUN]`.

Prints top-1, top-5 and loss on the test split of the network as trained (relaxed), hardened, and with the fixed
shuffle of its paper in place of the learned permutations. That last row keeps all other weights: how far it falls
says how much the weights rely on the permutations learned with them. For the accuracy of a network trained with the
fixed shuffle from the start, train one (`--network.mixer shuffle`) and name its run as --twin.

A network with dynamic layers is evaluated with hard factors, with soft ones, with hard ones repaired by assignment
where they are no permutations, and frozen: one permutation for all images, the nearest to the mean over training
images. If it loses nothing by that, its dynamic layers are static in effect.
"""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from experiments.cli import keep_programs, main, parse, quiet_libraries
from shuffle_jax.console import Console
from shuffle_jax.deploy.harden import Diagnosis
from shuffle_jax.files import replace_file
from shuffle_jax.models import build
from shuffle_jax.train.advice import after
from shuffle_jax.train.experiment import Experiment, restore
from shuffle_jax.train.trained import forms, hardened_experiment
from shuffle_jax.typing import PyTree

FROZEN = "frozen to the mean permutation"


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
    """Also print one line per learned permutation or dynamic layer."""

    devices: int | None = None
    """How many local devices to use; all by default."""

    json: Path | None = None
    """Also write the numbers to this file."""


def run(arguments: Sequence[str] | None = None) -> None:
    """Parses the command line, evaluates and prints."""
    options = parse(Arguments, arguments, prog="python -m experiments.evaluate", description=__doc__)
    quiet_libraries()
    keep_programs()
    experiment, variables, step = restore(options.run, options.checkpoint, options.devices)
    dynamic = experiment.probe is not None
    probed = experiment.probe.numbers(variables) if experiment.probe is not None else {}
    rows, diagnoses = results(experiment, variables, dynamic)
    if options.twin is not None:
        twin, twin_variables, _ = restore(options.twin, options.checkpoint, options.devices)
        if twin.config.data != experiment.config.data:
            raise ValueError(
                f"{options.twin} was trained on other data than {options.run}: name a twin on the same data"
            )
        rows[f"twin: {options.twin}"] = twin.evaluate(twin_variables)

    console = Console(total_steps=1, steps_per_epoch=1)
    title = f"{options.run}, step {step}, {len(experiment.dataset.test)} test images"
    table = [[name, r["top1"], r["top5"], r["loss"]] for name, r in rows.items()]
    console.table(title, ["network", "top-1", "top-5", "loss"], table)
    if diagnoses:
        certified = sum(bool(d.certified) for d in diagnoses.values())
        console.message(f"{certified} of {len(diagnoses)} permutations certified")
        for line in after(experiment.config, diagnoses, rows):
            console.message(line)
    if dynamic:
        console.message(verdict(rows["hard"]["top1"], rows[FROZEN]["top1"], probed, len(experiment.dataset.test)))
    if options.layers and dynamic:
        names = ["regulariser", "invalid", "distinct", "entropy"]
        console.table(
            "dynamic layers, on a sample of the test images",
            ["layer", *names],
            [[layer, *(numbers[name] for name in names)] for layer, numbers in probed.items()],
        )
    elif options.layers:
        columns = ["layer", "P/Pmax", "residual", "max slack", "l1 bound", "certified"]
        cells = [
            [layer, float(d.penalty), float(d.residual), float(d.max_row_slack), float(d.l1_bound), bool(d.certified)]
            for layer, d in diagnoses.items()
        ]
        console.table("learned permutations", columns, cells)
    if options.json is not None:
        layers = {layer: {k: v.item() for k, v in d._asdict().items()} for layer, d in diagnoses.items()}
        found = {"step": step, "networks": rows, "permutations": layers} | ({"dynamic": probed} if dynamic else {})
        text = json.dumps(found, indent=2)
        replace_file(options.json, f"{text}\n".encode())


def results(
    experiment: Experiment, variables: dict[str, PyTree], dynamic: bool
) -> tuple[dict[str, dict[str, float]], dict[str, Diagnosis]]:
    """Accuracies by network, and the diagnosis of each learned permutation.

    Args:
        experiment: the parts of the run.
        variables: of its network.
        dynamic: whether the network has dynamic layers; these have no relaxed permutation to diagnose.

    Returns:
        ``top1``, ``top5`` and ``loss``. With dynamic layers those of "hard", "soft", "repaired" and frozen; with
        learned permutations of "relaxed" and "hardened"; else of "as trained" alone. And of "fixed shuffle, same
        weights", where the mixers are all that was learned or dynamic.
    """
    hard = hardened_experiment(experiment, variables)
    shown = {"relaxed": "hard", "frozen": FROZEN} if dynamic else {} if hard.permutations else {"relaxed": "as trained"}
    rows = {shown.get(name, name): result for name, result in forms(experiment, variables, hard)}
    network = experiment.config.network
    learned = network.pointwise == "plain" if dynamic else bool(hard.permutations)
    if learned and network.mixer != "identity":  # a network from outside has mixers of its own
        fixed = build(dataclasses.replace(network, mixer="shuffle"), len(experiment.dataset.classes))
        kept = variables if dynamic else hard.variables
        rows["fixed shuffle, same weights"] = dataclasses.replace(experiment, network=fixed).evaluate(kept)
    return rows, hard.diagnoses


def verdict(hard: float, frozen: float, probed: dict[str, dict[str, float]], images: int) -> str:
    """Whether the dynamic layers do anything for single images, in a sentence.

    Args:
        hard: top-1 with a permutation for each image.
        frozen: top-1 with one for all.
        probed: of each layer, with ``distinct``, the different permutations over the images looked at.
        images: on which the accuracies were measured.
    """
    error = math.sqrt(max(hard * (1 - hard), 0.0) / images)
    told = f"frozen to one permutation for all images it loses {100 * (hard - frozen):.2f} points of top-1"
    share = statistics.fmean(numbers["distinct"] for numbers in probed.values())
    seen = f"a layer makes {share:.1%} as many different permutations as it sees images, on average"
    if hard - frozen <= error:
        return f"static in effect: {told}, within the standard error of {100 * error:.2f}; {seen}"
    return f"dynamic in effect: {told}, standard error {100 * error:.2f}; {seen}"


if __name__ == "__main__":
    main(run)
