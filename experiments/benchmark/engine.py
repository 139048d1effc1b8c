"""Engines in processes of their own, which take turns: no two of them compute at the same time.

The thread pools of XLA, torch and ONNX Runtime spin against one another in one process. Here each engine builds its
cases once, in a process of its own, and then waits in a blocking read until it is its turn. Nothing is set that would
keep its threads from spinning while it works, since whoever uses it alone would not set it either; but it answers only
when they stand still, and if they do not come to rest its table is refused.
"""

from __future__ import annotations

import importlib
import math
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from experiments.benchmark import machine, measuring
from experiments.benchmark.effort import Effort, OutOfTime

if TYPE_CHECKING:  # an engine costs what its cases cost
    from experiments.benchmark.cases import Cases

CODE = "from experiments.benchmark.engine import serve; serve({descriptor}, {keep})"

STEPS = 3
"""How many steps the peak of the memory is that of."""

LONGEST = 300
"""Characters of an error that are told."""

Outputs = dict[str, np.ndarray]


@dataclass(frozen=True)
class Built:
    """What an engine keeps between its turns.

    Attributes:
        cases: what is timed. A case returns when its work is done, or what JAX can wait for.
        outputs: what must be the same in every engine, by name.
        device_peak: the most bytes that were in use on a GPU; None where the memory is the process's.
    """

    cases: Cases
    outputs: Callable[[], Outputs] = dict
    device_peak: Callable[[], int] | None = None


class Recipe(NamedTuple):
    """An engine to be.

    Attributes:
        name: in messages.
        build: what gives a :class:`Built` in the process of the engine, as ``module:function``: a module that imports
            an engine is not imported here.
        arguments: of that function.
        environment: variables of the process beside those of this one.
        keep_freed: whether the process keeps the memory that it frees, as commands do (experiments/cli/allocator.py).
    """

    name: str
    build: str
    arguments: tuple[Any, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    keep_freed: bool = True


class Engine:
    """A process that builds the cases of one engine and measures them when it is asked to.

    Attributes:
        name: in messages.
        process: the process.
    """

    def __init__(self, recipe: Recipe, effort: Effort) -> None:
        """Starts the process, which :meth:`close` ends."""
        self.name, self._effort = recipe.name, effort
        self._connection, theirs = Pipe()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (closed by close)
        code = CODE.format(descriptor=theirs.fileno(), keep=recipe.keep_freed)
        paths = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-c", code],
                env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)} | dict(recipe.environment),
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                process_group=0,  # Ctrl-C is for the parent, which ends its engines
            )

    def ask(self, verb: str, *arguments: Any) -> Any:
        """What the engine answers.

        Args:
            verb: the name of a method of :class:`Server`.
            arguments: of that method.

        Raises:
            ArithmeticError: it raised an exception, its process ended, or its threads do not come to rest.
            OutOfTime: it did not answer in time.
        """
        try:
            self._connection.send((verb, arguments))
            left = self._effort.left()
            if not self._connection.poll(None if math.isinf(left) else left):
                raise OutOfTime
            done, answer = self._connection.recv()
        except (EOFError, ConnectionError):
            raise ArithmeticError(f"{self.name}: {self._how_it_ended()}") from None
        if not done:
            raise ArithmeticError(f"{self.name}: {answer}")
        return answer

    def close(self) -> None:
        """Ends the process, whatever it does."""
        self._connection.close()
        self.process.kill()
        self.process.wait()
        self._log.close()

    def _how_it_ended(self) -> str:
        code = self.process.wait()
        how = f"signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"code {code}"
        self._log.seek(0)
        last = self._log.read().decode(errors="replace").strip().rpartition("\n")[2]
        return f"its process ended with {how}{f': {last[:LONGEST]}' if last else ''}"


@contextmanager
def running(recipes: Sequence[Recipe], effort: Effort) -> Iterator[list[Engine]]:
    """Engines that are built, one after the other, and end with the context."""
    with ExitStack() as stack:
        engines = []
        for recipe in recipes:
            engine = Engine(recipe, effort)
            stack.callback(engine.close)
            engine.ask("build", recipe.build, *recipe.arguments)
            engines.append(engine)
        yield engines


@dataclass
class Server:
    """What an engine does when it is asked to; the other side of :meth:`Engine.ask`."""

    baseline: int | None = field(default_factory=machine.resident)
    built: Built = field(default_factory=lambda: Built({}))
    repeats: dict[str, int] = field(default_factory=dict)

    def build(self, function: str, *arguments: Any) -> None:
        """Builds the cases; what was in memory before, imports and all, is not theirs."""
        module, _, name = function.partition(":")
        build = getattr(importlib.import_module(module), name)
        self.baseline = machine.resident()
        self.built = build(*arguments)

    def names(self) -> list[str]:
        """Of the cases."""
        return list(self.built.cases)

    def outputs(self) -> Outputs:
        """What must be the same in every engine."""
        return self.built.outputs()

    def warm(self, name: str) -> None:
        """Compiles a case, and finds how often it runs in a turn."""
        self.repeats[name] = measuring.warm(self.built.cases[name])

    def turn(self, name: str) -> measuring.Turn:
        """Measures a case."""
        return measuring.turn(self.built.cases[name], self.repeats[name])

    def peak(self) -> tuple[int, int]:
        """Bytes that steps of the first case held at most, and the most with its building and compilation.

        The steps are ``STEPS``, after those that :meth:`warm` takes. Both less what the process held before it built
        anything, but with all of its imports. On a GPU both are what it says was in use at most.
        """
        name, case = next(iter(self.built.cases.items()))
        self.warm(name)
        whole = machine.resident(peak=True)
        if self.built.device_peak is None and (not machine.forget_peak() or whole is None or self.baseline is None):
            raise ArithmeticError("this system does not tell how much memory a process held at most")
        for _ in range(STEPS):
            measuring.done(case)
        if self.built.device_peak is not None:
            return (held := self.built.device_peak()), held
        steps = machine.resident(peak=True)
        assert steps is not None and whole is not None and self.baseline is not None
        return steps - self.baseline, max(whole, steps) - self.baseline


def serve(descriptor: int, keep_freed: bool) -> None:
    """Answers what is asked over a pipe, until the other end is gone."""
    if keep_freed:
        from experiments.cli.allocator import keep_freed_memory

        keep_freed_memory()
    server = Server()
    with Connection(descriptor) as connection:
        while True:
            try:
                verb, arguments = connection.recv()
            except (EOFError, ConnectionError):
                return
            except Exception as error:  # what it is asked with cannot be imported here
                answer = False, told(error)
            else:
                answer = answered(server, verb, arguments)
            if not measuring.rest():
                late = f"{measuring.PATIENCE:g} s after its work"
                answer = False, f"its threads still run {late}, so nothing can be measured beside it"
            try:
                connection.send(answer)
            except ConnectionError:
                return


def answered(server: Server, verb: str, arguments: tuple[Any, ...]) -> tuple[bool, Any]:
    """Whether a method did what it was asked, and what it gave, or why not."""
    try:
        return True, getattr(server, verb)(*arguments)
    except Exception as error:
        return False, told(error)


def told(error: Exception) -> str:
    """An exception in one line, with its kind where the text alone would not say it."""
    text = " ".join(str(error).split())[:LONGEST]
    return text if isinstance(error, ArithmeticError | ValueError) else f"{type(error).__name__}: {text}"
