"""Local search over permutations for quadratic assignment: exchange two entries at a time, many permutations at once.

What all exchanges of a permutation would change is kept in a table. An exchange changes most of the table by products
of two differences, and needs products with A and B only for the two rows that took part. A step costs O(c^2), and a
step of a whole batch is a few fused passes and four matrix products.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from shuffle_jax.ops import quadratic_assignment as qap
from shuffle_jax.ops.mesh import each_device
from shuffle_jax.ops.permutation import identity, inner, invert, random_inner
from shuffle_jax.ops.quadratic_assignment import checked
from shuffle_jax.typing import Array, Bool, Float, Int, Key, Permutation

T = TypeVar("T")


class Table(NamedTuple):
    """A permutation with what all exchanges of two of its entries would change.

    Attributes:
        permutation: p.
        inverse: q with ``q[p[i]] = i``.
        value: the objective.
        deltas: :func:`~shuffle_jax.ops.quadratic_assignment.exchange_deltas`.
        diagonal: of G there.
    """

    permutation: Int[Array, " c"]
    inverse: Int[Array, " c"]
    value: Float[Array, ""]
    deltas: Float[Array, "c c"]
    diagonal: Float[Array, " c"]


class Tabu(NamedTuple):
    """The state of :func:`tabu_search`, with leading axes for several searches.

    Attributes:
        table: the permutation of this moment.
        barred_until: ``[i, k]`` the step until which position i may not take the value that is now at position k.
        step: steps taken.
        best: the best permutation seen.
        best_value: its objective.
    """

    table: Table
    barred_until: Float[Array, "*batch c c"]
    step: Float[Array, "*batch"]
    best: Permutation
    best_value: Float[Array, "*batch"]


def two_exchange(
    permutation: Permutation, pair: qap.Pair, max_steps: int = 10_000, size: int | Int[Array, ""] | None = None
) -> Permutation:
    """Descends by the best exchange of two entries until none helps: a local optimum of quadratic assignment.

    ``p <- p with p[u] and p[v] exchanged, (u, v) = argmin_rs value(p_rs) - value(p)``, while that is negative beyond
    rounding. O(c^3) for the start and O(c^2) for each step. Under a batch all wait for the last.

    Args:
        permutation: ``(..., c)`` index vectors.
        pair: A and B, ``(c, c)`` finite numbers in float32 at least, such as from
            :func:`~shuffle_jax.ops.quadratic_assignment.as_pair`.
        max_steps: where to stop in any case.
        size: how many of the first entries may be exchanged, a number that may be traced; all by default.

    Returns:
        ``(..., c)`` int32 permutations, none of a larger value.

    Raises:
        ValueError: A and B are not square matrices of the size of p.

    >>> a = jnp.array([[0.0, 1.0, 0.0], [1.0, 0.0, 5.0], [0.0, 5.0, 0.0]])
    >>> b = jnp.array([[0.0, 1.0, 4.0], [1.0, 0.0, 2.0], [4.0, 2.0, 0.0]])
    >>> found = two_exchange(jnp.array([0, 1, 2]), (a, b))
    >>> found.tolist(), float(qap.value(found, (a, b)))
    ([2, 1, 0], 14.0)
    """

    def one(permutation: Int[Array, " c"], pair: qap.Pair) -> Int[Array, " c"]:
        # An exchange that gains less than rounding may hide would be undone and done again.
        least = 8 * jnp.finfo(pair[0].dtype).eps * jnp.abs(pair[0]).max() * jnp.abs(pair[1]).max() * len(permutation)

        def costs(table: Table) -> Float[Array, "c c"]:
            return jnp.where(inner(len(permutation), size), table.deltas, jnp.inf)

        def gains(carry: tuple[Table, Int[Array, ""]]) -> Bool[Array, ""]:
            table, step = carry
            return (costs(table).min() < -least) & (step < max_steps)

        def step(carry: tuple[Table, Int[Array, ""]]) -> tuple[Table, Int[Array, ""]]:
            table, step = carry
            u = jnp.argmin(costs(table).min(1))
            v = jnp.argmin(costs(table)[u])
            return exchange(table, u.astype(jnp.int32), v.astype(jnp.int32), pair), step + 1

        start = tabulate(permutation, pair), jnp.zeros((), jnp.int32)
        return jax.lax.while_loop(gains, step, start)[0].permutation

    return _over_leading_axes(one, permutation.ndim - 1, 1)(_int32(permutation), checked(pair, permutation.shape[-1]))


def tabu_search(
    permutation: Permutation, pair: qap.Pair, key: Key, steps: int, tenure: tuple[float, float] = (0.9, 1.1)
) -> tuple[Permutation, Float[Array, "*batch"]]:
    """Takes the best exchange that is not barred, better or worse, and remembers the best permutation on the way.

    An exchange that takes two positions back to values both had within the last steps is barred, unless it leads to
    less than the best value so far. For how many steps is drawn anew each time, from ``tenure`` times c. O(c^3) for the
    start and O(c^2) for each step. To go on with a search use :func:`tabu_start` and :func:`tabu_steps`.

    Args:
        permutation: ``(..., c)`` index vectors; every one starts a search of its own.
        pair: A and B, ``(c, c)`` finite numbers in float32 at least.
        key: random key.
        steps: how many exchanges.
        tenure: least and most of what is drawn, in units of c.

    Returns:
        ``(..., c)`` int32 permutations, and their values ``(...)``.

    Raises:
        ValueError: A and B are not square matrices of the size of p, or steps is negative.

    >>> a = jnp.array([[0.0, 1.0, 0.0], [1.0, 0.0, 5.0], [0.0, 5.0, 0.0]])
    >>> b = jnp.array([[0.0, 1.0, 4.0], [1.0, 0.0, 2.0], [4.0, 2.0, 0.0]])
    >>> found, value = tabu_search(jnp.array([0, 1, 2]), (a, b), jax.random.key(0), steps=20)
    >>> found.tolist(), float(value)
    ([2, 1, 0], 14.0)

    Source: Taillard, Robust taboo search for the quadratic assignment problem, 1991; without its second aspiration,
    which forces exchanges that were not made for long.
    """
    if steps < 0:
        raise ValueError(f"steps is {steps}: give 0 or more")
    end = tabu_steps(tabu_start(permutation, pair), key, pair, steps, tenure)
    return end.best, end.best_value


def tabulate(permutation: Int[Array, " c"], pair: qap.Pair) -> Table:
    """The table of a permutation, computed from nothing: O(c^3)."""
    a, b = pair
    c = qap.moved(b, permutation)
    diagonal = (a * c).sum(0) + (a * c).sum(1)
    deltas = qap.exchange_deltas(permutation, pair)
    return Table(permutation, invert(permutation), (a * c).sum(), deltas, diagonal)


def exchange(table: Table, u: Int[Array, ""], v: Int[Array, ""], pair: qap.Pair) -> Table:
    """Exchanges ``p[u]`` and ``p[v]`` and brings the table up to date, O(c^2); u and v differ, or nothing changes.

    With ``x_r = A_ur - A_vr`` and ``y_s = C_vs - C_us`` the entries (r, s) without u and v change by
    ``(x_r - x_s)(y_s - y_r)``, and by as much of the transposed matrices.

    Source: Taillard, 1991, for symmetric matrices.
    """
    a, b = pair
    p, q = table.permutation, table.inverse
    index = jnp.arange(len(p), dtype=p.dtype)
    both = jnp.stack([u, v])
    at_u, at_v = index == u, index == v
    pu, pv = p[u], p[v]
    a_rows, a_columns = a[both], a.T[both]
    c_rows, c_columns = b[p[both]][:, p], b.T[p[both]][:, p]
    x, y = a_rows[0] - a_rows[1], c_rows[1] - c_rows[0]
    xt, yt = a_columns[0] - a_columns[1], c_columns[1] - c_columns[0]
    deltas = table.deltas - _differences(x) * _differences(y) - _differences(xt) * _differences(yt)
    diagonal = table.diagonal + x * y + xt * yt

    p = jnp.where(at_u, pv, jnp.where(at_v, pu, p))
    q = jnp.where(index == pu, v, jnp.where(index == pv, u, q))
    c_rows, c_columns = b[p[both]][:, p], b.T[p[both]][:, p]
    # sum_k A_ku C_ks is a product with B in the order of B: then all searches of a batch share one matrix.
    with_b = qap.product(a_columns[:, q], b) + qap.product(a_rows[:, q], b.T)
    g = with_b[:, p] + qap.product(c_columns, a) + qap.product(c_rows, a.T)
    ends = (a_columns * c_columns + a_rows * c_rows).sum(1)
    diagonal = jnp.where(at_u, ends[0], jnp.where(at_v, ends[1], diagonal))
    own, other = jnp.diagonal(a), jnp.diagonal(b)[p]
    of_a = a_rows, a_columns, own[both][:, None], own[None, :]
    of_c = c_rows, c_columns, other[both][:, None], other[None, :]
    new_u, new_v = g - ends[:, None] - diagonal[None, :] - qap.pair_terms(of_a, of_c)
    deltas = jnp.where(at_u[:, None], new_u[None, :], jnp.where(at_v[:, None], new_v[None, :], deltas))
    deltas = jnp.where(at_u[None, :], new_u[:, None], jnp.where(at_v[None, :], new_v[:, None], deltas))
    return Table(p, q, table.value + table.deltas[u, v], deltas, diagonal)


def _differences(x: Float[Array, " c"]) -> Float[Array, "c c"]:
    return x[:, None] - x[None, :]


def tabu_start(permutation: Permutation, pair: qap.Pair) -> Tabu:
    """The state of :func:`tabu_search` before its first step; a fresh table, nothing barred."""
    checked_pair = checked(pair, permutation.shape[-1])
    table = _over_leading_axes(tabulate, permutation.ndim - 1, 1)(_int32(permutation), checked_pair)
    return Tabu(table, jnp.zeros_like(table.deltas), jnp.zeros_like(table.value), table.permutation, table.value)


def tabu_steps(
    state: Tabu,
    key: Key,
    pair: qap.Pair,
    steps: int,
    tenure: tuple[float, float] = (0.9, 1.1),
    size: int | Int[Array, ""] | None = None,
) -> Tabu:
    """The state of :func:`tabu_search` some steps later; every search of a batch draws its own tenures.

    With a ``size``, which may be traced, only so many of the first entries are exchanged, as if there were no others:
    problems of several sizes, filled up to one with zeros, then share a program.

    The table is carried on by differences. In floating point it drifts unless all its entries are integers below 2^24:
    make a fresh one by :func:`tabulate` every few hundred steps.
    """
    channels, axes = state.best.shape[-1], state.best.ndim - 1
    if channels < 2:
        return state._replace(step=state.step + steps)
    shape = (*state.step.shape, steps, 2)
    scale = channels if size is None else jnp.asarray(size, state.step.dtype)
    draws = scale * jax.random.uniform(key, shape, state.step.dtype, *tenure)
    outer = ~inner(channels, size)

    def one(state: Tabu, draws: Float[Array, "steps 2"], shared: tuple[qap.Pair, Bool[Array, "c c"]]) -> Tabu:
        return jax.lax.scan(lambda state, draw: (_tabu_step(state, draw, *shared), None), state, draws)[0]

    return _over_leading_axes(one, axes, 2)(state, draws, (checked(pair, channels), outer))


def _tabu_step(state: Tabu, tenure: Float[Array, " 2"], pair: qap.Pair, outer: Bool[Array, "c c"]) -> Tabu:
    table, barred = state.table, state.barred_until
    index = jnp.arange(len(state.best), dtype=state.best.dtype)
    forbidden = jnp.minimum(barred, barred.T) > state.step
    better = table.value + table.deltas < state.best_value
    cost = jnp.where((forbidden & ~better) | (index[:, None] >= index[None, :]) | outer, jnp.inf, table.deltas)
    u = jnp.argmin(cost.min(1)).astype(index.dtype)
    v = jnp.argmin(cost[u]).astype(index.dtype)
    moved = exchange(table, u, v, pair)

    at_u, at_v = index == u, index == v
    at_uv, at_vu = at_u[:, None] & at_v[None, :], at_v[:, None] & at_u[None, :]
    barred = jnp.where(at_u[None, :], barred[:, v, None], jnp.where(at_v[None, :], barred[:, u, None], barred))
    barred = jnp.where(at_uv, state.step + tenure[0], jnp.where(at_vu, state.step + tenure[1], barred))
    improved = moved.value < state.best_value
    best = jnp.where(improved, moved.permutation, state.best)
    return Tabu(moved, barred, state.step + 1, best, jnp.where(improved, moved.value, state.best_value))


def kick(key: Key, index: Int[Array, " c"], size: int | Int[Array, ""] | None = None) -> Int[Array, " c"]:
    """Moves some entries of a permutation, between 3 and half of them, around a random cycle.

    With a ``size``, which may be traced, some of the first so many.

    >>> kicked = kick(jax.random.key(0), jnp.arange(8))
    >>> sorted(kicked.tolist()), bool((kicked != jnp.arange(8)).sum() >= 3)
    ([0, 1, 2, 3, 4, 5, 6, 7], True)
    """
    channels = len(index)
    free = jnp.int32(channels if size is None else size)
    order_key, length_key = jax.random.split(key)
    order = random_inner(order_key, channels, size)
    length = jnp.minimum(jax.random.randint(length_key, (), 3, jnp.maximum(4, free // 2 + 1)), free)
    at = identity(channels)
    following = jnp.where(at < length - 1, at + 1, jnp.where(at == length - 1, 0, at))
    return index.at[order].set(index[order[following]])


def _over_leading_axes(function: Callable[..., T], axes: int, mapped: int) -> Callable[..., T]:
    """The function of one permutation as one of many; the last argument, the pair, is shared."""
    for _ in range(axes):
        function = jax.vmap(function, in_axes=(*(0,) * mapped, None))
    one = function
    return (lambda *arguments: each_device(one, arguments[:mapped], arguments[mapped:])) if axes else function


def _int32(permutation: Permutation) -> Permutation:
    return permutation.astype(jnp.int32)
