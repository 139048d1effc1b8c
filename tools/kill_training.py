"""Kills a training run again and again, and shows that what it ends with is the same, bit for bit.

    python tools/kill_training.py --kills 50 --signal KILL|TERM|INT|MIX --seed 0 [arguments of experiments.train]

One run is never disturbed. A second one gets a signal at random moments of its processes' lives: while they import,
compile, train, save or harden; every third signal waits for a checkpoint that is being written. Each time the run is
resumed, or started again if it had not begun, as a person would. Once it has finished, what the two keep is compared.
Exit code 0: equal, and nothing is left over. Exit code 1: not so, and the lines before say what.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import math
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]

DEFAULT = ["digits", "--epochs", "150", "--evaluate-every", "1", "--data.test-fraction", "0.5", "--batch-size", "44"]
"""Many checkpoints in little time, so that many kills fit into one run."""

SIGNALS = {
    "KILL": (signal.SIGKILL,),
    "TERM": (signal.SIGTERM,),
    "INT": (signal.SIGINT,),
    "MIX": (signal.SIGKILL, signal.SIGTERM, signal.SIGINT),
}

COMMAND = [sys.executable, "-m", "experiments.train"]
"""What a person starts."""

PATIENCE = 300.0
"""Seconds within which a process must do what is expected of it."""

CLOCK = {"images_per_second", "seconds"}
MEANS = {"loss", "accuracy", "penalty", "gradient_norm", *CLOCK}
"""What a training record averages over its interval; a run resumed within it knows the later part only."""

PROGRESS = b"\nepoch "
"""What a process prints when it trains."""


@dataclass
class Life:
    """How long the parts of a process take, in seconds, as far as is known.

    Attributes:
        start: from its beginning to its first line of progress.
        training: from there to the last evaluation, if nothing disturbs it.
        finish: from there to its end.
        steps: of the whole run.
    """

    start: float
    training: float
    finish: float
    steps: int

    def longest(self, done: int, kills: int) -> float:
        """How long a process may live so that ``kills`` lives, each cut at random, bring the run near its end."""
        share = (self.training * (1 - done / self.steps) + self.finish) / (kills + 1)
        # A life uniform in (0, start + w) trains for w^2 / (2 (start + w)) on average: w such that this is the share.
        return self.start + share + math.sqrt(share**2 + 2 * share * self.start)


@dataclass(frozen=True)
class Moment:
    """When a process gets which signal.

    Attributes:
        signal: the signal.
        part: of the longest life, in (0, 1).
        checkpoint: wait for this many checkpoints to begin to be written instead; 0 does not.
        delay: seconds to wait then.
    """

    signal: signal.Signals
    part: float
    checkpoint: int = 0
    delay: float = 0.0


@dataclass
class Story:
    """What happened to a run.

    Attributes:
        kills: signals that met a living process.
        stops: the steps at which it stopped and saved.
        problems: what must not happen, one text each.
    """

    kills: int = 0
    stops: list[int] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def moments(count: int, signals: Sequence[signal.Signals], seed: int) -> list[Moment]:
    """Random moments; every third waits for a checkpoint that is being written."""
    rng = random.Random(seed)
    drawn = []
    for number in range(count):
        one = Moment(rng.choice(signals), rng.random())
        if number % 3 == 2:
            one = dataclasses.replace(one, checkpoint=1, delay=rng.uniform(0.0, 0.03))
        drawn.append(one)
    return drawn


def undisturbed(run: Path, arguments: Sequence[str], cache: Path) -> Life:
    """Trains a run in one go, and fills the cache of compiled programs."""
    began = time.monotonic()
    first = last = None
    with _process(run, arguments, cache, writing=True) as (process, log):
        while process.poll() is None:
            time.sleep(0.05)
            text = log.read_bytes()
            first = first or (time.monotonic() if PROGRESS in text else None)
            last = last or (time.monotonic() if b"  relaxed  " in text else None)
        ended = time.monotonic()
        if process.returncode:
            raise RuntimeError(f"the undisturbed run ended with code {process.returncode}:\n{log.read_text()}")
    first, last = first or ended, last or ended
    # With compiled programs at hand start and finish are shorter than here; how much the start is, is seen later.
    training = last - first
    return Life((first - began) / 5, training, min(ended - last, training / 4), newest_step(run))


def tormented(
    run: Path, arguments: Sequence[str], cache: Path, life: Life, plan: Sequence[Moment], say: Callable[[str], None]
) -> Story:
    """Trains a run whose first processes get a signal each, and the last one none.

    Args:
        run: the folder.
        arguments: of experiments.train.
        cache: of compiled programs; only read.
        life: how long the parts of a process take; corrected by what is seen.
        plan: the signals.
        say: told of each of them.
    """
    story = Story()
    for number, moment in enumerate([*plan, None]):
        with _process(run, arguments, cache, writing=False) as (process, log):
            began = time.monotonic()
            longest = life.longest(newest_step(run), len(plan) - number) if moment else PATIENCE
            struck = moment is not None and _strike(process, run, log, longest, moment, life)
            lived = time.monotonic() - began
            try:
                code = process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                story.problems.append(f"process {number + 1} did not end within {PATIENCE:.0f} s")
                return story
            text = log.read_text(errors="replace")
        story.stops += [int(step) for step in re.findall(r"stopped at step (\d+)", text)]
        if struck and moment:
            story.kills += 1
            aim = "while a checkpoint is written" if moment.checkpoint else "anywhere"
            reached = f"checkpoint {newest_step(run)} of {life.steps}"
            say(f"{story.kills:4d}  {moment.signal.name:7s}  after {lived:5.1f} s  code {code:4d}  {reached}  {aim}")
        if code == 0:
            return story
        expected = struck and (code < 0 or code - 128 in (signal.SIGINT, signal.SIGTERM) or "KeyboardInterrupt" in text)
        if not expected:
            story.problems.append(f"process {number + 1} ended with code {code}:\n{text[-3000:]}")
            return story
    return story


@contextmanager
def _process(
    run: Path, arguments: Sequence[str], cache: Path, writing: bool
) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """A process as a person starts it, resuming what has begun, and the file with what it prints.

    Only a process that nobody kills writes to the cache: JAX writes it in place, and a torn entry would stay, with a
    warning each time it is read.
    """
    environment = {
        **os.environ,
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0" if writing else "1e9",
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
    }
    resume = ["--resume", "--afresh"] if (run / "config.json").exists() else []
    command = [*COMMAND, *arguments, "--run", str(run), *resume]
    log = run.with_name(f"{run.name}.log")
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
    try:
        yield process, log
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def _strike(process: subprocess.Popen[bytes], run: Path, log: Path, longest: float, moment: Moment, life: Life) -> bool:
    """Waits for the moment and sends the signal; False if the process ended before."""
    began = time.monotonic()
    end = began + (longest if moment.checkpoint else longest * moment.part)
    left, seen = set(_names(run / "checkpoints")), set[str]()  # a killed process leaves its unfinished checkpoint
    trains = False
    while time.monotonic() < end:
        if process.poll() is not None:
            return False
        if not trains and PROGRESS in log.read_bytes():
            trains, life.start = True, time.monotonic() - began
        if moment.checkpoint:
            seen |= {name for name in _names(run / "checkpoints") if not name.isdigit()} - left
            if len(seen) >= moment.checkpoint:
                time.sleep(moment.delay)
                break
        time.sleep(0.002)
    if not trains:
        life.start = max(life.start, time.monotonic() - began)
    if process.poll() is not None:
        return False
    process.send_signal(moment.signal)
    return True


def newest_step(run: Path) -> int:
    """The step of the newest complete checkpoint, 0 without one."""
    return max((int(name) for name in _names(run / "checkpoints") if name.isdigit()), default=0)


def differences(whole: Path, run: Path, stops: Sequence[int] = ()) -> list[str]:
    """Where a finished run differs from another of the same configuration, a line each.

    Args:
        whole: the folder of one.
        run: the folder of the other.
        stops: the steps at which the other was stopped and saved; a mean over steps that holds one may differ.
    """
    found = [f"left over: {path.relative_to(run)}" for path in sorted(run.rglob("*")) if "tmp" in path.name]
    found += [f"checkpoints holds {name}" for name in _names(run / "checkpoints") if not name.isdigit()]
    one, other = _kept(whole), _kept(run)
    found += [f"{name} is in one folder only" for name in sorted(one ^ other)]
    for name in sorted(name for name in one & other if name.endswith(".npz")):
        with np.load(whole / name) as a, np.load(run / name) as b:
            found += [f"{name}: {line}" for line in _unequal(dict(a), dict(b))]
    found += [f"final checkpoint: {line}" for line in _unequal(_final_state(whole), _final_state(run))]
    return found + _different_records(whole / "metrics.jsonl", run / "metrics.jsonl", stops)


def _kept(run: Path) -> set[str]:
    """The files of a run but for those of TensorBoard, one a process, and checkpoints, whole or set aside.

    A kill in the middle of the removal of an old checkpoint leaves a part of it, which resuming sets aside.
    """
    files = (path.relative_to(run) for path in run.rglob("*") if path.is_file())
    return {str(path) for path in files if path.parts[0] not in ("tensorboard", "checkpoints", "damaged")}


def _unequal(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> list[str]:
    """The names under which two sets of arrays differ in type, shape or any bit."""
    same = {
        name
        for name in one.keys() & other.keys()
        if (one[name].dtype, one[name].shape, one[name].tobytes())
        == (other[name].dtype, other[name].shape, other[name].tobytes())
    }
    return [f"{name} differs" for name in sorted((one.keys() | other.keys()) - same)]


def _final_state(run: Path) -> dict[str, np.ndarray]:
    """Every array of the newest checkpoint."""
    import jax

    from shuffle_jax.run import Run
    from shuffle_jax.train.checkpoint import Checkpoints
    from shuffle_jax.train.config import read_config
    from shuffle_jax.train.experiment import prepare

    shapes = prepare(read_config(Run(run)), devices=1).state_shapes()
    with Checkpoints(run / "checkpoints", read_only=True) as checkpoints:
        state = checkpoints.restore(shapes)
    state = jax.device_get(state.replace(key=jax.random.key_data(state.key)))
    return {jax.tree_util.keystr(path): np.asarray(a) for path, a in jax.tree_util.tree_leaves_with_path(state)}


def _different_records(whole: Path, run: Path, stops: Sequence[int]) -> list[str]:
    """Where two files of records differ, but for the clock."""
    lists = [[json.loads(line) for line in path.read_text().splitlines()] for path in (whole, run)]
    if len(lists[0]) != len(lists[1]):
        return [f"metrics.jsonl has {len(lists[1])} lines and not {len(lists[0])}"]
    marks = [0, *(r["step"] for r in lists[0] if r["kind"] == "train")]
    # A stop at step s falls into the interval that ends at or after s, or begins there.
    forgotten = {b for s in stops for a, b in itertools.pairwise(marks) if a <= s <= b}
    found = []
    for number, pair in enumerate(zip(*lists, strict=True), start=1):
        ignored = CLOCK
        if pair[0]["kind"] == "train" and pair[0]["step"] in forgotten:
            ignored = MEANS
        a, b = ({key: value for key, value in record.items() if key not in ignored} for record in pair)
        if a != b:
            found.append(f"metrics.jsonl, line {number}: {b} and not {a}")
    return found


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []


def main() -> int:
    """Parses the command line, trains and torments, compares; returns the exit code."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="how many signals to send")
    parser.add_argument("--signal", choices=[*SIGNALS], default="KILL", help="which, or a mix of all three")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    options, arguments = parser.parse_known_args()
    sys.path.insert(0, str(ROOT))
    from experiments.cli import quiet_libraries

    quiet_libraries()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="kill_training_") as folder:
        whole, run, cache = (Path(folder) / name for name in ("whole", "killed", "cache"))
        life = undisturbed(whole, arguments or DEFAULT, cache)
        print(f"undisturbed: {life}", flush=True)
        plan = moments(options.kills, SIGNALS[options.signal], options.seed)
        story = tormented(run, arguments or DEFAULT, cache, life, plan, lambda line: print(line, flush=True))
        if story.kills < options.kills:
            print(f"the run ended after {story.kills} of {options.kills} signals: make it longer with --epochs")
        if aside := _names(run / "damaged"):
            print(f"{len(aside)} checkpoints were half removed by a kill and set aside")
        problems = story.problems or differences(whole, run, story.stops)
    print(*problems, sep="\n", end="\n" if problems else "")
    verdict = "NOT EQUAL" if problems else "equal, bit for bit"
    print(f"{verdict}: {story.kills} signals, {len(story.stops)} of them saved; {time.monotonic() - began:.0f} s")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
