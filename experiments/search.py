"""Searches the sizes of a network: `python -m experiments.search PRESET [--FIELD VALUE ...]`.

The channels of each layer of a preset with a ResNet up to depth 34, a ShuffleNetV2 or a MobileNetV2 are chosen one by
one, as in CONet. Every trial is a short training with fresh weights, --epochs 20 by default, by SGD whose rates are
AdaS's; at the end of each epoch the kernels are looked at, and each size grows or shrinks as --rule says. --out, by
default runs/search/PRESET, holds a run for each trial, and after each of them sizes.csv, sizes.png and train.txt: with
`python -m experiments.train @OUT/train.txt` the preset trains with the sizes that were found. After Ctrl-C or a kill
the same command goes on; with more --trials also a search that was done. Search first and learn permutations after: new
sizes have no use for old ones, so name --network.mixer shuffle here.
"""

from __future__ import annotations

import csv
import io
import json
import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import tyro

from experiments import train
from experiments.cli import keep_programs, main, parse_preset, print_rows, quiet_libraries, save_figure
from experiments.cli.options import words_of
from experiments.compare import finished
from experiments.presets import PRESETS
from shuffle_jax.analysis.knowledge import Knowledge
from shuffle_jax.analysis.sizes import Rule, State, decisions, multiple_of_node, node_values, slope, start_sizes
from shuffle_jax.analysis.sizes_figure import Trial, sizes_figure
from shuffle_jax.files import held, replace_file, temporary
from shuffle_jax.models.sizes import Node
from shuffle_jax.naming import some
from shuffle_jax.records import read_records
from shuffle_jax.run import Run
from shuffle_jax.signals import heard
from shuffle_jax.train.config import OptimizerConfig, TrainConfig, differences, from_json, to_json

PROG = "python -m experiments.search"

ADAS = OptimizerConfig(
    "adas", learning_rate=0.03, schedule="constant", warmup_epochs=0, nesterov=False, weight_decay=5e-4
)
"""How CONet searches the sizes of a ResNet."""

KEPT = ("--data.", "--network.", "--augment.")
"""Options of a search that are also those of the training after it."""

EVERYDAY = (
    *("--out", "--trials", "--start", *(f"--rule.{name}" for name in asdict(Rule()))),
    *("--epochs", "--batch-size", "--seed", "--devices", "--optimizer.learning-rate"),
    *(option for option in train.EVERYDAY if option.startswith(KEPT)),
)
"""The options that --help shows; --help-all shows all."""

COLUMNS = ("trial", "size", "channels", "rank", "slope", "condition", "operation", "phi")


@dataclass(frozen=True)
class Arguments:
    """What to search, and where to keep it."""

    config: Annotated[TrainConfig, tyro.conf.arg(name="")]

    preset: tyro.conf.Suppress[str]

    out: Path | None = None
    """Folder of the search; runs/search/PRESET by default."""

    trials: int = 25
    """How many networks are trained; all but the last change the sizes."""

    start: int | None = 32
    """Channels of every layer in the first trial; None for those of the preset, or of --network.sizes."""

    rule: Rule = field(default_factory=Rule)
    """How a size changes."""

    devices: int | None = None
    """How many local devices to use; all by default."""

    def __post_init__(self) -> None:
        for name in ("trials", "start"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        least, most = self.rule.least, self.rule.most
        if self.start is not None and not least <= self.start <= most:
            raise ValueError(
                f"start must be from {least} to {most}, the least and most of a size, got {self.start}: change it, or "
                "--rule.least or --rule.most"
            )


def parse(arguments: Sequence[str] | None = None) -> Arguments:
    """A preset with the optimiser of a search, overridden from the command line."""
    words = words_of(arguments)
    presets = {
        name: ((preset.__doc__ or "").partition("\n")[0], Arguments(_searching(preset()), name))
        for name, preset in PRESETS.items()
    }
    if words and words[0] in presets:
        about, options = presets[words[0]]
        presets[words[0]] = about, replace(options, config=train.adapted(options.config, words))
    return parse_preset(presets, words, prog=PROG, description=__doc__ or "", everyday=EVERYDAY)


def _searching(config: TrainConfig) -> TrainConfig:
    """The recipe of a preset as that of a search: CONet's optimiser and epochs, one checkpoint beside the best."""
    return replace(config, optimizer=ADAS, epochs=20, keep=1)


def run(arguments: Sequence[str] | None = None) -> None:
    """Parses the command line, trains what is missing, and writes what was found."""
    options = parse(arguments)
    quiet_libraries()
    keep_programs()
    search = Search(options, words_of(arguments))
    print(f"Searching {len(search.nodes)} sizes of {options.preset} in {search.out}", flush=True)
    search.out.mkdir(parents=True, exist_ok=True)
    with held(search.out / "lock") as mine:
        if not mine:
            raise ValueError(f"{search.out} is being searched by another process: wait for it, or name another --out")
        search.begin()
        trials = list(search.trials())
    found = trials[-1]
    rows = [
        (node.name, first, size, f"{100 * ranks[-1]:.1f}", f"{slope(ranks):.4f}", f"{condition:.2f}")
        for node, first, size, ranks, condition in zip(
            search.nodes, trials[0].sizes, found.sizes, found.ranks, found.conditions, strict=True
        )
    ]
    print_rows(("size", "first", "found", "rank_percent", "slope", "condition"), rows, as_csv=False)
    print(f"train them with: python -m experiments.train @{search.out / 'train.txt'}", flush=True)


class Search:
    """A search in its folder; making one looks for what would stop it and writes nothing.

    Args:
        options: of the command.
        words: of the command line, of which those in :data:`KEPT` are kept for the training.

    Raises:
        ValueError: the folder holds something else, the data cannot be read, or the network has no sizes.
    """

    def __init__(self, options: Arguments, words: Sequence[str]) -> None:
        self.options, self.words = options, words
        self.out = options.out or Path("runs") / "search" / options.preset
        self._about = self.out / "search.json"
        self._check_folder()
        if options.config.optimizer.kind != "adas":
            raise ValueError(
                f"optimizer.kind must be adas in a search, which measures kernels, got {options.config.optimizer.kind}"
            )
        from shuffle_jax.train.experiment import prepare

        experiment = prepare(options.config, options.devices)
        network, family = experiment.network, options.config.network.family
        if not hasattr(network, "nodes"):
            raise ValueError(f"{family} has no sizes to search: choose resnet, shufflenet_v2 or mobilenet_v2")
        self.nodes: tuple[Node, ...] = network.nodes()
        assert experiment.convolutions is not None
        none = Knowledge(None, None, None)
        node_values(self.nodes, dict.fromkeys(experiment.convolutions.groups, none))  # all of them have a kernel
        self.first = start_sizes(self.nodes, options.rule, options.start)
        rule = options.rule
        beyond = [node.name for node in self.nodes if not rule.least <= node.channels <= rule.most]
        if options.start is None and beyond:
            said = f"of {some(beyond)} are not from {rule.least} to {rule.most} and start at the nearer of both"
            print(f"the network's own channels {said}: --rule.least and --rule.most", flush=True)

    def begin(self) -> None:
        """Notes what is searched."""
        replace_file(self._about, json.dumps(self._own(), indent=2).encode() + b"\n")

    def trials(self) -> Iterator[Trial]:
        """Every trial in turn, trained if it is not there yet; after each of them what was found so far is written."""
        import jax

        from shuffle_jax.train import loop

        found: list[Trial] = []
        signals: list[int] = []
        with heard(signals.append):
            for number in range(self.options.trials):
                states = self._states(found)
                path = self.out / f"trial-{number + 1:02d}"
                sizes = tuple(state.size for state in states[-1])
                config = self._config(sizes, number)
                if not finished(path):
                    print(f"[{number + 1}/{self.options.trials}] {path}: {' '.join(map(str, sizes))}", flush=True)
                    try:
                        # A run does not heed a signal that comes after its last step, and the next must not start then.
                        if late := next((one for one in signals if one in (signal.SIGINT, signal.SIGTERM)), None):
                            raise loop.Stopped(f"stopped before {path}", late, "")
                        resume = Run(path).exists()
                        loop.train(config, path, resume=resume, afresh=resume, devices=self.options.devices)
                    except loop.Stopped as stopped:
                        print(f"{stopped}; the same command goes on", file=sys.stderr, flush=True)
                        sys.exit(128 + stopped.signal)
                    jax.clear_caches()
                found.append(self._read(path, sizes))
                self._write(found)
                yield found[-1]

    def _states(self, found: Sequence[Trial]) -> list[tuple[State, ...]]:
        """All sizes before the first trial and after each of those that are done."""
        ranks, conditions = [trial.ranks for trial in found], [trial.conditions for trial in found]
        multiples = [multiple_of_node(node) for node in self.nodes]
        return decisions(self.first, ranks, conditions, self.options.rule, multiples)

    def _config(self, sizes: tuple[int, ...], number: int) -> TrainConfig:
        config = self.options.config
        network = replace(config.network, sizes=sizes, width=1.0)
        return replace(config, network=network, seed=config.seed + number)

    def _read(self, path: Path, sizes: tuple[int, ...]) -> Trial:
        """What a finished trial measured, epoch by epoch."""
        records = read_records(Run(path).metrics)
        epochs: dict[int, dict[str, Knowledge]] = {}
        for record in records:
            if record["kind"] == "knowledge":
                epochs.setdefault(record["step"], {})[record["layer"]] = Knowledge.read(record)
        if len(epochs) != self.options.config.epochs:
            raise ValueError(
                f"{path} must have measured its kernels in {self.options.config.epochs} epochs, found {len(epochs)}: "
                "remove the folder, and it is trained anew"
            )
        values = [node_values(self.nodes, epochs[step]) for step in sorted(epochs)]
        top1 = [record["top1"] for record in records if record["kind"] == "test"][-1]
        ranks = tuple(zip(*(ranks for ranks, _ in values), strict=True))
        return Trial(sizes, ranks, tuple(values[-1][1]), top1)

    def _write(self, found: Sequence[Trial]) -> None:
        """Writes sizes.csv, sizes.png and train.txt, each whole or not at all."""
        table = io.StringIO()
        writer = csv.writer(table, lineterminator="\n")
        writer.writerow(COLUMNS)
        states = self._states(found)
        for number, (trial, after) in enumerate(zip(found, states[1:], strict=True), start=1):
            for node, size, ranks, condition, state in zip(
                self.nodes, trial.sizes, trial.ranks, trial.conditions, after, strict=True
            ):
                numbers = (f"{value:.6g}" for value in (ranks[-1], slope(ranks), condition))
                writer.writerow((number, node.name, size, *numbers, state.operation, f"{state.phi:g}"))
        replace_file(self.out / "sizes.csv", table.getvalue().encode())
        save_figure(sizes_figure([node.name for node in self.nodes], found), self.out / "sizes.png")
        replace_file(self.out / "train.txt", f"{shlex.join(self._command(found[-1].sizes))}\n".encode())

    def _command(self, sizes: Sequence[int]) -> list[str]:
        """The words that experiments.train takes."""
        kept, keeps = [self.options.preset], False
        for word in self.words[1:]:
            if word.startswith("--"):
                name = word.partition("=")[0]
                keeps = name.startswith(KEPT) and name not in ("--network.sizes", "--network.width")
            kept += [word] if keeps else []
        return [*kept, "--network.width", "1", "--network.sizes", *map(str, sizes)]

    def _own(self) -> dict[str, Any]:
        options = self.options
        return {"config": to_json(options.config), "rule": asdict(options.rule), "start": options.start}

    def _check_folder(self) -> None:
        """Raises a ValueError if something else is in the folder."""
        if not self._about.exists():
            worthless = (temporary(self._about), self.out / "lock")
            if self.out.exists() and any(path not in worthless for path in self.out.iterdir()):
                raise ValueError(f"{self.out} exists and holds no search: name another --out")
            return
        try:
            kept = json.loads(self._about.read_text(encoding="utf-8"))
            config = to_json(from_json(TrainConfig, kept["config"]))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{self._about} does not hold a search ({error!r}): name another --out") from error
        if changed := differences({**kept, "config": config}, self._own()):
            raise ValueError(f"{self.out} holds another search, {'; '.join(changed)}: name another --out")
        if (done := len([*self.out.glob("trial-*")])) > self.options.trials:
            raise ValueError(f"trials must be at least {done}, those of {self.out}, got {self.options.trials}")


if __name__ == "__main__":
    main(run)
