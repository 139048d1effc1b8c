"""Fine-tuning: training that starts from the variables of another run."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from shuffle_jax.constraint import RELAXED
from shuffle_jax.data import Preprocessing
from shuffle_jax.naming import some
from shuffle_jax.nn.collections import PERMUTATIONS, PROGRESS
from shuffle_jax.ops.permutation import to_matrix
from shuffle_jax.run import Run
from shuffle_jax.train.checkpoint import Checkpoints
from shuffle_jax.train.frozen import HEAD
from shuffle_jax.typing import PyTree

Names = tuple[str, ...]


class Start(NamedTuple):
    """What a run leaves for another one to start from.

    Attributes:
        path: of the run.
        step: of its newest checkpoint.
        variables: arrays by path, by collection, as they are evaluated.
        preprocessing: of its pictures.
        classes: how many it tells apart.
    """

    path: Path
    step: int
    variables: dict[str, dict[Names, np.ndarray]]
    preprocessing: Preprocessing
    classes: int


class Taken(NamedTuple):
    """The variables that a training starts with, and in one line where they are from."""

    variables: dict[str, PyTree]
    said: str


def read_start(path: Path) -> Start:
    """Reads the newest checkpoint of a run, also of one that experiments.convert wrote.

    Raises:
        ValueError: it is not the folder of a run.
        FileNotFoundError: there is no checkpoint.
    """
    run = Run(path)
    if not run.exists():
        raise ValueError(
            f"start_from must be the folder of a run, got {path}: weights become one by python -m experiments.convert"
        )
    with Checkpoints(run.checkpoints, read_only=True) as checkpoints:
        if not (steps := checkpoints.steps()):
            raise FileNotFoundError(f"there is no checkpoint in {run.checkpoints} to start from")
        return Start(path, steps[-1], checkpoints.variables(), run.preprocessing(), len(run.classes()))


def take(start: Start, fresh: dict[str, PyTree], classes: int) -> Taken:
    """The variables of a network, taken from a run where path and shape are the same.

    The classifier is taken whole or not at all: what is named "head", or differs in the number of classes alone. What
    is not there stays as it is in ``fresh``, and so does the progress of a training.

    Args:
        start: what is taken.
        fresh: the variables of the network that is to be trained, or their shapes.
        classes: how many it tells apart.

    Raises:
        ValueError: less than half of the arrays before the classifier fit.
    """
    wanted = {(name, *path): leaf for name, tree in fresh.items() for path, leaf in flatten_dict(tree).items()}
    wanted = {path: leaf for path, leaf in wanted.items() if path[0] != PROGRESS}
    found = {(name, *path): leaf for name, leaves in start.variables.items() for path, leaf in leaves.items()}
    for path in set(wanted) - set(found):
        if path[-1] == RELAXED and (index := found.pop((PERMUTATIONS, *path[1:-1], "index"), None)) is not None:
            found[path] = np.asarray(to_matrix(jnp.asarray(index)))  # hardened while that run went on
    fits = {path for path, leaf in wanted.items() if path in found and found[path].shape == leaf.shape}

    def counts_classes(path: Names) -> bool:
        """Whether the shapes of an array differ in the number of classes alone."""
        then, now = (tuple(leaves[path].shape) if path in leaves else () for leaves in (found, wanted))
        known = {(start.classes, classes)} | {(n, n) for n in now}
        return then != now and len(then) == len(now) and set(zip(then, now, strict=True)) <= known

    layers = {"/".join(path[1:-1]) for path in wanted if counts_classes(path)}

    def is_head(path: Names) -> bool:
        return path[1] == HEAD or "/".join(path[1:-1]) in layers

    head = {path for path in wanted if is_head(path)}
    if not head <= fits:
        fits -= head
    before = set(wanted) - head
    if 2 * len(fits & before) < len(before):
        odd = next(path for path in wanted if path in before - fits)
        has = f"is {found[odd].shape} there" if odd in found else "is not there"
        raise ValueError(
            f"{start.path} has only {len(fits & before)} of the {len(before)} arrays before the classifier: "
            f"{_name(odd)} {has} and should be {tuple(wanted[odd].shape)}; give the options --network of that run"
        )
    said = f"{len(fits)} of {len(wanted)} arrays from {start.path}, step {start.step}"
    if head - fits:
        said += f"; the classifier is drawn anew, for {classes} classes and not {start.classes}"
    if anew := [_name(path) for path in wanted if path in before - fits]:
        said += f"; drawn anew: {some(anew)}"
    network = ("params", *fresh)
    if left := [_name(path) for path in found if path[0] in network and path not in wanted and not is_head(path)]:
        said += f"; left out: {some(left)}"
    merged = {path: found[path].astype(leaf.dtype) if path in fits else leaf for path, leaf in wanted.items()}
    taken = unflatten_dict(merged)
    return Taken({name: taken.get(name, tree) for name, tree in fresh.items()}, said)


def _name(path: Names) -> str:
    return "/".join(path[1:] if path[0] == "params" else path)
