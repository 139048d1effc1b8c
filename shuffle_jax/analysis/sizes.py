"""Which sizes the next trial of a search has: a pure function of what the trials before it have learned.

A size whose layers go on to gain rank while they train is worth more channels; one whose rank stands still, or whose
kernels are conditioned badly, is worth fewer. Every trial changes each size by a share that is halved when the
direction turns, until it is small and the size stays.

Source: Hosseini et al., CONet, ICCVW 2021, arXiv 2108.06822.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from shuffle_jax.analysis.knowledge import Knowledge
from shuffle_jax.models.sizes import Node


@dataclass(frozen=True)
class Rule:
    """How ranks and conditions change a size.

    Attributes:
        delta: slope of the rank, an epoch, below which a size shrinks; at least 0.
        mu: condition from which it shrinks; above 1.
        phi: share by which it changes at first; above 0, below 1.
        gamma: share below which a size whose direction turns stays for good; above 0.
        least: channels of a size, at least.
        most: at most.
    """

    delta: float = 0.0075
    mu: float = 10.0
    phi: float = 0.2
    gamma: float = 0.01
    least: int = 32
    most: int = 256

    def __post_init__(self) -> None:
        for name, fits, what in (
            ("delta", self.delta >= 0, "at least 0"),
            ("mu", self.mu > 1, "above 1"),
            ("phi", 0 < self.phi < 1, "above 0 and below 1"),
            ("gamma", self.gamma > 0, "above 0"),
            ("least", self.least >= 1, "at least 1"),
            ("most", self.most >= self.least, f"at least the {self.least} of least"),
        ):
            if not fits:
                raise ValueError(f"{name} must be {what}, got {getattr(self, name)}")


class State(NamedTuple):
    """A size between two trials.

    Attributes:
        size: channels of the next trial.
        phi: share by which it changed last.
        operation: 1 if it grew, -1 if it shrank, 0 if it stays for good; None before the first decision.
    """

    size: int
    phi: float
    operation: int | None = None


def slope(ranks: Sequence[float]) -> float:
    """How much a rank gains an epoch until it is largest: ``(R_e - R_0) / (e + 1e-4)``, e the first largest.

    Args:
        ranks: at the end of each epoch.

    >>> round(slope([0.2, 0.25, 0.31, 0.3]), 6), slope([0.3, 0.2])
    (0.054997, 0.0)
    """
    values = np.asarray(ranks, np.float64)
    peak = int(np.argmax(values))
    return float((values[peak] - values[0]) / (peak + 1e-4))


def decided(state: State, ranks: Sequence[float], condition: float, rule: Rule, multiple: int = 2) -> State:
    """A size after one more trial.

    ``size <- clip(m round(size (1 + phi op) / m), least, most)``, halves to even, with op from slope and condition, and
    phi halved where it turns.

    Args:
        state: the size before.
        ranks: of its sides, at the end of each epoch of the trial; at least one.
        condition: of its sides at the end of the trial.
        rule: the thresholds.
        multiple: m, 2 in the paper.

    Raises:
        ValueError: no multiple is within the bounds.

    >>> state = State(32, 0.2)
    >>> for ranks in ([0, 1], [0, 0], [0, 1]):
    ...     state = decided(state, ranks, 1.0, Rule(least=16))
    ...     print(state)
    State(size=38, phi=0.2, operation=1)
    State(size=34, phi=0.1, operation=-1)
    State(size=36, phi=0.05, operation=1)
    """
    if state.operation == 0:
        return state
    least, most = bounds(rule, multiple)
    shrinks = (slope(ranks) < rule.delta or condition >= rule.mu) and state.size > least
    operation, phi = -1 if shrinks or state.size > most else 1, state.phi
    if state.operation is not None and operation != state.operation:
        operation, phi = 0 if phi < rule.gamma else operation, phi / 2
    size = multiple * round(state.size * (1 + phi * operation) / multiple)
    return State(min(max(size, least), most), phi, operation)


def bounds(rule: Rule, multiple: int = 2) -> tuple[int, int]:
    """The least and the most channels of a size that is a multiple of a number.

    Raises:
        ValueError: there are none.
    """
    least, most = -(-rule.least // multiple) * multiple, rule.most // multiple * multiple
    if most < least:
        raise ValueError(
            f"most must leave room for a multiple of {multiple} from {rule.least} on, got {rule.most}: raise it, or "
            "lower least"
        )
    return least, most


def decisions(
    start: Sequence[int],
    ranks: Sequence[Sequence[Sequence[float]]],
    conditions: Sequence[Sequence[float]],
    rule: Rule,
    multiples: Sequence[int] | None = None,
) -> list[tuple[State, ...]]:
    """All sizes before the first trial and after each.

    Args:
        start: sizes of the first trial.
        ranks: of each trial, size and epoch.
        conditions: of each trial and size, at its end.
        rule: the thresholds.
        multiples: of each size; 2 by default.

    Returns:
        One more than there are trials.
    """
    multiples = [2] * len(start) if multiples is None else multiples
    found = [tuple(State(int(size), rule.phi) for size in start)]
    for of_trial, at_end in zip(ranks, conditions, strict=True):
        columns = zip(found[-1], of_trial, at_end, multiples, strict=True)
        found.append(tuple(decided(state, r, float(c), rule, m) for state, r, c, m in columns))
    return found


def start_sizes(nodes: Sequence[Node], rule: Rule, start: int | None = None) -> tuple[int, ...]:
    """The sizes of the first trial: the same number for all or those of the network, as multiples within the bounds."""
    found = []
    for node in nodes:
        multiple = multiple_of_node(node)
        least, most = bounds(rule, multiple)
        size = multiple * round((node.channels if start is None else start) / multiple)
        found.append(min(max(size, least), most))
    return tuple(found)


def multiple_of_node(node: Node) -> int:
    """Of what a size is a multiple: of 2, as in the paper, and of what its layers need."""
    return math.lcm(2, node.multiple)


def node_values(nodes: Sequence[Node], known: Mapping[str, Knowledge]) -> tuple[list[float], list[float]]:
    """Rank and condition of each size: the means over its sides.

    Args:
        nodes: of a network.
        known: of each convolution, by the path of its parameters.

    Returns:
        The ranks and the conditions, in the order of the nodes.

    Raises:
        ValueError: a layer is no convolution with a kernel, as those that make weights from images.
    """
    ranks, conditions = [], []
    for node in nodes:
        if missing := [path for path, _ in node.sides if path not in known]:
            raise ValueError(
                f"{missing[0]} must be a convolution with a kernel of its own: search with plain 1x1 layers, and put "
                "others into the network that was found"
            )
        found = [known[path].inputs if side == "in" else known[path].outputs for path, side in node.sides]
        sides = [side for side in found if side is not None]
        ranks.append(float(np.mean([side.rank for side in sides])) if sides else 0.0)
        conditions.append(float(np.mean([side.condition for side in sides])) if sides else 0.0)
    return ranks, conditions
