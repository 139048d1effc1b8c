"""Linear assignment: the permutation that costs least, exactly, in batches and under every transformation.

Of every matrix C three things are kept: the column of each row, the row of each column, and a price v of each column,
such that a row that has a column has one that is cheapest for it, ``C[i, p[i]] - v[p[i]] = min_j C[i, j] - v[j]``. As
soon as every row has one, this proves that no permutation costs less. It holds at the start, where no row has any, and
two phases keep it. First all rows without a column bid at once for their cheapest, which gives most of them one. Then
each row that is left searches the shortest path of exchanges to a free column, and exchanges along it.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from shuffle_jax.ops.form import by_platform
from shuffle_jax.ops.mesh import each_device, varying_alike
from shuffle_jax.ops.order import last, to_integers, to_numbers
from shuffle_jax.ops.precision import at_least_float32
from shuffle_jax.ops.shape import check_square
from shuffle_jax.typing import Array, Bool, Float, Int, Matrix, Permutation

_ROUNDS = 2
"""Of bids. On CPU one to four take about as long with 12 to 976 columns, and more take longer."""

_NONE = -1
"""In place of a row or a column."""


def minimize(cost: Matrix) -> Permutation:
    """The permutation of least cost, ``argmin_p sum_i C[i, p[i]]``.

    Always a permutation: the argmin of every row where that is one, else any of the cheapest. Integers of at most 2^22
    in float32, 2^51 in float64, and their multiples by a power of two are solved exactly. With other numbers the sum
    may miss the optimum by what rounding does to prices: by less than ``c eps max |C|`` in all tests, with
    ``eps = 2^-23`` in float32. Half precision is computed in float32.

    There are at most c searches of at most c steps, and a step looks at one row: O(c^3), whatever the entries. On CPU
    the matrices of a batch are solved in turn, for small steps cost little there; elsewhere all at once, where each
    goes on to its next search without waiting for the others. No gradient passes.

    Args:
        cost: ``(..., c, c)`` matrices of finite numbers. Under ``jit``, where that cannot be checked, the largest
            finite entry of a matrix is taken for what is not finite.

    Returns:
        ``(..., c)`` int32 permutations.

    Raises:
        ValueError: the matrices are not square, not of a floating-point type, or seen to hold what is not finite.

    >>> minimize(jnp.array([[1.0, 2.0], [1.0, 4.0]])).tolist()
    [1, 0]

    Source: bids as in Bertsekas, The auction algorithm, 1988, here without a least raise; searches as in Jonker and
    Volgenant, A shortest augmenting path algorithm for dense and sparse linear assignment problems, 1987.
    """
    cost = finite(cost)
    flat = cost.reshape(-1, *cost.shape[-2:])
    return _in_any_batch(flat).reshape(cost.shape[:-1])


def finite(cost: Matrix) -> Matrix:
    """Costs as :func:`minimize` takes them: finite, of at least float32, without a gradient.

    Args:
        cost: ``(..., c, c)`` matrices.

    Returns:
        ``(..., c, c)`` matrices; under ``jit`` the largest finite entry, or 0, is in place of what is not finite.

    Raises:
        ValueError: the matrices are not square, not of a floating-point type, or seen to hold what is not finite.

    >>> jax.jit(finite)(jnp.array([[1.0, 2.0], [jnp.inf, jnp.nan]])).tolist()
    [[1.0, 2.0], [2.0, 2.0]]
    """
    check_square(cost)
    if not jnp.issubdtype(cost.dtype, jnp.floating):
        raise ValueError(f"a matrix of {cost.dtype} is not of a floating-point type: convert it to float32 or float64")
    cost = at_least_float32(lax.stop_gradient(jnp.asarray(cost)))
    good = jnp.isfinite(cost)
    if not isinstance(cost, jax.core.Tracer) and not good.all():
        where = tuple(int(axis[0]) for axis in jnp.nonzero(~good))
        kind = "NaN" if jnp.isnan(cost[where]) else "infinite"
        raise ValueError(f"the entry at {where} is {kind}: give finite numbers, a large one for what must not be")
    largest = jnp.where(good, cost, -jnp.inf).max((-2, -1), keepdims=True)
    largest = jnp.where(jnp.isfinite(largest), largest, 0)
    return jnp.where(good, cost, largest)


@jax.custom_batching.custom_vmap
def _in_any_batch(cost: Float[Array, "n c c"]) -> Int[Array, "n c"]:
    """The permutations of a flat batch, in the form for the platform; under vmap those of a larger flat batch."""
    if cost.shape[-1] == 1 or not cost.shape[0]:
        return jnp.zeros_like(cost[..., 0], jnp.int32)
    # Sums of four entries occur: they must not overflow. By a power of two, which rounds nothing.
    cost = cost * jnp.where(jnp.abs(cost).max((-2, -1), keepdims=True) > 1, 1 / 64, 1).astype(cost.dtype)
    cost = jnp.where(cost == 0, 0, cost)  # -0 would come before 0
    return each_device(lambda cost: by_platform(cost, cpu=_in_turn, default=_at_once), (cost,))


@_in_any_batch.def_vmap
def _in_larger_batch(size: int, batched: list[bool], cost: Float[Array, "m n c c"]) -> tuple[Int[Array, "m n c"], bool]:
    flat = cost.reshape(-1, *cost.shape[-2:])
    return _in_any_batch(flat).reshape(cost.shape[:-1]), True


def _in_turn(cost: Float[Array, "n c c"]) -> Int[Array, "n c"]:
    return lax.map(lambda one: _at_once(one[None])[0], cost)


def _at_once(cost: Float[Array, "n c c"]) -> Int[Array, "n c"]:
    return _search(cost, *_bid(cost))


def _bid(cost: Float[Array, "n c c"]) -> tuple[Float[Array, "n c"], Int[Array, "n c"], Int[Array, "n c"]]:
    """Prices, columns of rows and rows of columns after a few rounds of bids.

    In a round each row without a column bids for the cheapest as much as makes the second cheapest equal, and each
    column goes to the highest bid for it, whoever had it. The first round is the argmin of all rows.
    """
    size = cost.shape[-1]
    row, column = (lax.broadcasted_iota(jnp.int32, cost.shape, axis) for axis in (1, 2))
    type_ = cost.dtype

    def round_(_: Int[Array, ""], state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        price, columns, rows = state
        reduced = to_integers(cost - price[:, None, :])
        least = reduced.min(-1)
        cheapest = jnp.where(reduced == least[..., None], column, size).min(-1)
        own = column == cheapest[..., None]
        second = jnp.where(own, last(type_), reduced).min(-1)
        without = columns == _NONE
        bid = jnp.where(without, to_numbers(second, type_) - to_numbers(least, type_), -1)
        bids = jnp.where(own, bid[..., None], -1)
        highest = bids.max(1)
        sold = highest >= 0
        rows = jnp.where(sold, jnp.where(bids == highest[:, None, :], row, size).min(1), rows)
        wins = without & (_take(rows, cheapest) == row[..., 0])
        loses = ~without & _take(sold, columns)
        columns = jnp.where(wins, cheapest, jnp.where(loses, _NONE, columns))
        return jnp.where(sold, price - highest, price), columns, rows

    nobody = jnp.full_like(cost[..., 0], _NONE, jnp.int32)
    return lax.fori_loop(0, _ROUNDS, round_, (jnp.zeros_like(cost[..., 0]), nobody, nobody))


class _State(NamedTuple):
    """A search of every matrix, at whatever step it is.

    Attributes:
        price: of the columns.
        columns: of the rows.
        rows: of the columns.
        distance: of each column from the row that searches, as far as known.
        parent: the row before a column on the shortest path to it.
        settled: to which columns the distance is known.
        finished: how many searches are over.
        starts: the next step is the first of a search.
        row: from which it goes on.
        nearest: distance of the column last settled.
        back: the column on the path at which the exchange has arrived; none while it searches.
    """

    price: Float[Array, "n c"]
    columns: Int[Array, "n c"]
    rows: Int[Array, "n c"]
    distance: Float[Array, "n c"]
    parent: Int[Array, "n c"]
    settled: Bool[Array, "n c"]
    finished: Int[Array, " n"]
    starts: Bool[Array, " n"]
    row: Int[Array, " n"]
    nearest: Float[Array, " n"]
    back: Int[Array, " n"]


def _search(
    cost: Float[Array, "n c c"], price: Float[Array, "n c"], columns: Int[Array, "n c"], rows: Int[Array, "n c"]
) -> Int[Array, "n c"]:
    """The columns of all rows, from those of some.

    The path is Dijkstra's, by reduced costs, which are not negative. A step settles one column for each matrix that
    searches, and exchanges one row and column for each that has found its path.
    """
    size, type_ = cost.shape[-1], cost.dtype
    column = lax.broadcasted_iota(jnp.int32, price.shape, 1)
    order = jnp.argsort(columns != _NONE, axis=-1, stable=True).astype(jnp.int32)  # those without a column first
    sources = varying_alike(order, columns)[0]  # which argsort itself forgets
    searches = (columns == _NONE).sum(-1, dtype=jnp.int32)

    def step(s: _State) -> _State:
        source = _one(sources, s.finished)
        exchanging = s.back != _NONE
        searching = ~exchanging & (s.finished < searches)

        # Exchange: the row before a column gets it, and the path goes on at the column that this row had.
        before = _one(s.parent, s.back)
        rows = jnp.where(column == s.back[:, None], before[:, None], s.rows)
        columns = jnp.where(exchanging[:, None] & (column == before[:, None]), s.back[:, None], s.columns)
        ends = exchanging & (before == source)

        # Search: the columns seen from a row, then the nearest that is not settled, a free one among equals.
        row = jnp.where(s.starts, source, s.row)
        seen = jax.vmap(lambda matrix, i: lax.dynamic_index_in_dim(matrix, i, keepdims=False))(cost, row) - s.price
        seen -= jnp.where(s.starts, 0, _one(seen, _one(s.columns, row)) - s.nearest)[:, None]
        fresh = s.starts[:, None]
        settled = s.settled & ~fresh
        nearer = fresh | (~settled & (seen < s.distance))
        distance = jnp.where(nearer, seen, s.distance)
        parent = jnp.where(nearer, row[:, None], s.parent)
        order = jnp.where(settled, last(type_), to_integers(distance))
        least = order.min(-1)
        place = jnp.where(order == least[:, None], jnp.where(s.rows == _NONE, column, column + size), 2 * size).min(-1)
        arrives = searching & (place < size)
        arrival = jnp.where(place < size, place, place - size)
        nearest = to_numbers(least, type_)
        # The columns on this side of the path's end become dearer, so that the rows which have them do not mind.
        dearer = arrives[:, None] & settled
        price = jnp.where(dearer, s.price + (distance - nearest[:, None]), s.price)
        settled |= column == arrival[:, None]

        def if_searching(new: Array, old: Array) -> Array:
            return jnp.where(searching[:, None] if new.ndim == 2 else searching, new, old)

        back = jnp.where(exchanging & ~ends, _one(s.columns, before), jnp.where(arrives, arrival, _NONE))
        return _State(
            price=price,
            columns=columns,
            rows=rows,
            distance=if_searching(distance, s.distance),
            parent=if_searching(parent, s.parent),
            settled=if_searching(settled, s.settled),
            finished=s.finished + ends.astype(jnp.int32),
            starts=ends | (s.starts & ~searching),
            row=if_searching(_one(s.rows, arrival), s.row),
            nearest=if_searching(nearest, s.nearest),
            back=back,
        )

    zero = jnp.zeros_like(searches)
    start = _State(
        price, columns, rows, price, columns, columns < _NONE, zero, zero == 0, zero, zero.astype(type_), zero + _NONE
    )
    return lax.while_loop(lambda s: jnp.any(s.finished < searches), step, start).columns


def _one(values: Array, index: Int[Array, " n"]) -> Array:
    """One value of each row."""
    return _take(values, index[:, None])[:, 0]


def _take(values: Array, index: Int[Array, "n k"]) -> Array:
    """Values along the last axis; for no index, and any other outside, one of them."""
    return jnp.take_along_axis(values, index, axis=-1, mode="clip")
