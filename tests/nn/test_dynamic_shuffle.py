"""Dynamic Shuffle, static-dynamic shuffle and squeeze-excitation against matrices written out for every image."""

from __future__ import annotations

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import block_diag
from scipy.optimize import linear_sum_assignment

from shuffle_jax.analysis.count import count, count_layers, inside
from shuffle_jax.nn import (
    ChannelShuffle,
    DynamicShuffle,
    FactorGenerator,
    HardDynamicShuffle,
    HardFactorGenerator,
    HardStaticDynamicShuffle,
    PointwiseConv,
    StaticDynamicShuffle,
)
from shuffle_jax.nn.collections import PERMUTATIONS, PROGRESS
from shuffle_jax.nn.squeeze_excitation import SqueezeExcitation
from shuffle_jax.ops import kronecker, rounding
from shuffle_jax.ops.permutation import channel_shuffle

N, C = 4, 12
SOFT = partial(FactorGenerator, hidden=4)
rng = np.random.default_rng(0)
IMAGES = rng.standard_normal((N, 3, 2, C)).astype(np.float32)
compiled = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # Half the compilation.


def run(module, variables, x=IMAGES, **options):
    """Compiled as a whole, which takes less than op by op, and once for each module and options."""
    options = {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}
    return applied(module, tuple(options.items()))(variables, x)


@cache
def applied(module, options):
    return compiled(partial(module.apply, **dict(options)))


def draw(module, images=IMAGES, spread=1.0):
    """Parameters at random: every image has factors of its own."""
    generator = np.random.default_rng(1)
    shapes = jax.eval_shape(module.init, jax.random.key(0), images)["params"]
    return jax.tree.map(lambda leaf: np.float32(spread * generator.standard_normal(leaf.shape)), shapes)


def factors_of(params, images, sizes, copies=1):
    """The factors of each image in float64, ``(n, copies, s, s)`` for both sizes, as the head's formula reads."""
    params = jax.tree.map(np.float64, params)
    y = np.maximum(np.float64(images).mean((1, 2)) @ params["hidden"]["kernel"] + params["hidden"]["bias"], 0)
    logits = y @ params["logits"]["kernel"] + params["logits"]["bias"]
    logits = np.exp(logits).reshape(len(images), copies, -1)
    p, q = sizes
    parts = logits[..., : p * p].reshape(-1, copies, p, p), logits[..., p * p :].reshape(-1, copies, q, q)
    return [part / part.sum(-1, keepdims=True) for part in parts]


def rounded(factor, evaluation):
    """A factor as an evaluation takes it."""
    match evaluation:
        case "soft":
            return factor
        case "hard":
            return np.eye(len(factor))[factor.argmax(-1)]
        case "repaired":
            return np.eye(len(factor))[linear_sum_assignment(-factor)[1]]


def shuffle_matrix(channels, groups):
    """``S_G``: row ``s G + k`` takes the s-th channel of group k."""
    matrix = np.zeros((channels, channels))
    for k in range(groups):
        for s in range(channels // groups):
            matrix[s * groups + k, k * (channels // groups) + s] = 1
    return matrix


def mixed(images, pairs, groups):
    """``S_G blockdiag(A_k kron B_k) x`` with a list of G pairs for each image."""
    out = []
    for image, own in zip(np.float64(images), pairs, strict=True):
        blocks = block_diag(*[np.kron(*own[k % len(own)]) for k in range(groups)])
        out.append(image @ (shuffle_matrix(len(blocks), groups) @ blocks).T)
    return np.stack(out)


def expected_mixing(params, images, sizes, groups, evaluation, copies=1):
    outer, inner = factors_of(params, images, sizes, copies)
    pairs = [
        [(rounded(a, evaluation), rounded(b, evaluation)) for a, b in zip(*pair, strict=True)]
        for pair in zip(outer, inner, strict=True)
    ]
    return mixed(images, pairs, groups)


def assert_near(actual, expected, tolerance=1e-5):
    assert np.std(expected) > 0.05
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("groups", [1, 2, 3, 4, 6, 12])
@pytest.mark.fast_cases(2)
def test_a_hard_start_is_the_fixed_shuffle_exactly_in_training_and_evaluation(groups):
    module = HardDynamicShuffle(groups)

    @compiled
    def both(images):
        variables = {"params": module.init(jax.random.key(2), images)["params"]}
        return module.apply(variables, images, train=True), module.apply(variables, images)

    for y in both(IMAGES):
        np.testing.assert_array_equal(y, run(ChannelShuffle(groups), {}, IMAGES))
        np.testing.assert_array_equal(y, IMAGES[..., channel_shuffle(C, groups)])


@pytest.mark.parametrize("groups", [2, 1, 3, 4, 6, 12])
@pytest.mark.fast_cases(1)
def test_a_soft_start_is_the_fixed_shuffle_exactly_in_evaluation_and_once_it_is_binarized(groups):
    module = DynamicShuffle(groups, binarize_from=0.8)

    @compiled
    def all_three(images):
        variables = module.init(jax.random.key(2), images)

        def trained(share):
            told = {**variables, PROGRESS: jax.tree.map(lambda old: jnp.full_like(old, share), variables[PROGRESS])}
            return module.apply(told, images, train=True, mutable=["batch_stats"])[0]

        return module.apply(variables, images), *jax.vmap(trained)(jnp.array([0.8, 0.0]))

    evaluated, hard, soft = all_three(IMAGES)
    for y in (evaluated, hard):
        np.testing.assert_array_equal(y, IMAGES[..., channel_shuffle(C, groups)])
    assert groups == C or np.abs(soft - hard).max() > 0.1


@pytest.mark.parametrize(
    ("make", "outer", "inner"),
    [
        (partial(DynamicShuffle, 2, per_group=True), None, None),
        (partial(StaticDynamicShuffle, 24, blocks=2), (3, 2), (4, 3)),
        (partial(DynamicShuffle, 2, evaluation="repaired"), None, None),
        (partial(StaticDynamicShuffle, 24, blocks=2, evaluation="repaired"), (3, 2), (4, 3)),
    ],
)
@pytest.mark.fast_cases(2)
def test_soft_layers_sharpen_late_and_mix_by_the_factors_of_their_head(make, outer, inner):
    module = make(generator=SOFT, binarize_from=0.8)
    copies = 2 if getattr(module, "per_group", False) else 1
    shapes = jax.eval_shape(module.init, jax.random.key(0), IMAGES)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == (
        2 * C + (C * 4 + 4) + 5 * copies * (2 * 2 + 3 * 3) + (outer is not None and 2 * 3 + 3 * 4)
    )
    generator = np.random.default_rng(1)
    variables = jax.tree.map(lambda leaf: np.float32(generator.uniform(0.2, 1, leaf.shape)), shapes)
    variables["params"] = draw(module, spread=0.4)

    def expected(made, evaluation):
        pairs = []
        for image in range(N):
            own = [
                [rounded(np.float64(f[image, k]), evaluation) for f in (made.outer, made.inner)] for k in range(copies)
            ]
            if outer is not None:
                for factor, name in enumerate(("static_outer", "static_inner")):
                    fixed, size = np.float64(variables["params"][name]), (2, 3)[factor]
                    fixed[:size, :size] += own[0][factor]
                    own[0][factor] = fixed
            pairs.append(own)
        return mixed(IMAGES, pairs, 2)

    @compiled
    def evaluated_and_trained(share):
        told = {**variables, PROGRESS: jax.tree.map(lambda old: jnp.full_like(old, share), variables[PROGRESS])}
        own = {name: told[name]["generator"] for name in ("params", "batch_stats", PROGRESS)}
        head = SOFT((2, 3), copies)
        return [
            (m.apply(v, IMAGES, train=train, mutable=["batch_stats"])[0])
            for train in (False, True)
            for m, v in ((module, told), (head, own))
        ]

    for share, evaluation in ((0.79, "soft"), (0.8, "hard")):
        y, made, trained, made_in_training = evaluated_and_trained(share)
        assert_near(y, expected(made, module.evaluation), 1e-4)
        assert_near(trained, expected(made_in_training, evaluation), 1e-4)


@pytest.mark.parametrize(
    ("evaluation", "per_group", "sizes"),
    [("soft", False, (2, 3)), ("hard", True, (2, 3)), ("repaired", True, (1, 6)), ("repaired", False, (3, 2))],
)
def test_evaluation_mixes_each_image_by_its_own_matrix(evaluation, per_group, sizes):
    module = HardDynamicShuffle(2, sizes, per_group, evaluation=evaluation)
    params, copies = draw(module), 2 if per_group else 1
    expected = expected_mixing(params["generator"], IMAGES, sizes, 2, evaluation, copies)
    assert_near(compiled(module.apply)({"params": params}, IMAGES), expected)
    other = expected_mixing(params["generator"], np.roll(IMAGES, 1, axis=0), sizes, 2, evaluation, copies)
    assert np.abs(np.roll(other, -1, axis=0) - expected).max() < 1e-12  # Nothing passes from one image to another.


def test_factors_are_nearest_to_each_other_by_default_and_shared_by_the_groups():
    def size(**options):
        shapes = jax.eval_shape(HardDynamicShuffle(2, **options).init, jax.random.key(0), jnp.zeros((1, 2, 2, 24)))
        return sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))

    hidden = 24 * 4 + 4
    assert size() == hidden + 5 * (3 * 3 + 4 * 4)
    assert size(per_group=True) == hidden + 5 * 2 * (3 * 3 + 4 * 4)
    assert size(factors=(2, 6)) == hidden + 5 * (2 * 2 + 6 * 6)
    assert size(generator=partial(HardFactorGenerator, dynamic=False)) == 3 * 3 + 4 * 4


def test_repaired_is_a_permutation_where_hard_repeats_a_channel():
    # Both rows of A peak in the first column; the nearest permutation swaps them.
    logits = np.concatenate([np.log([[0.7, 0.3], [0.9, 0.1]]).ravel(), (4 * np.eye(2)).ravel()]).astype(np.float32)
    params = {"generator": {"static_logits": logits}}
    x = jnp.asarray([[10.0, 11, 12, 13]])
    make = partial(HardDynamicShuffle, groups=1, generator=partial(HardFactorGenerator, dynamic=False))
    assert run(make(evaluation="hard"), {"params": params}, x).tolist() == [[10, 11, 10, 11]]
    assert run(make(evaluation="repaired"), {"params": params}, x).tolist() == [[12, 13, 10, 11]]


@pytest.fixture(scope="module")
def hard():
    module = HardDynamicShuffle(2)
    return compiled(module.apply), {"params": draw(module)}


def test_a_batch_of_one_equals_its_row_and_one_position_is_enough(hard):
    apply, variables = hard
    together = apply(variables, IMAGES)
    np.testing.assert_array_equal(apply(variables, IMAGES[2:3])[0], together[2])
    small = IMAGES[:, :1, :1]
    assert_near(apply(variables, small), expected_mixing(variables["params"]["generator"], small, (2, 3), 2, "hard"))


def test_one_channel_in_a_group_is_not_moved_whatever_the_head_says():
    module = HardDynamicShuffle(C)
    np.testing.assert_array_equal(run(module, {"params": draw(module)}, IMAGES, train=True), IMAGES)


def test_training_is_hard_forward_and_straight_through_backward():
    module = HardDynamicShuffle(2)
    params = draw(module)
    weights = rng.standard_normal(IMAGES.shape).astype(np.float32)
    shuffle = np.float32(shuffle_matrix(C, 2))

    def loss(params, images):
        y = module.apply({"params": params}, images, train=True)
        return (y * weights).sum(), y

    def dense(params, images):
        made = HardFactorGenerator((2, 3)).apply({"params": params["generator"]}, images)
        outer, inner = (rounding.straight_through(f, rounding.argmax(f))[:, 0] for f in (made.outer, made.inner))
        blocks = jax.vmap(lambda a, b: jnp.kron(jnp.eye(2), jnp.kron(a, b)))(outer, inner)
        y = jnp.einsum("ij,njk,nhwk->nhwi", shuffle, blocks, images)
        return (y * weights).sum(), y

    found, y = compiled(jax.grad(loss, (0, 1), has_aux=True))(params, IMAGES)
    expected, _ = compiled(jax.grad(dense, (0, 1), has_aux=True))(params, IMAGES)
    assert_near(y, expected_mixing(params["generator"], IMAGES, (2, 3), 2, "hard"))
    for (path, leaf), wanted in zip(jax.tree.leaves_with_path(found), jax.tree.leaves(expected), strict=True):
        assert np.abs(leaf).max() > 0.01, path
        np.testing.assert_allclose(leaf, wanted, rtol=1e-4, atol=1e-4, err_msg=str(path))


def test_factors_are_soft_until_the_share_of_the_training_from_which_they_are_binarized():
    params = draw(HardDynamicShuffle(2))
    soft, hard = (
        expected_mixing(params["generator"], IMAGES, (2, 3), 2, evaluation) for evaluation in ("soft", "hard")
    )
    assert np.abs(soft - hard).max() > 0.1

    def trained(binarize_from, progress):
        told = {} if progress is None else {PROGRESS: {"share": jnp.float32(progress)}}
        return run(HardDynamicShuffle(2, binarize_from=binarize_from), {"params": params} | told, IMAGES, train=True)

    for binarize_from, progress, expected in (
        (0.0, None, hard),
        (0.5, 0.25, soft),
        (0.5, 0.5, hard),
        (0.5, 0.75, hard),
        (0.5, None, hard),  # Nobody tells the progress: as at the end.
        (1.0, 1.0, soft),
    ):
        assert_near(trained(binarize_from, progress), expected)
    never = run(HardDynamicShuffle(2, binarize_from=1.0), {"params": params}, IMAGES)
    assert_near(never, hard)  # In evaluation they are hard whatever the training did.


def test_only_a_share_between_asks_for_the_progress():
    asked = {
        share: jax.eval_shape(HardDynamicShuffle(2, binarize_from=share).init, jax.random.key(0), IMAGES).get(PROGRESS)
        for share in (0.0, 0.5, 1.0)
    }
    assert asked[0.0] is None and asked[1.0] is None
    assert list(asked[0.5]) == ["share"]


@pytest.mark.parametrize("evaluation", ["hard", "soft"])
def test_half_precision_stays_half_precision(evaluation):
    module = HardDynamicShuffle(2, evaluation=evaluation)
    params, half = draw(module), jnp.asarray(IMAGES, jnp.bfloat16)
    y = run(module, {"params": params}, half)
    assert y.dtype == jnp.bfloat16
    expected = expected_mixing(params["generator"], half, (2, 3), 2, evaluation)
    assert_near(np.float32(y), expected, 0 if evaluation == "hard" else 0.03)


@pytest.mark.parametrize("evaluation", ["hard", "soft", "repaired"])
def test_frozen_it_is_one_gather_for_all_images(evaluation):
    index = {"outer": np.array([[1, 0]], np.int32), "inner": np.array([[2, 0, 1]], np.int32)}
    variables = {PERMUTATIONS: {"generator": index}}
    module = HardDynamicShuffle(2, evaluation=evaluation)
    whole = kronecker.index(index["outer"][0], index["inner"][0], 2)
    for train in (False, True):
        np.testing.assert_array_equal(run(module, variables, jnp.asarray(IMAGES), train=train), IMAGES[..., whole])
    assert count(module, IMAGES.shape[1:], variables) == (0, 0, 0, 0)


def test_multiply_adds_are_those_of_the_head_and_of_soft_contractions():
    head = C * 4 + 4 * (2 * 2 + 3 * 3)
    for evaluation, work in (("hard", 0), ("repaired", 0), ("soft", 3 * 2 * C * (2 + 3))):
        layers = count_layers(HardDynamicShuffle(2, evaluation=evaluation), IMAGES.shape[1:])
        assert inside(layers, "generator").multiply_adds == head
        assert sum(layer.cost.multiply_adds for layer in layers) == head + work


@pytest.mark.parametrize(
    ("options", "message"),
    [({"groups": 5}, "12 channels .*5 groups"), ({"factors": (2, 2)}, "factors of 2 and 2 do not make the 6 channels")],
)
def test_channels_that_do_not_divide_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(HardDynamicShuffle(**options).init, jax.random.key(0), IMAGES)


# Static-dynamic shuffle: (features, blocks, (p', p), (q', q)) for the 12 channels of the images.
SHAPES = {
    "square": (12, 2, (2, 2), (3, 3)),
    "wider": (24, 2, (3, 2), (4, 3)),
    "narrower": (4, 2, (1, 2), (2, 3)),
    "across": (9, 1, (3, 3), (3, 4)),
    "taller and narrower": (10, 1, (2, 3), (5, 4)),
}


def expected_static(params, images, outer, inner, blocks, evaluation):
    """``S_G (I_G kron (A_s + pad(A_d)) kron (B_s + pad(B_d))) x``."""
    sizes = min(outer), min(inner)
    pairs = []
    for dynamic in zip(*factors_of(params["generator"], images, sizes), strict=True):
        summed = []
        for name, own in zip(("static_outer", "static_inner"), dynamic, strict=True):
            total, square = np.float64(params[name]), rounded(own[0], evaluation)
            total[: len(square), : len(square)] += square
            summed.append(total)
        pairs.append([tuple(summed)])
    out = []
    for image, ((a, b),) in zip(np.float64(images), pairs, strict=True):
        blocks_ = np.kron(np.eye(blocks), np.kron(a, b))
        out.append(image @ (shuffle_matrix(len(blocks_), blocks) @ blocks_).T)
    return np.stack(out)


@pytest.mark.parametrize("shape", SHAPES)
def test_static_and_dynamic_factors_are_added_in_the_upper_left(shape):
    features, blocks, outer, inner = SHAPES[shape]
    evaluation = {"square": "repaired", "wider": "soft"}.get(shape, "hard")
    module = HardStaticDynamicShuffle(features, blocks=blocks, evaluation=evaluation)
    params = draw(module)
    assert params["static_outer"].shape == outer
    assert params["static_inner"].shape == inner
    p, q = min(outer), min(inner)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == (
        outer[0] * outer[1] + inner[0] * inner[1] + (C * 4 + 4) + 5 * (p * p + q * q)
    )
    y = compiled(module.apply)({"params": params}, IMAGES)
    assert_near(y, expected_static(params, IMAGES, outer, inner, blocks, evaluation), 1e-4)
    head = C * 4 + 4 * (p * p + q * q)
    work = blocks * (outer[1] * inner[0] * inner[1] + outer[0] * outer[1] * inner[0])  # B first, then A.
    assert count(module, IMAGES.shape[1:]).multiply_adds == head + 3 * 2 * work


def test_a_trained_layer_binarizes_the_dynamic_factors_alone():
    outer, inner = (2, 2), (3, 3)
    params = draw(HardStaticDynamicShuffle(12, groups=2))

    def trained(binarize_from, progress):
        told = {PROGRESS: {"share": jnp.float32(progress)}} if 0 < binarize_from < 1 else {}
        module = HardStaticDynamicShuffle(12, groups=2, binarize_from=binarize_from)
        return run(module, {"params": params} | told, IMAGES, train=True)

    for binarize_from, progress, evaluation in (
        (0.0, 0, "hard"),
        (0.5, 0.25, "soft"),
        (0.5, 0.75, "hard"),
        (1, 1, "soft"),
    ):
        expected = expected_static(params, IMAGES, outer, inner, 2, evaluation)
        assert_near(trained(binarize_from, progress), expected, 1e-4)


def test_a_static_dynamic_layer_passes_its_gradient_to_every_parameter():
    module = HardStaticDynamicShuffle(24, groups=2)
    weights = rng.standard_normal((N, 3, 2, 24)).astype(np.float32)

    def loss(params):
        return (module.apply({"params": params}, IMAGES, train=True) * weights).sum()

    for path, leaf in jax.tree.leaves_with_path(compiled(jax.grad(loss))(draw(module))):
        assert np.isfinite(leaf).all() and np.abs(leaf).max() > 0.01, path


def test_a_layer_computes_in_its_type_with_float32_parameters():
    module = HardStaticDynamicShuffle(24, groups=2, dtype=jnp.dtype(jnp.bfloat16))
    params = draw(module)
    y = run(module, {"params": params}, IMAGES)
    assert y.dtype == jnp.bfloat16
    half = np.float32(jnp.asarray(IMAGES, jnp.bfloat16))
    assert_near(np.float32(y), expected_static(params, half, (3, 2), (4, 3), 2, "hard"), 0.1)
    shapes = jax.eval_shape(module.init, jax.random.key(0), IMAGES)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes["params"])} == {jnp.dtype(jnp.float32)}


def test_frozen_the_dynamic_factors_are_one_pair_of_permutations():
    index = {"outer": np.array([[1, 0]], np.int32), "inner": np.array([[2, 0, 1]], np.int32)}
    module = HardStaticDynamicShuffle(12, groups=2, evaluation="soft")
    static = {name: leaf for name, leaf in draw(module).items() if name != "generator"}
    a, b = (np.eye(len(v[0]))[v[0]] for v in index.values())
    pair = np.float64(static["static_outer"]) + a, np.float64(static["static_inner"]) + b
    variables = {"params": static, PERMUTATIONS: {"generator": index}}
    for train in (False, True):
        assert_near(run(module, variables, IMAGES, train=train), mixed(IMAGES, [[pair]] * N, 2), 1e-4)


def test_square_alone_leaves_a_plain_convolution_where_the_number_of_channels_changes():
    module = HardStaticDynamicShuffle(24, groups=3, blocks=2, replaced="square")
    params = draw(module)
    assert jax.tree.map(np.shape, params) == {"conv": {"kernel": (1, 1, C // 3, 24)}}
    plain = PointwiseConv(24, 3)
    np.testing.assert_array_equal(
        run(module, {"params": params}, IMAGES), run(plain, {"params": params["conv"]}, IMAGES)
    )
    assert count(module, IMAGES.shape[1:]) == count(plain, IMAGES.shape[1:])
    kept = HardStaticDynamicShuffle(C, groups=3, blocks=2, replaced="square")
    assert set(draw(kept)) == {"static_outer", "static_inner", "generator"}


def test_grouped_is_a_grouped_convolution_with_a_dynamic_shuffle_behind_it():
    module = HardStaticDynamicShuffle(24, blocks=3, static="grouped")
    params = draw(module)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == (
        C // 3 * 24 + (24 * 4 + 4) + 5 * (2 * 2 + 4 * 4)  # The head sees the output of the convolution.
    )
    convolved = run(PointwiseConv(24, 3), {"params": params["conv"]}, IMAGES)
    expected = run(HardDynamicShuffle(3), {"params": params["shuffle"]}, convolved)
    np.testing.assert_array_equal(run(module, {"params": params}, IMAGES), expected)
    work = 3 * 2 * 24 * C // 3 + 24 * 4 + 4 * (2 * 2 + 4 * 4)
    assert count(module, IMAGES.shape[1:]).multiply_adds == work


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"features": 24, "blocks": 5}, "12 channels .*5 groups"),
        ({"features": 10, "blocks": 4}, "10 channels .*4 groups"),
        ({"features": 10, "groups": 4, "static": "grouped"}, "10 channels .*4 groups"),
        ({"features": 10, "blocks": 5, "static": "grouped"}, "12 channels .*5 groups"),
    ],
)
def test_blocks_that_do_not_divide_the_channels_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(HardStaticDynamicShuffle(**options).init, jax.random.key(0), IMAGES)


def test_squeeze_excitation_scales_channels_and_shuffles_them():
    module = SqueezeExcitation(groups=3)
    params = draw(module)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == C * 4 + 4 + 4 * C + C
    wide = jax.tree.map(np.float64, params)
    y = np.maximum(np.float64(IMAGES).mean((1, 2)) @ wide["hidden"]["kernel"] + wide["hidden"]["bias"], 0)
    gate = 2 / (1 + np.exp(-(y @ wide["gate"]["kernel"] + wide["gate"]["bias"])))
    expected = (IMAGES * gate[:, None, None]) @ shuffle_matrix(C, 3).T
    assert_near(run(module, {"params": params}, IMAGES), expected)
    half = run(module, {"params": params}, jnp.asarray(IMAGES, jnp.bfloat16))
    assert half.dtype == jnp.bfloat16
    assert_near(np.float32(half), expected, 0.03)
    assert count(module, IMAGES.shape[1:]) == (C * 4 + 4 + 4 * C + C, 0, 2 * C * 4 + 3 * 2 * C, 0)
