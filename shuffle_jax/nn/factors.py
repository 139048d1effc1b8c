"""The small matrices of a dynamic layer: made from each image by a tiny head, or learned once for all of them."""

from __future__ import annotations

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from shuffle_jax.nn.collections import (
    DIAGNOSTICS,
    FACTORS,
    PENALTIES,
    PERMUTATIONS,
    STATIC,
    sow_last,
    training_progress,
)
from shuffle_jax.nn.limits import check_positive
from shuffle_jax.ops.penalty import orthogonality, row_entropy
from shuffle_jax.ops.permutation import count_distinct, is_permutation, to_matrix
from shuffle_jax.ops.relaxation import sinkhorn, softmax_rows
from shuffle_jax.ops.rounding import argmax
from shuffle_jax.typing import Array, Float, Images, Int, Key


class Factors(struct.PyTreeNode):
    """A pair of row-stochastic factors in float32, for each image (or all: m = 1) and group (or all: k = 1).

    Attributes:
        outer: A, which mixes the rows of the tables of channels.
        inner: B, which mixes within the rows.
        outer_index: row-argmax of A.
        inner_index: row-argmax of B.
        frozen: they are one pair of permutations for all images, as after :func:`shuffle_jax.deploy.freeze.freeze`.
    """

    outer: Float[Array, "m k p p"]
    inner: Float[Array, "m k q q"]
    outer_index: Int[Array, "m k p"]
    inner_index: Int[Array, "m k q"]
    frozen: bool = struct.field(pytree_node=False, default=False)


class FactorGenerator(nn.Module):
    """Makes the factors: ``softmax(W2 relu(W1 mean(x) + b1) + b2)``, the mean over positions, row by row.

    The head of a static generator is ``b2`` alone, learned once for all images. Softmax, regulariser and diagnostics
    are computed in float32.

    The regulariser ``|A A^T - I|_F^2 / p + |B B^T - I|_F^2 / q``, a mean over images and groups, is sown into
    "penalties". The loss adds the layers up: for a mean over L of them divide its weight by L. Into "diagnostics" go
    the ``regulariser``; ``invalid``, the share of factor pairs whose row-argmax is no pair of permutations;
    ``distinct``, the different permutations in the batch over its images; and ``entropy``, the mean of
    :func:`shuffle_jax.ops.penalty.row_entropy`, averaged over rows. Into "factors" go ``outer`` and ``inner``.

    Where the collection "permutations" holds index vectors ``outer`` and ``inner`` for this module, there is no head:
    they are the factors.

    Attributes:
        sizes: p and q.
        copies: pairs for each image: 1 shared by all groups, or one for each group.
        dynamic: False for factors that are learned and not made from the image.
        hidden: width of the hidden layer, at least 1; ``max(4, c / 16)`` by default (None).
        start: "identity": W2 is 0 and b2 is ``start_logit`` on the diagonals, so that every row-argmax is the identity
            whatever the image; "random": as dense layers start.
        start_logit: above 0; 4 is a softmax of 0.95 for p = 4, of 0.66 for p = 29.
        normalization: "rows": the softmax of every row; "sinkhorn": of rows and columns in turn, in whose limit no two
            rows can choose one column. The abstract names the softmax; the other is this project's.
        temperature: T of the softmax, above 0.
        end_temperature: if given, T falls (or rises) geometrically to this over the training.

    Source: Gong, Yin, Li, Guo and Xu, Dynamic Shuffle, 2023. Its abstract names softmax, orthogonal regularisation and
    small shared matrices; everything else here is this project's reconstruction.
    """

    sizes: tuple[int, int]
    copies: int = 1
    dynamic: bool = True
    hidden: int | None = None
    start: Literal["identity", "random"] = "identity"
    start_logit: float = 4.0
    normalization: Literal["rows", "sinkhorn"] = "rows"
    temperature: float = 1.0
    end_temperature: float | None = None

    @nn.compact
    def __call__(self, x: Images, train: bool = False) -> Factors:
        """Maps ``(n, ..., c)`` to factors for n images, or for all of them if the generator is static.

        Raises:
            ValueError: no hidden units, or a temperature or start_logit that is not positive.
        """
        if self.has_variable(PERMUTATIONS, "outer"):
            outer_index: Array = self.get_variable(PERMUTATIONS, "outer")[None]
            inner_index: Array = self.get_variable(PERMUTATIONS, "inner")[None]
            return Factors(to_matrix(outer_index), to_matrix(inner_index), outer_index, inner_index, frozen=True)
        check_positive(hidden=self.hidden, start_logit=self.start_logit)
        check_positive(temperature=self.temperature, end_temperature=self.end_temperature)
        p, q = self.sizes
        size = self.copies * (p * p + q * q)
        if self.dynamic:
            pooled = x.mean(tuple(range(1, x.ndim - 1)), dtype=jnp.float32)
            hidden = self.hidden if self.hidden is not None else max(4, x.shape[-1] // 16)
            y = nn.relu(nn.Dense(hidden, name="hidden")(pooled))
            identity = self.start == "identity"
            kernel = nn.initializers.zeros_init() if identity else nn.initializers.lecun_normal()
            logits = nn.Dense(size, kernel_init=kernel, bias_init=self._start, name="logits")(y)
        else:
            logits = self.param(STATIC, self._start, (size,))[None]
        logits = logits.reshape(logits.shape[0], self.copies, -1)
        outer = logits[..., : p * p].reshape(*logits.shape[:2], p, p)
        inner = logits[..., p * p :].reshape(*logits.shape[:2], q, q)
        temperature = self._temperature()
        if self.normalization == "rows":
            # The largest entries of the logits are those of their softmax, which hard evaluation need not compute.
            hard = argmax(outer), argmax(inner)
            factors = Factors(softmax_rows(outer, temperature), softmax_rows(inner, temperature), *hard)
        else:
            outer, inner = sinkhorn(outer, temperature), sinkhorn(inner, temperature)
            factors = Factors(outer, inner, argmax(outer), argmax(inner))
        self._sow(factors, x.shape[0])
        return factors

    def _start(self, key: Key, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> Float[Array, " s"]:
        if self.start == "random":
            return jax.random.normal(key, shape, dtype)
        diagonals = [self.start_logit * jnp.eye(size, dtype=dtype).ravel() for size in self.sizes]
        return jnp.tile(jnp.concatenate(diagonals), self.copies)

    def _temperature(self) -> float | Float[Array, ""]:
        if self.end_temperature is None:
            return self.temperature
        return self.temperature * (self.end_temperature / self.temperature) ** training_progress(self)

    def _sow(self, factors: Factors, images: int) -> None:
        pair = factors.outer, factors.inner
        regulariser = orthogonality(factors.outer).mean() + orthogonality(factors.inner).mean()
        sow_last(self, PENALTIES, "orthogonality", regulariser)
        if self.is_mutable_collection(DIAGNOSTICS):
            chosen = factors.outer_index, factors.inner_index
            valid = is_permutation(chosen[0]) & is_permutation(chosen[1])
            rows = jnp.concatenate([index.reshape(index.shape[0], -1) for index in chosen], axis=-1)
            p, q = self.sizes
            entropy = (p * row_entropy(factors.outer).mean() + q * row_entropy(factors.inner).mean()) / (p + q)
            sow_last(self, DIAGNOSTICS, "regulariser", regulariser)
            sow_last(self, DIAGNOSTICS, "invalid", jnp.mean(~valid, dtype=jnp.float32))
            sow_last(self, DIAGNOSTICS, "distinct", count_distinct(rows).astype(jnp.float32) / images)
            sow_last(self, DIAGNOSTICS, "entropy", entropy)
        if self.is_mutable_collection(FACTORS):
            for name, factor in zip(("outer", "inner"), pair, strict=True):
                sow_last(self, FACTORS, name, factor)
