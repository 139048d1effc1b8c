"""Moving information along the channel axis: by index vector, by fixed shuffle, by matrix."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint

from shuffle_jax.ops.form import by_platform
from shuffle_jax.ops.mesh import varying_alike
from shuffle_jax.ops.permutation import check_groups, invert
from shuffle_jax.typing import Array, Float, Int, Shaped


def permute(x: Shaped[Array, "*batch c"], permutation: Int[Array, " c"]) -> Shaped[Array, "*batch c"]:
    """Permutes the last axis: ``y[..., i] = x[..., p[i]]``.

    A gather forward and a gather by the inverse permutation backward; autodiff of a gather would scatter-add, which is
    several times slower. The index must therefore be a permutation, and its entries are not counted from the end, which
    is not checked here: see :func:`~shuffle_jax.ops.invariants.assert_permutation`. Under ``vmap`` both arguments may
    be batched. There is no forward-mode derivative.

    Args:
        x: array with c channels last.
        permutation: ``(c,)`` index vector of 0 to c - 1.

    Returns:
        Array like x.

    >>> permute(jnp.array([[10.0, 20.0, 30.0]]), jnp.array([2, 0, 1])).tolist()
    [[30.0, 10.0, 20.0]]
    """
    return _permute(*varying_alike(x, permutation))


@jax.custom_vjp
def _permute(x: Shaped[Array, "*batch c"], permutation: Int[Array, " c"]) -> Shaped[Array, "*batch c"]:
    return _gather_channels(x, permutation)


def _gather_channels(x: Shaped[Array, "*batch c"], permutation: Int[Array, " c"]) -> Shaped[Array, "*batch c"]:
    return by_platform(x, permutation, cpu=_gather_in_rows, default=_gather)


def _gather(x: Shaped[Array, "*batch c"], permutation: Int[Array, " c"]) -> Shaped[Array, "*batch c"]:
    # Indices declared in bounds and unique: on CPU this runs at the speed of a plain copy, jnp.take does not. Declared
    # nonnegative: else each one is compared with 0 anew at every position, which takes as long as the copy.
    channels = jnp.asarray(x).at[..., permutation]
    return channels.get(mode="promise_in_bounds", unique_indices=True, wrap_negative_indices=False)


def _gather_in_rows(x: Shaped[Array, "*batch c"], permutation: Int[Array, " c"]) -> Shaped[Array, "*batch c"]:
    # Inside a network XLA would write the gather with the channels outermost and transpose it back: three to five times
    # the work. Alone it does not, so that a measurement of the operation alone does not show it.
    return with_layout_constraint(_gather(x, permutation), Layout(tuple(range(x.ndim))))


def _permute_forward(
    x: Shaped[Array, "*batch c"], permutation: Int[Array, " c"]
) -> tuple[Shaped[Array, "*batch c"], Int[Array, " c"]]:
    return _permute(x, permutation), permutation


def _permute_backward(
    permutation: Int[Array, " c"], gradient: Shaped[Array, "*batch c"]
) -> tuple[Shaped[Array, "*batch c"], None]:
    return _permute(gradient, invert(permutation)), None


_permute.defvjp(_permute_forward, _permute_backward)


def shuffle(x: Shaped[Array, "*batch c"], groups: int) -> Shaped[Array, "*batch c"]:
    """The fixed channel shuffle of ShuffleNet, as a reshape and a transpose.

    ``y[..., j g + k] = x[..., k (c / g) + j]``; the same map as :func:`permute` by
    :func:`~shuffle_jax.ops.permutation.channel_shuffle`, in the form that XLA fuses best.

    Args:
        x: array with c channels last.
        groups: g, a divisor of c.

    Returns:
        Array like x.

    Raises:
        ValueError: g does not divide c.

    >>> shuffle(jnp.arange(6), groups=2).tolist()
    [0, 3, 1, 4, 2, 5]

    Source: Zhang et al., ShuffleNet, 2017, section 3.1.
    """
    channels = x.shape[-1]
    check_groups(channels, groups)
    if groups in (1, channels):
        return x
    table = x.reshape(*x.shape[:-1], groups, channels // groups)
    return jnp.swapaxes(table, -1, -2).reshape(x.shape)


def mix(x: Float[Array, "*batch c"], matrix: Float[Array, "d c"]) -> Float[Array, "*batch d"]:
    """Multiplies the channels of every position by one matrix: ``y[..., i] = sum_j M_ij x[..., j]``.

    With the matrix of a permutation this is :func:`permute`, at c multiply-adds per value and not none.

    Args:
        x: array with c channels last.
        matrix: ``(d, c)``; cast to the type of x.

    Returns:
        Array with d channels last.

    >>> mix(jnp.array([1.0, 2.0]), jnp.array([[0.0, 1.0], [0.5, 0.5]])).tolist()
    [2.0, 1.5]
    """
    # Two-dimensional on purpose, as a 1x1 convolution is: the gradient by the matrix is then one plain product.
    rows = x.reshape(-1, x.shape[-1])
    y = by_platform(rows, matrix.astype(x.dtype), cpu=_mix_in_place, default=_mix)
    return y.reshape(*x.shape[:-1], matrix.shape[0])


def _mix(rows: Float[Array, "r c"], matrix: Float[Array, "d c"]) -> Float[Array, "r d"]:
    return rows @ matrix.T


def _mix_in_place(rows: Float[Array, "r c"], matrix: Float[Array, "d c"]) -> Float[Array, "r d"]:
    # The transposed matrix where the matrix is, and the same for its gradient. XLA would else cancel its transposition
    # against that of the product, and compute all that the other gradient passes through once more, columns first.
    return rows @ with_layout_constraint(matrix.T, Layout((1, 0)))


def unit_rows(matrix: Float[Array, "*batch d c"]) -> Float[Array, "*batch d c"]:
    """Divides every row by its Euclidean norm: ``U_ij = M_ij / sqrt(sum_k M_ik^2)``.

    With it :func:`mix` keeps the variance of inputs that are independent and alike, whatever the rows. A row of a
    relaxed permutation that averages k inputs leaves 1/k of it, and a batch norm behind scales what is left up again.
    A permutation matrix is returned bit for bit, and a row of zeros as it is. The derivative of another row is
    ``(I - u u^T) / |M_i|``, u the row that is returned: nothing along it. Cost O(d c).

    Args:
        matrix: ``(..., d, c)`` real matrices, whose squares neither overflow nor vanish.

    Returns:
        Matrices like these, with rows of norm 1, or 0.

    >>> unit_rows(jnp.array([[0.25, 0.25, 0.25, 0.25], [0.0, 1.0, 0.0, 0.0]])).tolist()
    [[0.5, 0.5, 0.5, 0.5], [0.0, 1.0, 0.0, 0.0]]

    Source: this project's.
    """
    squares = jnp.sum(jnp.square(matrix), axis=-1, keepdims=True)
    return matrix / jnp.sqrt(jnp.where(squares > 0, squares, jnp.ones_like(squares)))
