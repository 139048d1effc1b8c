"""Evaluates a trained run: `python -m experiments.evaluate RUN [--twin OTHER_RUN]`.

Prints top-1, top-5 and loss on the test split of the network as trained (relaxed), hardened, and with the fixed
shuffle of its paper in place of the learned permutations. That last row keeps all other weights: how far it falls
says how much the weights rely on the permutations learned with them. For the accuracy of a network trained with the
fixed shuffle from the start, train one (`--network.mixer shuffle`) and name its run as --twin. A run that held out
images to validate on (--data.validation) is evaluated on these: settings and checkpoints are chosen by them. What is
reported afterwards is measured with --split test, on the test images, which the run has not read.

A network with dynamic layers is evaluated with hard factors, with soft ones, with hard ones repaired by assignment
where they are no permutations, and frozen: one permutation for all images, the nearest to the mean over training
images. One line says what the layers do for single images: how many are static in effect (the same permutation for all
images of a sample of the split), for how many images the hard factors are no permutations (invalid), and how much of
the accuracy is lost by freezing (used). --layers tells that of each layer.

--classes tells the accuracy of each class and which are taken for which, --wrong 20 the pictures that are wrong with
the highest probability, --figures FOLDER draws both: of the hardened network, where there is one.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from experiments.cli import keep_programs, main, parse, quiet_libraries
from shuffle_jax.analysis.dynamic_use import dynamic_use, static_in_effect
from shuffle_jax.console import Console
from shuffle_jax.data import Measured
from shuffle_jax.data.inventory import DataChanged
from shuffle_jax.data.names import told_apart
from shuffle_jax.deploy.hardening import Hardened
from shuffle_jax.files import replace_file
from shuffle_jax.models import build
from shuffle_jax.run import Run
from shuffle_jax.train.advice import after
from shuffle_jax.train.config import read_config
from shuffle_jax.train.experiment import Experiment, restore
from shuffle_jax.train.trained import forms, hardened_experiment
from shuffle_jax.typing import PyTree

FROZEN = "frozen to the mean permutation"

DRAWN = 24
"""Pictures that are wrong on the sheet of them, unless another number is asked for."""


@dataclass(frozen=True)
class Moved:
    """Where the pictures of the run are now; what is not given stays as the run has it."""

    root: Path | None = None
    """The folder that holds train and val, of a run on a folder of images."""

    data_dir: Path | None = None
    """The folder that holds the prepared sets, of a run on a set of tensorflow-datasets."""

    broken: Literal["stop", "skip"] | None = None
    """What to do about files that are no readable image, of a run on a folder of images."""


@dataclass(frozen=True)
class Arguments:
    """What to evaluate."""

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of a run, as experiments.train writes it."""

    checkpoint: str = "last"
    """Which checkpoint: "last", "best" (by relaxed top-1 accuracy), or a step."""

    split: Measured | None = None
    """Which images: "test", or "validation" of a run that held some out; by default those that the run measured on."""

    twin: Path | None = None
    """Folder of another run on the same data, to stand beside it: the same network with the fixed shuffle, say."""

    layers: bool = False
    """Also print one line per learned permutation or dynamic layer."""

    classes: bool = False
    """Also print the accuracy of each class, and which are taken for which."""

    wrong: int = 0
    """Also print so many of the pictures that are wrong, those first where the network is surest."""

    figures: Path | None = None
    """Also draw the confusion matrix and the pictures that are wrong (--wrong, by default 24) to this folder."""

    data: Moved = field(default_factory=Moved)
    """Where the pictures are now, if they have been moved."""

    allow_changed: bool = False
    """Go on though the pictures are not those that the run was trained and measured on: some of those that count as
    test may have been trained on."""

    devices: int | None = None
    """How many local devices to use; all by default."""

    json: Path | None = None
    """Also write the numbers to this file, with --classes, --wrong or --figures those of classes and pictures too."""


def run(arguments: Sequence[str] | None = None) -> None:
    """Parses the command line, evaluates and prints."""
    options = parse(Arguments, arguments, prog="python -m experiments.evaluate", description=__doc__)
    quiet_libraries()
    keep_programs()
    if options.wrong < 0:
        raise ValueError(f"--wrong must be at least 0, got {options.wrong}")
    experiment, variables, step = _restore(options, options.run)
    probed = experiment.probe.numbers(variables) if experiment.probe is not None else {}
    found, rows, hard = results(experiment, variables)
    diagnoses, use = hard.diagnoses, dynamic_use(probed) if probed else None
    if options.twin is not None:
        twin, twin_variables, _ = _restore(options, options.twin)
        if twin.config.data != experiment.config.data:
            raise ValueError(
                f"{options.twin} was trained on other data than {options.run}: name a twin on the same data"
            )
        rows[f"twin: {options.twin}"] = twin.evaluate(twin_variables)

    console = Console(total_steps=1, steps_per_epoch=1)
    images, measured = len(experiment.dataset.test), experiment.dataset.measured
    cells = use.cells(found) if use is not None else {}
    table = [
        [name, r["top1"], r["top5"], r["loss"], *(cells.values() if name == "hard" else [""] * len(cells))]
        for name, r in rows.items()
    ]
    title = f"{options.run}, step {step}, {images} {measured} images"
    console.table(title, ["network", "top-1", "top-5", "loss", *cells], table)
    if diagnoses:
        certified = sum(bool(d.certified) for d in diagnoses.values())
        console.message(f"{certified} of {len(diagnoses)} permutations certified")
    if use is not None:
        console.message(use.text({"hard": rows["hard"], "frozen": rows[FROZEN]}, images))
    for line in after(experiment.config, diagnoses, found, use):
        console.message(line)
    if options.layers and probed:
        console.table(*_layer_table(probed, measured))
    if options.layers and (diagnoses or not probed):
        columns = ["layer", "P/Pmax", "residual", "max slack", "l1 bound", "certified"]
        lines = [
            [layer, float(d.penalty), float(d.residual), float(d.max_row_slack), float(d.l1_bound), bool(d.certified)]
            for layer, d in diagnoses.items()
        ]
        console.table("learned permutations", columns, lines)
    details = {}
    if options.classes or options.wrong or options.figures:
        details = _details(options, experiment, variables if probed else hard.variables, console)
    if options.json is not None:
        layers = {layer: {k: v.item() for k, v in d._asdict().items()} for layer, d in diagnoses.items()}
        dynamic = {"dynamic": probed, "dynamic_use": dataclasses.asdict(use)} if use is not None else {}
        about = {"step": step, "split": measured, "networks": rows, "permutations": layers}
        text = json.dumps(about | dynamic | details, indent=2)
        replace_file(options.json, f"{text}\n".encode())


def _restore(options: Arguments, run: Path) -> tuple[Experiment, dict[str, PyTree], int]:
    """A run on its pictures, where they are now."""
    own = read_config(Run(run)).data
    given = {name: value for name, value in vars(options.data).items() if value is not None}
    for name in given:
        if not hasattr(own, name):
            option = f"--data.{name.replace('_', '-')}"
            raise ValueError(f"{option} is not for {run}, whose data is {type(own).__name__}: leave it out")
    data = dataclasses.replace(own, **given)
    try:
        return restore(run, options.checkpoint, options.devices, data, options.allow_changed, options.split)
    except DataChanged as error:
        raise ValueError(f"{error.what}: put them back, or go on with --allow-changed") from error


def _details(
    options: Arguments, experiment: Experiment, variables: dict[str, PyTree], console: Console
) -> dict[str, Any]:
    """Prints and draws what was asked for of single classes and pictures; the same as plain values."""
    from experiments.evaluation.predictions import class_rows, confusion_table, plain, predictions, wrong_rows

    found = predictions(experiment, variables, told_apart(experiment.dataset.classes))
    most = options.wrong or (DRAWN if options.figures else 0)
    wrong = wrong_rows(found, experiment.dataset, most)
    if options.classes:
        console.table("classes", ["class", "images", "top-1", "most often taken for"], class_rows(found))
        console.table(*confusion_table(found))
    if most and not wrong:
        console.message(f"no {experiment.dataset.measured} image is wrong")
    elif options.wrong:
        console.table("wrong, the surest first", ["picture", "class", "said to be", "probability"], wrong)
    if options.figures is not None:
        from experiments.cli.output import save_figure
        from experiments.evaluation.figures import confusion_figure, wrong_figure

        options.figures.mkdir(parents=True, exist_ok=True)
        save_figure(confusion_figure(found), options.figures / "confusion.png")
        save_figure(wrong_figure(found, experiment.dataset, most), options.figures / "wrong.png")
        console.message(f"confusion.png and wrong.png in {options.figures}")
    return plain(found, wrong)


def results(
    experiment: Experiment, variables: dict[str, PyTree]
) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, float]], Hardened]:
    """Accuracies by form, the rows that are shown of them, and the hardened network with its diagnoses.

    Args:
        experiment: the parts of the run.
        variables: of its network.

    Returns:
        ``top1``, ``top5`` and ``loss`` of the forms of :func:`shuffle_jax.train.trained.forms`; the same by the names
        that a person is shown, and "fixed shuffle, same weights", where the mixers are all that was learned or dynamic;
        and what hardening gave.
    """
    hard, dynamic = hardened_experiment(experiment, variables), experiment.probe is not None
    found = dict(forms(experiment, variables, hard))
    network = experiment.config.network
    own = "hard" if dynamic and "hard" not in found else "as trained" if dynamic or not hard.permutations else "relaxed"
    rows = {{"relaxed": own, "frozen": FROZEN}.get(name, name): result for name, result in found.items()}
    learned = network.pointwise == "plain" if dynamic else bool(hard.permutations)
    if learned and network.mixer != "identity":  # a network from outside has mixers of its own
        fixed = build(dataclasses.replace(network, mixer="shuffle"), len(experiment.dataset.classes))
        kept = variables if dynamic else hard.variables
        rows["fixed shuffle, same weights"] = dataclasses.replace(experiment, network=fixed).evaluate(kept)
    return found, rows, hard


def _layer_table(probed: dict[str, dict[str, float]], measured: str) -> tuple[str, list[str], list[list[object]]]:
    """Title, headings and rows: what each layer does."""
    counted = next((numbers["images"] for numbers in probed.values() if "images" in numbers), None)
    rows: list[list[object]] = []
    for layer, numbers in probed.items():
        made = str(numbers.get("permutations", "learned once"))
        static = "yes" if "permutations" in numbers and static_in_effect(numbers) else ""
        names = ("invalid", "regulariser", "entropy", "information")
        rows.append([layer, made, static, *(numbers.get(name, "") for name in names)])
    columns = ["layer", "permutations", "static in effect", "invalid", "regulariser", "entropy", "information"]
    title = f"dynamic layers, on {counted} of the {measured} images" if counted is not None else "learned factors"
    return title, columns, rows


if __name__ == "__main__":
    main(run)
