"""Ops of a batch that is split over devices, on Explicit axes and within jax.shard_map, and of 64-bit default types."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from shuffle_jax.ops import (
    bistochastic,
    contextual,
    convolution,
    dynamic_conv,
    frank_wolfe,
    kernel_attention,
    kronecker,
    local_search,
    mixing,
    orthogonal,
    penalty,
    per_sample,
    permutation,
    polyphase,
    pooling,
    quadratic_assignment,
    relaxation,
    rolling_pointwise,
    rounding,
    shift,
    shifted_pointwise,
    two_layer,
)
from shuffle_jax.ops.normalization import normalize, normalize_by_batch
from shuffle_jax.ops.reduction import sums

AUTO, EXPLICIT = (jax.make_mesh((2,), ("batch",), axis_types=(axis,)) for axis in (AxisType.Auto, AxisType.Explicit))
BATCH, WHOLE = PartitionSpec("batch"), PartitionSpec()


def images(*shape):
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


def indices(*shape):
    return np.random.default_rng(0).permuted(np.broadcast_to(np.arange(shape[-1], dtype=np.int32), shape), axis=-1)


X, MATRICES, ONE = images(4, 4, 4, 8), np.abs(images(4, 8, 8)), np.abs(images(8, 8))
CASES = {  # The op, what is split, and what lies whole on every device.
    "normalize_by_batch": (normalize_by_batch, [images(4, 48, 4, 8)], [images(8), images(8) + 2, images(8)]),
    "straight through": (partial(kronecker.straight_through, groups=2), [X], [ONE[:2, :2], ONE[:2, :2]]),
    "assignment": (rounding.assignment, [MATRICES], []),
    "depthwise": (convolution.depthwise, [X], [images(3, 3, 1, 8)]),
    "greedy": (rounding.greedy, [MATRICES], []),
    "permute": (mixing.permute, [X], [indices(8)]),
    "permute, one for each": (jax.vmap(mixing.permute), [X, indices(4, 8)], []),
    "mix factors": (partial(kronecker.mix, groups=2), [X], [ONE[:2, :2], ONE[:2, :2]]),
    "converged_sinkhorn": (relaxation.converged_sinkhorn, [MATRICES], []),
    "two_layer_loss": (
        lambda m, *given: two_layer.two_layer_loss(*given[:2], m, given[2]),
        [MATRICES],
        [images(5, 8), images(5), indices(8)],
    ),
    # The values of those above are compared.
    "tabu_search": (
        lambda p, a, b: local_search.tabu_search(p, (a, b), jax.random.key(0), steps=3),
        [indices(4, 8)],
        [ONE, ONE.T],
    ),
    "normalize": (normalize, [X], [images(8)] * 4),
    "sums": (lambda x: sums([x, x]), [images(4, 48, 4, 8)], []),
    "sample": (lambda x: polyphase.sample(x, size=3)[0], [X], []),
    "sample, odd": (lambda x: polyphase.sample(x, criterion="largest")[0], [images(4, 3, 5, 8)], []),
    "convolution, wrapped": (partial(convolution.convolution, padding="wrap"), [X], [images(3, 3, 8, 6)]),
    "largest_ahead": (polyphase.largest_ahead, [X], []),
    "halve": (pooling.halve, [X], []),
    "largest": (pooling.largest, [X], []),
    "largest_2x2": (pooling.largest_2x2, [X], []),
    "depthwise, strided": (partial(convolution.depthwise, stride=2), [images(4, 40, 40, 8)], [images(3, 3, 1, 8)]),
    "depthwise, strided past its kernel": (
        partial(convolution.depthwise, stride=2),
        [images(4, 40, 40, 8)],
        [images(1, 1, 1, 8)],
    ),
    "pointwise": (convolution.pointwise, [X], [images(1, 1, 8, 6)]),
    "pointwise in groups": (partial(convolution.pointwise, groups=2), [X], [images(1, 1, 4, 6)]),
    "pointwise, rotated": (
        partial(convolution.pointwise, groups=2, rotation=1),
        [images(4, 4, 4, 128)],
        [images(1, 1, 64, 6)],
    ),
    "rolling_pointwise": (partial(rolling_pointwise.rolling_pointwise, groups=2), [X], [images(1, 1, 4, 6)]),
    "convolution": (convolution.convolution, [X], [images(3, 3, 8, 6)]),
    "contextual": (partial(contextual.contextual, outputs=(3, 3), stride=2), [X], [images(3, 3, 8, 6)]),
    "contextual, depthwise": (
        partial(contextual.contextual_depthwise, channels=(4, 2, 2), padding="wrap"),
        [X],
        [images(3, 3, 1, 8)],
    ),
    "convolution in groups": (partial(convolution.convolution, groups=2), [X], [images(3, 3, 4, 6)]),
    "stem": (partial(convolution.convolution, stride=2), [images(4, 6, 6, 3)], [images(3, 3, 3, 6)]),
    "stem of patches": (partial(convolution.convolution, stride=2), [images(4, 16, 16, 3)], [images(7, 7, 3, 6)]),
    "shuffle": (partial(mixing.shuffle, groups=2), [X], []),
    "mix": (mixing.mix, [X], [ONE]),
    "channel_shift": (partial(shift.channel_shift, groups=2), [X], []),
    "grid_shift": (shift.grid_shift, [images(4, 4, 4, 10)], []),
    "shortcut_shift": (shift.shortcut_shift, [X, images(4, 4, 4, 3)], []),
    **{f"address_shift, {b}": (partial(shift.address_shift, boundary=b), [X], []) for b in ("pointer", "zero", "wrap")},
    **{
        f"shifted_pointwise, {boundary}, {form}, {groups}": (
            partial(shifted_pointwise.shifted_pointwise, groups=groups, rotation=1, boundary=boundary, form=form),
            [X],
            [images(1, 1, 8 // groups, outputs)],
        )
        for boundary in ("pointer", "zero")
        for form in ("plain", "folded")
        for groups, outputs in ((4, 8), (2, 4), (1, 4))
    },
    "mix factors, one pair for each": (
        partial(kronecker.mix, groups=2),
        [X, MATRICES[:, :2, :2], MATRICES[:, :2, :2]],
        [],
    ),
    "mix factors of groups": (partial(kronecker.mix, groups=2), [X, *[images(4, 2, 2, 2)] * 2], []),
    "mix large factors": (kronecker.mix, [images(4, 2, 2, 34), images(4, 17, 17), images(4, 2, 2)], []),
    "mix by one large pair": (kronecker.mix, [images(4, 2, 2, 34)], [images(17, 17), images(2, 2)]),
    "straight through, one pair for each": (
        partial(kronecker.straight_through, groups=2),
        [X, MATRICES[:, :2, :2], MATRICES[:, :2, :2]],
        [],
    ),
    "straight through of groups": (partial(kronecker.straight_through, groups=2), [X, *[images(4, 2, 2, 2)] * 2], []),
    "permute by factors": (partial(kronecker.permute, groups=2), [X], [indices(2), indices(2)]),
    "permute by factors, one pair for each": (
        partial(kronecker.permute, groups=2),
        [X, indices(4, 2), indices(4, 2)],
        [],
    ),
    "index": (partial(kronecker.index, groups=2), [indices(4, 2), indices(4, 2)], []),
    "per_sample.convolution": (per_sample.convolution, [X, images(4, 3, 3, 8, 6)], []),
    "per_sample.convolution in groups": (partial(per_sample.convolution, groups=2), [X, images(4, 3, 3, 4, 6)], []),
    "per_sample.affine": (partial(per_sample.affine, window=(1, 1)), [X, images(4, 9, 12)], []),
    "aggregate": (kernel_attention.aggregate, [images(4, 3)], [images(3, 3, 3, 8, 6)]),
    "mix_features": (
        lambda x, weights, kernels: kernel_attention.mix_features(x, kernels, weights, groups=2),
        [X, images(4, 3)],
        [images(3, 3, 3, 4, 6)],
    ),
    "adaptive_mean": (partial(dynamic_conv.adaptive_mean, size=2), [X], []),
    "adaptive_mean, overlapping": (partial(dynamic_conv.adaptive_mean, size=3), [X], []),
    "fuse": (dynamic_conv.fuse, [X, images(4, 2, 1, 4, 4)], []),
    "fuse in blocks": (dynamic_conv.fuse, [X, images(4, 1, 2, 4, 4)], []),
    "latents": (
        lambda x, q, r: dynamic_conv.latents(x, q, (3, 3), 1, ((1, 1), (1, 1)), 1, r),
        [X],
        [images(1, 1, 8, 4), images(3, 3, 2)],
    ),
    **{
        f.__name__: (f, [MATRICES], [])
        for f in (
            relaxation.softmax_rows,
            relaxation.sinkhorn,
            relaxation.tangent,
            bistochastic.clamp_normalize,
            orthogonal.cayley,
            orthogonal.orthostochastic,
            penalty.l1_minus_l2,
            penalty.normalized_l1_minus_l2,
            penalty.orthogonality,
            penalty.normalized_orthogonality,
            penalty.row_entropy,
            rounding.argmax,
            rounding.round_straight_through,
            rounding.certificate,
            rounding.orthogonality_certificate,
        )
    },
    "balance": (lambda m: bistochastic.balance(jax.lax.stop_gradient(m)), [MATRICES], []),
    "gumbel_sinkhorn": (lambda m: relaxation.gumbel_sinkhorn(m, key=jax.random.key(0)), [MATRICES], []),
    "clamp_normalize, thrice": (partial(bistochastic.clamp_normalize, passes=3), [MATRICES], []),
    "clamp_normalize, a power": (partial(bistochastic.clamp_normalize, temperature=0.5), [MATRICES], []),
    "assignment, mapped": (jax.vmap(rounding.assignment), [MATRICES], []),
    "assignment of one row": (rounding.assignment, [MATRICES[:, :1, :1]], []),
    "soft_sort": (relaxation.soft_sort, [images(4, 8)], []),
    "invert": (permutation.invert, [indices(4, 8)], []),
    "compose": (permutation.compose, [indices(4, 8)] * 2, []),
    "kron": (permutation.kron, [indices(4, 8)] * 2, []),
    "to_matrix": (permutation.to_matrix, [indices(4, 8)], []),
    "is_permutation": (permutation.is_permutation, [indices(4, 8)], []),
    "count_distinct": (permutation.count_distinct, [indices(4, 8)], []),
    "frank_wolfe": (lambda m, a, b: frank_wolfe.frank_wolfe(m, (a, b), 3), [MATRICES], [ONE, ONE]),
    "relu_kernel": (two_layer.relu_kernel, [images(4, 5, 8), images(4, 6, 8)], []),
    "assignment_objective": (
        lambda m, a, b: quadratic_assignment.assignment_objective(m, (a, b)),
        [MATRICES],
        [ONE, ONE],
    ),
}
COMPARED = tuple(CASES)[: list(CASES).index("tabu_search")]


def value_and_gradient(op, *arguments):
    """What the op gives, and the gradient by all real arguments of a sum over it, if there is one."""
    real = [i for i, a in enumerate(arguments) if jnp.issubdtype(a.dtype, jnp.floating)]

    def loss(*given):
        y = op(*[given[real.index(i)] if i in real else a for i, a in enumerate(arguments)])
        parts = [a for a in jax.tree.leaves(y) if jnp.issubdtype(a.dtype, jnp.floating)]
        return sum((jnp.sin(a).sum() for a in parts), jnp.zeros((), jnp.float32)), y

    if not real:
        return op(*arguments), ()
    gradient, y = jax.grad(loss, tuple(range(len(real))), has_aux=True)(*[arguments[i] for i in real])
    return y, gradient


def specs(batch, whole):
    return (BATCH,) * len(batch) + (WHOLE,) * len(whole)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.fast_cases(3)
def test_values_and_gradients_are_traced_on_explicit_axes_and_in_shard_map(name):
    op, batch, whole = CASES[name]
    program, arguments, parts = partial(value_and_gradient, op), (*batch, *whole), specs(batch, whole)
    with jax.set_mesh(EXPLICIT):
        types = [
            jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=NamedSharding(EXPLICIT, part))
            for a, part in zip(arguments, parts, strict=True)
        ]
        jax.eval_shape(program, *types)

    def local(*arguments):
        return jax.tree.map(lambda leaf: leaf.sum()[None], program(*arguments))

    jax.eval_shape(jax.shard_map(local, mesh=AUTO, in_specs=parts, out_specs=BATCH), *arguments)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_types_are_the_same_where_float64_is_the_default(name):
    op, batch, whole = CASES[name]
    with jax.enable_x64(True):
        made = jax.eval_shape(partial(value_and_gradient, op), *batch, *whole)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(made)} <= {"float32", "int32", "bool"}


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPARED)
def test_values_and_gradients_are_those_of_one_device(name):
    op, batch, whole = CASES[name]
    program, arguments, parts = partial(value_and_gradient, op), (*batch, *whole), specs(batch, whole)
    true = jax.jit(program)(*arguments)
    lying = [jax.device_put(a, NamedSharding(EXPLICIT, part)) for a, part in zip(arguments, parts, strict=True)]
    found = [jax.jit(program)(*lying)]
    if name != "normalize_by_batch":  # whose moments are those of the device's own images
        given = BATCH, tuple(part for a, part in zip(arguments, parts, strict=True) if a.dtype == np.float32)
        found.append(jax.jit(jax.shard_map(program, mesh=AUTO, in_specs=parts, out_specs=given))(*arguments))
    for values in found:
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), values, true)
