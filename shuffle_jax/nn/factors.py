"""The small matrices of a dynamic layer: made from each image by a tiny head, or learned once for all of them."""

from __future__ import annotations

import math
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
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
from shuffle_jax.nn.limits import check_fraction, check_positive
from shuffle_jax.nn.normalization import BatchNorm, absorbed
from shuffle_jax.ops.penalty import mutual_information, orthogonality, row_entropy
from shuffle_jax.ops.permutation import count_distinct, is_permutation, to_matrix
from shuffle_jax.ops.relaxation import sinkhorn, softmax_rows
from shuffle_jax.ops.rounding import argmax
from shuffle_jax.ops.shape import check_batch
from shuffle_jax.typing import Array, Float, Int, Key, PyTree


class Factors(struct.PyTreeNode):
    """A pair of row-stochastic factors in float32, for each image (or all: m = 1) and group (or all: k = 1).

    Attributes:
        outer: A, which mixes the rows of the tables of channels.
        inner: B, which mixes within the rows.
        outer_index: row-argmax of A.
        inner_index: row-argmax of B.
        frozen: they are one pair of permutations for all images, as after :func:`shuffle_jax.deploy.freezing.freeze`.
    """

    outer: Float[Array, "m k p p"]
    inner: Float[Array, "m k q q"]
    outer_index: Int[Array, "m k p"]
    inner_index: Int[Array, "m k q"]
    frozen: bool = struct.field(pytree_node=False, default=False)


class FactorGenerator(nn.Module):
    """Makes the factors: ``sinkhorn((W2 relu(W1 norm(mean(x)) + b1) + b2) / T)``, the mean over positions.

    The head of a static generator is ``b2`` alone, learned once for all images. Normalisation, regulariser and
    diagnostics are computed in float32. What the defaults are for: a norm over the batch takes away what all pooled
    images have in common, which else is all that the head learns from; a low logit and a falling temperature let an
    image change its permutation before the factors sharpen, and the regulariser, which pulls all images alike, waits
    until they differ. How far the training is, its loop says (:data:`shuffle_jax.nn.collections.PROGRESS`); a network
    on its own is at the end. :class:`HardFactorGenerator` is the one that starts, and stays, where it is.

    The regulariser ``|A A^T - I|_F^2 / p + |B B^T - I|_F^2 / q``, a mean over images and groups, times its ramp, is
    sown into "penalties". The loss adds the layers up: for a mean over L of them divide its weight by L. With
    ``information`` so is ``2 - I(A) - I(B)`` times it (:func:`shuffle_jax.ops.penalty.mutual_information`). Into
    "diagnostics" go the ``regulariser``; ``invalid``, the share of factor pairs whose row-argmax is no pair of
    permutations; ``distinct``, the different permutations in the batch over its images; and ``entropy``, the mean of
    :func:`shuffle_jax.ops.penalty.row_entropy`, averaged over rows. Into "factors" go ``outer`` and ``inner``.

    With ``kept`` layers mix with ``k I + (1 - k) A`` and ``k I + (1 - k) B``, for a share k that falls linearly from
    kept to 0. Factors that are nearly uniform pass on little more than the mean of their channels, and heads that move
    without need disturb what lies behind them: the identity passes on all, and slows the heads. Where nothing calls for
    permutations that differ that costs less accuracy; where images need them the layers behind settle with what the
    identity hands them, and the heads do not find out. Penalties
    and diagnostics are those of A and B, hard permutations those of what is mixed with.

    Where the collection "permutations" holds index vectors ``outer`` and ``inner`` for this module, there is no head:
    they are the factors.

    Attributes:
        sizes: p and q.
        copies: pairs for each image: 1 shared by all groups, or one for each group.
        dynamic: False for factors that are learned and not made from the image.
        hidden: width of the hidden layer, at least 1; ``max(least_hidden, c / 16)`` by default (None).
        least_hidden: its least width by default. With 4 units a head tells few kinds of images apart.
        pooled_norm: batch norm of the mean over positions. Evaluation needs its running statistics;
            :func:`shuffle_jax.deploy.folding.fold` absorbs it into W1 and b1.
        start: "identity": W2 is 0 and b2 is ``start_logit`` on the diagonals, so that every row-argmax is the identity
            whatever the image; "random": as dense layers start.
        start_logit: above 0; divided by T it is 1 by default, a softmax of 0.48 for p = 4, of 0.09 for p = 29.
        normalization: "rows": the softmax of every row; "sinkhorn": of rows and columns in turn, in whose limit no two
            rows can choose one column. The abstract names the softmax; the other is this project's.
        temperature: T of the softmax, above 0. The head learns the faster the smaller T is: its gradient is ``1 / T``
            times that of the softmax's logits, and so is what a step of it does.
        end_temperature: if given, T falls (or rises) geometrically to this over the training; T itself is a constant.
        regularize_from: share of the training before which the regulariser is 0.
        regularize_fully: share at which its ramp reaches 1; equal to the former for a step.
        information: weight of the mutual information of images and factors beside the regulariser, at least 0. It has
            no ramp of its own: that of the penalties' common weight is all that delays it.
        kept: share of the identity at the start of the training, from 0 up to but not 1.
        kept_until: share of the training at which none is left, above 0.

    Source: Gong, Yin, Li, Guo and Xu, Dynamic Shuffle, 2023. Its abstract names softmax, orthogonal regularisation and
    small shared matrices; everything else here is this project's reconstruction.
    """

    sizes: tuple[int, int]
    copies: int = 1
    dynamic: bool = True
    hidden: int | None = None
    least_hidden: int = 32
    pooled_norm: bool = True
    start: Literal["identity", "random"] = "identity"
    start_logit: float = 0.5
    normalization: Literal["rows", "sinkhorn"] = "sinkhorn"
    temperature: float = 0.5
    end_temperature: float | None = 0.05
    regularize_from: float = 0.2
    regularize_fully: float = 0.7
    information: float = 0.0
    kept: float = 0.0
    kept_until: float = 0.8

    @nn.compact
    def __call__(self, x: Float[Array, "n *space c"], train: bool = False) -> Factors:
        """Maps ``(n, ..., c)`` to factors for n images, or for all of them if the generator is static.

        Raises:
            ValueError: no images, no hidden units, a temperature or start_logit that is not positive, a ramp that is
                not within 0 and 1, a negative weight, or a share of the identity that is out of its range.
        """
        if self.has_variable(PERMUTATIONS, "outer"):
            outer_index: Array = self.get_variable(PERMUTATIONS, "outer")[None]
            inner_index: Array = self.get_variable(PERMUTATIONS, "inner")[None]
            return Factors(to_matrix(outer_index), to_matrix(inner_index), outer_index, inner_index, frozen=True)
        check_batch(x)
        check_positive(hidden=self.hidden, least_hidden=self.least_hidden, start_logit=self.start_logit)
        check_positive(temperature=self.temperature, end_temperature=self.end_temperature)
        check_fraction(regularize_from=self.regularize_from, regularize_fully=self.regularize_fully)
        if self.regularize_from > self.regularize_fully:
            raise ValueError(
                f"regularize_from must be at most regularize_fully, got {self.regularize_from} and "
                f"{self.regularize_fully}: lower the former or raise the latter"
            )
        if not 0 <= self.information < math.inf:
            raise ValueError(f"information must be at least 0 and finite, got {self.information}: 0 leaves it out")
        check_fraction(kept_until=self.kept_until)
        check_positive(kept_until=self.kept_until)
        if not 0 <= self.kept < 1:
            raise ValueError(f"kept must be at least 0 and below 1, got {self.kept}: 0 leaves the identity out")
        p, q = self.sizes
        size = self.copies * (p * p + q * q)
        if self.dynamic:
            pooled = x.mean(tuple(range(1, x.ndim - 1)), dtype=jnp.float32)
            if self.pooled_norm:
                pooled = BatchNorm(name="norm")(pooled[:, None, None], train)[:, 0, 0]
            hidden = self.hidden if self.hidden is not None else max(self.least_hidden, x.shape[-1] // 16)
            y = nn.relu(nn.Dense(hidden, name="hidden")(pooled))
            identity = self.start == "identity"
            kernel = nn.initializers.zeros_init() if identity else nn.initializers.lecun_normal()
            logits = nn.Dense(size, kernel_init=kernel, bias_init=self._start, name="logits")(y)
        else:
            logits = self.param(STATIC, self._start, (size,))[None]
        logits = logits.reshape(logits.shape[0], self.copies, -1)
        outer = logits[..., : p * p].reshape(*logits.shape[:2], p, p)
        inner = logits[..., p * p :].reshape(*logits.shape[:2], q, q)
        moves = self.end_temperature is not None or self.regularize_fully > 0 or self.kept > 0
        progress = training_progress(self) if moves else jnp.ones((), jnp.float32)
        temperature = self._temperature(progress)
        if self.normalization == "rows":
            # The largest entries of the logits are those of their softmax, which hard evaluation need not compute.
            hard = argmax(outer), argmax(inner)
            factors = Factors(softmax_rows(outer, temperature), softmax_rows(inner, temperature), *hard)
        else:
            outer, inner = sinkhorn(outer, temperature), sinkhorn(inner, temperature)
            factors = Factors(outer, inner, argmax(outer), argmax(inner))
        self._sow(factors, x.shape[0], self._ramp(progress))
        return self._with_identity(factors, progress) if self.kept else factors

    @staticmethod
    def absorb_norms(variables: dict[str, PyTree]) -> dict[str, PyTree]:
        """The variables of the same function in evaluation without the norm: ``W1 <- diag(f) W1``, ``b1 <- b1 + s W1``.

        Args:
            variables: its own collections; the norm, which maps a mean m to ``f m + s``, has its statistics in them.

        Returns:
            New collections; what changes is a float64 NumPy array.
        """
        own = dict(variables["params"])
        scale, shift = absorbed(own.pop("norm"), variables["batch_stats"]["norm"])
        kernel = np.asarray(own["hidden"]["kernel"], np.float64)
        hidden = {"kernel": scale[:, None] * kernel, "bias": own["hidden"]["bias"] + shift @ kernel}
        return {**variables, "params": {**own, "hidden": hidden}, "batch_stats": {}}

    def _start(self, key: Key, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> Float[Array, " s"]:
        if self.start == "random":
            return jax.random.normal(key, shape, dtype)
        diagonals = [self.start_logit * jnp.eye(size, dtype=dtype).ravel() for size in self.sizes]
        return jnp.tile(jnp.concatenate(diagonals), self.copies)

    def _temperature(self, progress: Float[Array, ""]) -> float | Float[Array, ""]:
        if self.end_temperature is None:
            return self.temperature
        return self.temperature * (self.end_temperature / self.temperature) ** progress

    def _with_identity(self, factors: Factors, progress: Float[Array, ""]) -> Factors:
        """What the layer mixes with."""
        share = self.kept * jnp.clip(1 - progress / self.kept_until, 0, 1)
        outer, inner = (
            share * jnp.eye(factor.shape[-1])[None, None] + (1 - share) * factor
            for factor in (factors.outer, factors.inner)
        )
        return Factors(outer, inner, argmax(outer), argmax(inner))

    def _ramp(self, progress: Float[Array, ""]) -> Float[Array, ""]:
        """What the regulariser is multiplied by."""
        if self.regularize_from == self.regularize_fully:
            return (progress >= self.regularize_from).astype(jnp.float32)
        return jnp.clip((progress - self.regularize_from) / (self.regularize_fully - self.regularize_from), 0, 1)

    def _sow(self, factors: Factors, images: int, ramp: Float[Array, ""]) -> None:
        pair = factors.outer, factors.inner
        regulariser = orthogonality(factors.outer).mean() + orthogonality(factors.inner).mean()
        sow_last(self, PENALTIES, "orthogonality", ramp * regulariser)
        if self.information:
            known = [mutual_information(factor).mean() for factor in pair]
            sow_last(self, PENALTIES, "information", self.information * (2 - sum(known)))
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


class HardFactorGenerator(FactorGenerator):
    """The same with a start so hard that, in every run on record, each image keeps the permutation of the start.

    The softmax of rows at the logit 4, without a norm, at one temperature and regularised from the start, by a hidden
    layer of ``max(4, c / 16)``. With the identity start a layer that binarizes it from the start is the fixed shuffle,
    in training as well.
    """

    least_hidden: int = 4
    pooled_norm: bool = False
    start_logit: float = 4.0
    normalization: Literal["rows", "sinkhorn"] = "rows"
    temperature: float = 1.0
    end_temperature: float | None = None
    regularize_from: float = 0.0
    regularize_fully: float = 0.0
