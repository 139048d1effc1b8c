"""Minimises a function over relaxed permutations by gradient descent, from many random starts at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from shuffle_jax.constraint import keep_bistochastic
from shuffle_jax.ops import penalty, relaxation
from shuffle_jax.ops.precision import at_least_float32
from shuffle_jax.typing import Array, Float, Int, Key, PyTree

RelaxationKind = Literal["tangent", "clamp", "balance", "softmax", "sinkhorn", "gumbel", "soft_sort", "orthogonal"]
PenaltyKind = Literal["none", "l1_minus_l2", "orthogonality", "entropy"]

Objective = Callable[[Float[Array, "c c"], PyTree], Float[Array, ""]]
"""A function of one relaxed matrix and the data of the problem, such as its two graphs."""

PASSES = 20
"""Of Sinkhorn's iteration."""


@dataclass(frozen=True)
class DescentConfig:
    """How a function is minimised over relaxed permutations."""

    relaxation: RelaxationKind = "tangent"
    """What stands for a permutation. "clamp" moves the matrix itself and normalises it after every step by one
    clamp-column-row pass, as AutoShuffleNet does; "tangent", this project's, first takes from the step what changes
    sums of rows and columns, so that less of it is undone; "balance" normalises until the columns sum to 1 as well. The
    others are functions of free parameters."""

    penalty: PenaltyKind = "l1_minus_l2"
    """What draws the matrix to a permutation, "entropy" that of rows and columns. All are brought to the range of
    "l1_minus_l2"."""

    weight: float = 0.1
    """Of the penalty at the last step, times the scale of the problem. It grows linearly from 0: a weight that is large
    early freezes the start."""

    steps: int = 3000
    """Steps of each descent."""

    learning_rate: float = 0.125
    """Of "tangent", "clamp" and "balance", over the scale of the problem."""

    adam_learning_rate: float = 0.05
    """Of the free parameters of the other relaxations, by Adam, which knows no scale."""

    temperature: float = 1.0
    """Of "softmax", "sinkhorn", "gumbel", "soft_sort" and "orthogonal" at the first step."""

    final_temperature: float = 0.1
    """At the last step; in between it falls geometrically."""

    records: int = 60
    """How many times the objective and the penalty are recorded, the start and the end included."""

    def __post_init__(self) -> None:
        """Says what cannot be run.

        Raises:
            ValueError: a number is out of its range.
        """
        for name in ("learning_rate", "adam_learning_rate", "temperature", "final_temperature"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} is {getattr(self, name)}: give a finite number above 0")
        if not 0 <= self.weight < float("inf"):
            raise ValueError(f"weight is {self.weight}: give 0 or more, or penalty 'none'")
        if self.steps < 1:
            raise ValueError(f"steps is {self.steps}: give 1 or more")
        if not 2 <= self.records <= self.steps + 1:
            raise ValueError(
                f"records is {self.records}: give 2, the start and the end, to steps + 1 = {self.steps + 1}"
            )


class Descent(NamedTuple):
    """What :func:`descend` reached, for each start.

    Attributes:
        matrix: the relaxed matrices at the end, at the final temperature and without noise.
        objective: the objective at :func:`recorded_steps`, without the penalty.
        penalty: :func:`~shuffle_jax.ops.penalty.normalized_l1_minus_l2` there, whichever penalty was minimised.
        residual: largest ``|sum - 1|`` over rows and columns of the matrix; a penalty near 0 means nothing without it.
    """

    matrix: Float[Array, "starts c c"]
    objective: Float[Array, "starts records"]
    penalty: Float[Array, "starts records"]
    residual: Float[Array, " starts"]


class _Numbers(NamedTuple):
    """What may change without another compilation."""

    rate: Float[Array, ""]
    weight: Float[Array, ""]
    temperature: Float[Array, ""]
    final_temperature: Float[Array, ""]


def descend(
    objective: Objective,
    data: PyTree,
    size: int,
    key: Key,
    starts: int,
    config: DescentConfig = DescentConfig(),
    scale: float | Float[Array, ""] = 1.0,
) -> Descent:
    """Minimises ``f(M) + w(k) P(M)`` over relaxed permutations M, from random starts, k the step.

    "tangent", "clamp" and "balance" descend by ``M <- N(M - r/s (f'(M) + w(k) P'(M)))``, r the learning rate, s the
    scale and N the normalisation, "tangent" by the tangent part of the slope alone; the other relaxations are functions
    ``M(L)`` whose parameters L Adam moves. The weight grows linearly, ``w(k) = weight s k / steps``. All starts run at
    once in one compiled loop. It is compiled once for an objective, a relaxation, a penalty and the shapes; numbers,
    steps among them, and data may change.

    Round the matrices by :func:`shuffle_jax.ops.rounding.assignment`, whose answer is always a permutation.

    Args:
        objective: ``f(matrix, data)``, a differentiable number for one ``(c, c)`` matrix. It must be hashable, and the
            same object in every call for the compilation to be kept: a function of a module, no new lambda.
        data: arrays handed to the objective; half precision is widened to float32. With an array of float64 among them
            everything is computed in it.
        size: c, at least 1.
        key: random key of the starts and of Gumbel noise.
        starts: how many, at least 1.
        config: relaxation, penalty and rates.
        scale: s, about the largest curvature of f over 8, such as ``|A|_2^2`` for ``|A M - M B|_F^2``; 0, as of a
            problem without edges, counts as 1.

    Returns:
        A :class:`Descent`.

    Raises:
        ValueError: size or starts is below 1, the scale is negative or not finite, or the objective gives no single
            number.

    >>> def distance(matrix, target):
    ...     return jnp.square(matrix - target).sum()
    >>> config = DescentConfig(steps=200, records=2)
    >>> found = descend(distance, jnp.eye(4)[::-1], 4, jax.random.key(0), starts=2, config=config)
    >>> found.matrix.argmax(-1).tolist(), bool((found.penalty[:, 1] < 0.01).all())
    ([[3, 2, 1, 0], [3, 2, 1, 0]], True)

    Source: the penalty, its use in graph matching and the normalisation: Lyu, Zhang, Qi and Xin, AutoShuffleNet, 2020.
    The tangent step, the ramp and the scale are this project's.
    """
    for name, value in (("size", size), ("starts", starts)):
        if value < 1:
            raise ValueError(f"{name} is {value}: give 1 or more")
    if isinstance(scale, float | int) and not 0 <= scale < float(jnp.finfo(jnp.float32).max):
        raise ValueError(f"scale is {scale}: give a finite number, 0 or more; divide the problem by its largest entry")
    data = jax.tree.map(_widen, data)
    double = any(leaf.dtype == jnp.float64 for leaf in jax.tree.leaves(data))
    dtype = jnp.float64 if double else jnp.float32
    value = jax.eval_shape(objective, jax.ShapeDtypeStruct((size, size), dtype), data)
    if getattr(value, "shape", None) != () or not jnp.issubdtype(value.dtype, jnp.floating):
        raise ValueError(f"the objective of a ({size}, {size}) matrix returns {value}: return one real number")
    scale = jnp.asarray(scale, dtype)
    scale = jnp.where(scale > 0, scale, 1)
    direct = config.relaxation in ("tangent", "clamp", "balance")
    numbers = _Numbers(
        rate=config.learning_rate / scale if direct else jnp.asarray(config.adam_learning_rate, dtype),
        weight=config.weight * scale,
        temperature=jnp.asarray(config.temperature, dtype),
        final_temperature=jnp.asarray(config.final_temperature, dtype),
    )
    bounds = jnp.asarray(recorded_steps(config), jnp.int32)
    keys = jax.random.split(key, starts)
    return _descents(objective, data, size, keys, config.relaxation, config.penalty, bounds, numbers)


def recorded_steps(config: DescentConfig) -> Int[np.ndarray, " records"]:
    """After how many steps :func:`descend` records: evenly from 0, the start, to the last.

    >>> recorded_steps(DescentConfig(steps=10, records=3)).tolist()
    [0, 5, 10]
    """
    return np.linspace(0, config.steps, config.records).round().astype(np.int32)


@partial(jax.jit, static_argnames=("objective", "size", "kind", "penalty_kind"))
def _descents(
    objective: Objective,
    data: PyTree,
    size: int,
    keys: Key,
    kind: RelaxationKind,
    penalty_kind: PenaltyKind,
    bounds: Int[Array, " records"],
    numbers: _Numbers,
) -> Descent:
    """All starts: ``keys`` has one key for each."""
    optimizer, dtype = _optimizer(kind, numbers.rate), numbers.weight.dtype

    def at(share: Float[Array, ""]) -> Float[Array, ""]:
        return numbers.temperature * (numbers.final_temperature / numbers.temperature) ** share

    def one(key: Key) -> Descent:
        start_key, noise_key = jax.random.split(key)

        def loss(parameters: Float[Array, "..."], step: Int[Array, ""]) -> Float[Array, ""]:
            share = step.astype(dtype) / bounds[-1].astype(dtype)
            matrix = _relax(kind, parameters, at(share), jax.random.fold_in(noise_key, step))
            if penalty_kind == "none":
                return objective(matrix, data)
            return objective(matrix, data) + numbers.weight * share * _penalize(penalty_kind, matrix)

        def advance(step: Int[Array, ""], carry: tuple[Any, Any]) -> tuple[Any, Any]:
            parameters, state = carry
            slope = jax.grad(loss)(parameters, step)
            # Optax's Adam takes powers of a float to an integer, which strict promotion would refuse.
            with jax.numpy_dtype_promotion("standard"):
                updates, state = optimizer.update(slope, state, parameters)
            return optax.apply_updates(parameters, updates), state

        def record(carry: tuple[Any, Any, Any], span: tuple[Any, Any]) -> tuple[tuple[Any, Any, Any], tuple[Any, Any]]:
            parameters, state = jax.lax.fori_loop(*span, advance, carry[:2])
            matrix = _relax(kind, parameters, at(span[1].astype(dtype) / bounds[-1].astype(dtype)), None)
            records = objective(matrix, data), penalty.normalized_l1_minus_l2(matrix)
            return (parameters, state, matrix), records

        parameters = _start(kind, start_key, size).astype(dtype)
        spans = jnp.concatenate([bounds[:1], bounds[:-1]]), bounds
        start = parameters, optimizer.init(parameters), jnp.zeros((size, size), dtype)
        (_, _, matrix), (values, penalties) = jax.lax.scan(record, start, spans)
        sums = jnp.concatenate([matrix.sum(-1), matrix.sum(-2)])
        return Descent(matrix, values, penalties, jnp.abs(sums - 1).max())

    return jax.vmap(one)(keys)


def _optimizer(kind: RelaxationKind, rate: Float[Array, ""]) -> optax.GradientTransformation:
    match kind:
        case "tangent":
            return optax.chain(optax.sgd(rate), keep_bistochastic(along=True))
        case "clamp":
            return optax.chain(optax.sgd(rate), keep_bistochastic())
        case "balance":
            return optax.chain(optax.sgd(rate), keep_bistochastic(relaxation.balance))
    return optax.adam(rate)


def _start(kind: RelaxationKind, key: Key, size: int) -> Float[Array, "..."]:
    """Random parameters; the matrices they stand for are spread around ``J / c`` and not at it."""
    match kind:
        case "tangent" | "clamp" | "balance":
            return relaxation.random_bistochastic(key, size)
        case "soft_sort":
            return jax.random.normal(key, (size,))
        case "orthogonal":
            return 0.7 / size**0.5 * jax.random.normal(key, (size, size))
    return jax.random.normal(key, (size, size))


def _relax(
    kind: RelaxationKind, parameters: Float[Array, "..."], temperature: Float[Array, ""], noise: Key | None
) -> Float[Array, "c c"]:
    """The matrix that parameters stand for; Gumbel noise is left out where there is no key for it."""
    match kind:
        case "softmax":
            return relaxation.softmax_rows(parameters, temperature)
        case "gumbel" if noise is not None:
            return relaxation.gumbel_sinkhorn(parameters, temperature, PASSES, key=noise)
        case "sinkhorn" | "gumbel":
            return relaxation.sinkhorn(parameters, temperature, PASSES)
        case "soft_sort":
            return relaxation.soft_sort(parameters, temperature)
        case "orthogonal":
            return relaxation.orthostochastic(parameters, temperature)
    return parameters


def _penalize(kind: PenaltyKind, matrix: Float[Array, "c c"]) -> Float[Array, ""]:
    """A penalty brought to the range of l1 - l2, so that one weight means about the same for all."""
    match kind:
        case "orthogonality":
            share = penalty.normalized_orthogonality(matrix)
        case "entropy":
            share = penalty.row_entropy(matrix)
        case _:
            return penalty.l1_minus_l2(matrix)
    return penalty.max_l1_minus_l2(matrix.shape[-1]) * share


def _widen(leaf: Any) -> Array:
    """An array of JAX's; half precision as float32."""
    leaf = jnp.asarray(leaf)
    return at_least_float32(leaf) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf
