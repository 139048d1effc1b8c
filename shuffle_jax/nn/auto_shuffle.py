"""The learned shuffle of AutoShuffleNet."""

from __future__ import annotations

import math
from typing import Literal

import flax.linen as nn

from shuffle_jax.nn.collections import PENALTIES, PERMUTATIONS, RELAXED, sow_last
from shuffle_jax.ops import mixing, permutation, relaxation
from shuffle_jax.ops.penalty import l1_minus_l2
from shuffle_jax.typing import Array, Float, Images, Key


class AutoShuffle(nn.Module):
    """A mixer whose permutation is learned as a nonnegative matrix M: ``y_i = M_i x / |M_i|`` at every position.

    The penalty :func:`shuffle_jax.ops.penalty.l1_minus_l2` of M is sown into "penalties"; the optimiser keeps M near
    the doubly stochastic matrices (:func:`shuffle_jax.constraint.keep_bistochastic`). Where the collection
    "permutations" holds an index vector for this module, as after :func:`shuffle_jax.deploy.hardening.harden`, there is
    no matrix: the layer is one gather.

    Rows are scaled to Euclidean norm 1 for mixing alone (:func:`shuffle_jax.ops.mixing.unit_rows`): a row that averages
    its inputs takes their variance away, and batch norms would scale up what is left. Penalty, constraint, certificate
    and hardening are those of M, and at a permutation the two are the same. The scaling is this project's; the paper
    has ``y = M x``, which is ``unit_rows=False``.

    M costs c^2 parameters in training and none afterwards. The start is this project's choice, as the paper's is not
    known to us: uniform entries on [0, 1] and 20 normalisation passes.

    Attributes:
        start: of the matrix: "random", the one above, or "shuffle", the fixed shuffle blended with it.
        candidates: inputs that a row of the random start averages at most; None for all.
        noise: weight of the random part in the "shuffle" start, in (0, 1].
        groups: of the fixed shuffle in the "shuffle" start.
        unit_rows: scale rows to norm 1 before mixing; without, short trainings learn little and lose it in hardening.

    Source: Lyu, Zhang, Qi and Xin, AutoShuffleNet, 2020.
    """

    start: Literal["random", "shuffle"] = "random"
    candidates: int | None = None
    noise: float = 0.5
    groups: int = 2
    unit_rows: bool = True

    @property
    def channel_multiple(self) -> int:
        """Of what the channels must be a multiple: for the "shuffle" start alone the groups."""
        return self.groups if self.start == "shuffle" else 1

    @nn.compact
    def __call__(self, x: Images, train: bool = False) -> Images:
        """Maps ``(n, h, w, c)`` to ``(n, h, w, c)``."""
        if self.has_variable(PERMUTATIONS, "index"):
            return mixing.permute(x, self.get_variable(PERMUTATIONS, "index"))
        matrix = self.param(RELAXED, self._initial, x.shape[-1])
        sow_last(self, PENALTIES, "l1_minus_l2", l1_minus_l2(matrix))
        return mixing.mix(x, mixing.unit_rows(matrix) if self.unit_rows else matrix)

    def multiply_adds(self, x: Images, y: Images) -> int:
        """Multiply-adds of one image: c for each value while M is a matrix, none once it is an index vector."""
        return 0 if self.has_variable(PERMUTATIONS, "index") else math.prod(y.shape[1:]) * x.shape[-1]

    def _initial(self, key: Key, channels: int) -> Float[Array, "c c"]:
        drawn = relaxation.random_bistochastic(key, channels, self.candidates)
        if self.start == "random":
            return drawn
        if not 0 < self.noise <= 1:
            raise ValueError(f"noise must be above 0 (a permutation is a trap) and at most 1, got {self.noise}")
        fixed = permutation.to_matrix(permutation.channel_shuffle(channels, self.groups))
        return (1 - self.noise) * fixed + self.noise * drawn
