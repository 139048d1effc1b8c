"""How :mod:`shuffle_jax.ops.kronecker` computes: the form of each platform, and the gradients.

Factors have all their axes here: ``(m, k, p', p)`` with m images or 1 and k groups or 1. Images have one axis of
positions, and their channels are tables: ``(n, s, g, p, q)``, or ``(n, s, p', q', g)`` after the cross-group shuffle.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding

from shuffle_jax.ops import mixing, rounding
from shuffle_jax.ops.form import by_platform
from shuffle_jax.ops.mesh import whole_result
from shuffle_jax.ops.permutation import identity, invert, is_permutation, kron, to_matrix
from shuffle_jax.ops.precision import at_least_float32
from shuffle_jax.ops.reduction import together
from shuffle_jax.typing import Array, Bool, Float, Int, Num

Tables = Float[Array, "n s g p q"]


def index(outer: Int[Array, "*#b #k p"], inner: Int[Array, "*#b #k q"], groups: int) -> Int[Array, "*lead c"]:
    """``r[(i q + j) G + k] = k p q + outer[k, i] q + inner[k, j]``."""
    within = kron(outer, inner)
    size = within.shape[-1]
    first = (size * identity(groups)).reshape((1,) * (within.ndim - 2) + (groups, 1))
    table = within + first  # a row for each group
    return jnp.swapaxes(table, -1, -2).reshape(*table.shape[:-2], groups * size)


def _inverse_index(outer: Int[Array, "*#b #k p"], inner: Int[Array, "*#b #k q"], groups: int) -> Int[Array, "*lead c"]:
    """``x[k p q + a q + b] = y[(outer[k, a] q + inner[k, b]) G + k]``: of inverses the inverse of :func:`index`."""
    within = kron(outer, inner) * groups
    table = within + identity(groups).reshape((1,) * (within.ndim - 2) + (groups, 1))
    return table.reshape(*table.shape[:-2], groups * table.shape[-1])


def _gather(
    x: Num[Array, "n s c"], outer: Int[Array, "#m #k p"], inner: Int[Array, "#m #k q"], groups: int
) -> Num[Array, "n s c"]:
    return _gather_by(index, x, outer, inner, groups)


def _gather_back(
    y: Num[Array, "n s c"], outer: Int[Array, "#m #k p"], inner: Int[Array, "#m #k q"], groups: int
) -> Num[Array, "n s c"]:
    return _gather_by(_inverse_index, y, invert(outer), invert(inner), groups)


def _gather_by(
    index_of: Callable[..., Array],
    x: Num[Array, "n s c"],
    outer: Int[Array, "#m #k p"],
    inner: Int[Array, "#m #k q"],
    groups: int,
) -> Num[Array, "n s c"]:
    # The barrier keeps XLA from computing the index anew for every position, which takes three times as long.
    def behind_barrier(outer: Array, inner: Array) -> Array:
        chosen: Array = lax.optimization_barrier(index_of(outer, inner, groups))
        return chosen

    # That of JAX 0.10 on CPU drops the barrier, but it keeps a product, which pays with more positions than entries.
    positions = x.shape[0] * x.shape[1]  # no number in a program for any number of images
    pays = not isinstance(positions, int) or positions > sum(math.prod(f.shape[1:]) for f in (outer, inner))
    by_product = partial(_affine, partial(index_of, groups=groups))
    chosen = by_platform(outer, inner, cpu=by_product if pays else behind_barrier, default=behind_barrier)
    return mixing.permute(x, chosen[0]) if chosen.shape[0] == 1 else jax.vmap(mixing.permute)(x, chosen)


def _affine(
    function: Callable[..., Array], outer: Int[Array, "#m #k p"], inner: Int[Array, "#m #k q"]
) -> Int[Array, "m c"]:
    """An affine function of both as ``[outer, inner] L + f(0, 0)``, L the rows of unit vectors. Exact up to 2^24."""
    images = inner.shape[0] if outer.shape[0] == 1 else outer.shape[0]
    entries = [jnp.broadcast_to(f, (images, *f.shape[1:])).reshape(images, -1) for f in (outer, inner)]
    sizes = [rows.shape[1] for rows in entries]
    units = jnp.eye(1 + sum(sizes), k=-1, dtype=jnp.int32)[:, :-1]  # none of them, and one after the other
    parts = jnp.split(units, sizes[:1], axis=1)
    values = function(*(part.reshape(-1, *f.shape[1:]) for part, f in zip(parts, (outer, inner), strict=True)))
    first, steps = values[:1], values[1:] - values[:1]
    product = jnp.matmul(*(a.astype(jnp.float32) for a in (jnp.concatenate(entries, 1), steps)), precision="highest")
    return product.astype(jnp.int32) + first


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def permute(
    groups: int, transposed: bool, x: Num[Array, "n s c"], outer: Int[Array, "#m #k p"], inner: Int[Array, "#m #k q"]
) -> Num[Array, "n s c"]:
    """The gather ``y[i] = x[r[i]]``, or its transpose ``y[r[i]] += x[i]``, by products if r has no inverse."""
    if not transposed:
        return _gather(x, outer, inner, groups)

    def by_products() -> Array:
        tables = x.reshape(*x.shape[:2], outer.shape[-1], inner.shape[-1], groups)
        hard = [to_matrix(index, x.dtype) for index in (outer, inner)]
        with jax.default_matmul_precision("highest"):  # zeros and ones round nothing then
            return _mix_inner(_unmix_outer(tables, hard[0]), jnp.swapaxes(hard[1], -1, -2)).reshape(x.shape)

    return lax.cond(_valid(outer, inner), lambda: _gather_back(x, outer, inner, groups), by_products)


def _permute_forward(groups: int, transposed: bool, x: Array, *indices: Array) -> tuple[Array, tuple[Array, ...]]:
    return permute(groups, transposed, x, *indices), indices


def _permute_backward(groups: int, transposed: bool, indices: tuple[Array, ...], gradient: Array) -> tuple:
    return permute(groups, not transposed, gradient, *indices), None, None


permute.defvjp(_permute_forward, _permute_backward)


def _valid(outer: Int[Array, "#m #k p"], inner: Int[Array, "#m #k q"]) -> Bool[Array, ""]:
    return jnp.all(is_permutation(outer)) & jnp.all(is_permutation(inner))


@jax.custom_vjp
def mix(x: Tables, outer: Float[Array, "#m #k i a"], inner: Float[Array, "#m #k j b"]) -> Float[Array, "n s i j g"]:
    """Both contractions; the array between them is kept for the gradient."""
    return _mix_outer(_mix_inner(x, inner), outer)


def _mix_forward(
    x: Tables, outer: Float[Array, "#m #k i a"], inner: Float[Array, "#m #k j b"]
) -> tuple[Float[Array, "n s i j g"], tuple[Array, ...]]:
    half = _mix_inner(x, inner)
    return _mix_outer(half, outer), (x, half, outer, inner)


def _mix_backward(saved: tuple[Array, ...], gradient: Float[Array, "n s i j g"]) -> tuple[Array, Array, Array]:
    x, half, outer, inner = saved
    outer_gradient = _outer_gradient(gradient, half, outer)
    half_gradient = _unmix_outer(gradient, outer)
    inner_gradient = _column_correlation(half_gradient, x, inner)
    return _mix_inner(half_gradient, jnp.swapaxes(inner, -1, -2)), outer_gradient, inner_gradient


mix.defvjp(_mix_forward, _mix_backward)


def _axes(factor: Float[Array, "m k i a"]) -> str:
    """The leading axes of a factor that are longer than 1, as einsum names them."""
    return ("n" if factor.shape[0] != 1 else "") + ("g" if factor.shape[1] != 1 else "")


def _squeezed(factor: Float[Array, "m k i a"]) -> Array:
    return factor.reshape(*(size for size in factor.shape[:2] if size != 1), *factor.shape[2:])


def _mix_inner(x: Tables, inner: Float[Array, "#m #k j b"]) -> Float[Array, "n s g p j"]:
    if inner.shape[1] != 1:
        return jnp.einsum(f"nsgab,{_axes(inner)}jb->nsgaj", x, _squeezed(inner))
    y = jnp.einsum("nrb,njb->nrj", _rows(x, inner), inner[:, 0])
    if inner.shape[0] == 1:
        y = y[0]
    return y.reshape(*x.shape[:-1], inner.shape[2])


def _rows(x: Tables, factor: Float[Array, "m k j b"]) -> Float[Array, "m r _"]:
    """All that one factor applies to, as rows."""
    images = factor.shape[0]
    rows = math.prod(x.shape[1:-1])
    return x.reshape(-1, x.shape[-1])[None] if images == 1 else x.reshape(images, rows, x.shape[-1])


def _over(images: Array, like: Float[Array, "m k i a"]) -> NamedSharding | None:
    """``out_sharding`` of a sum over the images that share a factor."""
    return whole_result(images) if like.shape[0] == 1 else None


_UNROLLED = 256
"""An outer factor with more entries is applied by a product on CPU as well: unrolled it would take long to compile."""


def _mix_outer(half: Float[Array, "n s g a j"], outer: Float[Array, "#m #k i a"]) -> Float[Array, "n s i j g"]:
    """``y[i, j, g] = sum_a A[i, a] half[g, a, j]``, the cross-group shuffle with it."""

    def product(half: Array, outer: Array) -> Array:
        return jnp.einsum(f"nsgaj,{_axes(outer)}ia->nsijg", half, _squeezed(outer))

    def unrolled(half: Array, outer: Array) -> Array:
        parts = [half[:, :, :, a] for a in range(outer.shape[3])]
        rows = [jnp.swapaxes(_weighted(outer[:, :, i], parts), -1, -2) for i in range(outer.shape[2])]
        return jnp.stack(rows, axis=2).astype(half.dtype)

    return _on_cpu(unrolled, product, outer, half, outer, most=_UNROLLED)


def _unmix_outer(gradient: Float[Array, "n s i j g"], outer: Float[Array, "#m #k i a"]) -> Float[Array, "n s g a j"]:
    """The transpose of :func:`_mix_outer`: ``half[g, a, j] = sum_i A[i, a] y[i, j, g]``."""

    def product(gradient: Array, outer: Array) -> Array:
        return jnp.einsum(f"nsijg,{_axes(outer)}ia->nsgaj", gradient, _squeezed(outer))

    def unrolled(gradient: Array, outer: Array) -> Array:
        parts = [jnp.swapaxes(gradient[:, :, i], -1, -2) for i in range(outer.shape[2])]
        rows = [_weighted(outer[:, :, :, a], parts) for a in range(outer.shape[3])]
        return jnp.stack(rows, axis=3).astype(gradient.dtype)

    return _on_cpu(unrolled, product, outer, gradient, outer, most=_UNROLLED)


def _weighted(weights: Float[Array, "m k t"], parts: list[Float[Array, "n s g j"]]) -> Float[Array, "n s g j"]:
    weights = at_least_float32(weights)[:, None, :, None]
    return sum(weights[..., t] * at_least_float32(part) for t, part in enumerate(parts))  # type: ignore[return-value]


def _column_correlation(
    left: Float[Array, "n s g a j"], right: Float[Array, "n s g a b"], like: Float[Array, "m k j b"]
) -> Float[Array, "m k j b"]:
    """``R[j, b] = sum left[g, a, j] right[g, a, b]`` over positions, a, and the groups and images of one factor."""
    if like.shape[1] != 1:
        spec = f"nsgaj,nsgab->{_axes(like)}jb"
        return jnp.einsum(spec, left, right, out_sharding=_over(left, like)).reshape(like.shape)
    # Rows for a plain product: as an einsum over three axes it takes twice as long.
    rows = _rows(left, like), _rows(right, like)
    return jnp.einsum("nrj,nrb->njb", *rows, out_sharding=_over(left, like)).reshape(like.shape)


def _outer_gradient(
    gradient: Float[Array, "n s i j g"], half: Float[Array, "n s g a j"], outer: Float[Array, "#m #k i a"]
) -> Float[Array, "m k i a"]:
    """``dA[i, a] = sum y[i, j, g] half[g, a, j]`` over positions, j, and the groups and images that share A."""

    def product(gradient: Array, half: Array) -> Array:
        spec = f"nsijg,nsgaj->{_axes(outer)}ia"
        return jnp.einsum(spec, gradient, half, out_sharding=_over(half, outer)).reshape(outer.shape)

    def reduced(gradient: Array, half: Array) -> Array:
        return _correlate([jnp.swapaxes(gradient[:, :, i], -1, -2) for i in range(outer.shape[2])], half, outer)

    return _on_cpu(reduced, product, outer, gradient, half, most=_REDUCED)


def _row_correlation(
    left: Float[Array, "n s g i j"], right: Float[Array, "n s g a j"], like: Float[Array, "m k i a"]
) -> Float[Array, "m k i a"]:
    """``R[i, a] = sum left[g, i, j] right[g, a, j]`` over the same."""

    def product(left: Array, right: Array) -> Array:
        spec = f"nsgij,nsgaj->{_axes(like)}ia"
        return jnp.einsum(spec, left, right, out_sharding=_over(left, like)).reshape(like.shape)

    def reduced(left: Array, right: Array) -> Array:
        return _correlate([left[:, :, :, i] for i in range(like.shape[2])], right, like)

    return _on_cpu(reduced, product, like, left, right, most=_REDUCED)


_REDUCED = 16
"""More entries than these are correlated by a product on CPU as well."""


def _correlate(
    lefts: list[Float[Array, "n s g j"]], right: Float[Array, "n s g a j"], like: Float[Array, "m k i a"]
) -> Float[Array, "m k i a"]:
    """All entries in one pass over both arrays; over positions alone, so that XLA vectorises along the rest."""
    rights = [at_least_float32(right[:, :, :, a]) for a in range(like.shape[3])]
    sums = together([at_least_float32(a) * b for a in lefts for b in rights], 1)
    entries = jnp.stack([total.sum(-1) for total in sums], axis=-1)  # (n, g, entries)
    shared = tuple(axis for axis in (0, 1) if like.shape[axis] == 1)
    return entries.sum(shared, keepdims=True).reshape(like.shape).astype(like.dtype)


def _on_cpu(
    unrolled: Callable[..., Array], product: Callable[..., Array], outer: Array, *operands: Array, most: int
) -> Array:
    """The unrolled form on CPU if the outer factor has at most so many entries, the product otherwise."""
    if outer.shape[2] * outer.shape[3] > most:
        return product(*operands)
    return by_platform(*operands, cpu=unrolled, default=product)


@jax.custom_vjp
def straight_through(x: Tables, outer: Float[Array, "#m #k p p"], inner: Float[Array, "#m #k q q"]) -> Array:
    """The gather, with the gradient of :func:`mix` at the hard factors."""
    rows = x.reshape(*x.shape[:2], math.prod(x.shape[2:]))
    return _gather(rows, rounding.argmax(outer), rounding.argmax(inner), x.shape[2])


def _straight_forward(
    x: Tables, outer: Float[Array, "#m #k p p"], inner: Float[Array, "#m #k q q"]
) -> tuple[Array, tuple[Array, ...]]:
    # By the function itself: a second derivative takes what this returns for what it is, and a gather has none here.
    return straight_through(x, outer, inner), (x, rounding.argmax(outer), rounding.argmax(inner), outer, inner)


def _straight_backward(
    saved: tuple[Array, ...], gradient: Float[Array, "n s c"]
) -> tuple[Tables, Float[Array, "m k p p"], Float[Array, "m k q q"]]:
    x, *indices, outer, inner = saved
    # Hard with a straight-through gradient themselves, which a second derivative sees.
    hard = [rounding.straight_through(f, i).astype(x.dtype) for f, i in zip((outer, inner), indices, strict=True)]
    dx, outer_gradient, inner_gradient = _straight_gradients(gradient, x, *hard, *indices)
    return dx, outer_gradient.astype(outer.dtype), inner_gradient.astype(inner.dtype)


straight_through.defvjp(_straight_forward, _straight_backward)


@jax.custom_vjp
def _straight_gradients(
    gradient: Float[Array, "n s c"],
    x: Tables,
    outer: Float[Array, "#m #k p p"],
    inner: Float[Array, "#m #k q q"],
    outer_index: Int[Array, "m k p"],
    inner_index: Int[Array, "m k q"],
) -> tuple[Array, Array, Array]:
    """The gradient of :func:`mix` at hard factors, by correlations if both are permutations, and its own gradient."""

    def by_correlations() -> tuple[Array, Array, Array]:
        dx = _gather_back(gradient, outer_index, inner_index, x.shape[2]).reshape(x.shape)
        return dx, outer @ _row_correlation(dx, x, outer), inner @ _column_correlation(dx, x, inner)

    valid = _valid(outer_index, inner_index)
    return lax.cond(valid, by_correlations, lambda: _by_products(gradient, x, outer, inner))


def _by_products(
    gradient: Float[Array, "n s c"], x: Tables, outer: Float[Array, "#m #k p p"], inner: Float[Array, "#m #k q q"]
) -> tuple[Array, Array, Array]:
    n, s, g, p, q = x.shape
    return _mix_backward((x, _mix_inner(x, inner), outer, inner), gradient.reshape(n, s, p, q, g))


def _gradients_forward(*arguments: Array) -> tuple[tuple[Array, Array, Array], tuple[Array, ...]]:
    return _straight_gradients(*arguments), arguments[:4]


def _gradients_backward(saved: tuple[Array, ...], changes: tuple[Array, Array, Array]) -> tuple[Array | None, ...]:
    return *jax.vjp(_by_products, *saved)[1](changes), None, None


_straight_gradients.defvjp(_gradients_forward, _gradients_backward)
