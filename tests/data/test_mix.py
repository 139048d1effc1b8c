from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from shuffle_jax.data.mix import cutmix, mixup, mixup_or_cutmix


def random_images(n: int, h: int, w: int, c: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 256, (n, h, w, c), dtype=np.uint8)


def one_hot(n: int, classes: int) -> np.ndarray:
    return np.eye(classes, dtype=np.float32)[np.arange(n) % classes]


# Mixup


@pytest.mark.parametrize("n", [2, 5])
def test_mixup_is_one_convex_combination_with_the_image_before(n):
    images = random_images(n, 3, 2, 2).astype(np.float32)
    targets = one_hot(n, n)
    mixed, soft = mixup(jax.random.key(4), jnp.asarray(images), jnp.asarray(targets), 1.0)
    t = float(soft[0, 0])
    assert 0.01 < t < 0.99
    np.testing.assert_allclose(soft, t * targets + (1 - t) * np.roll(targets, 1, axis=0), atol=1e-6)
    np.testing.assert_allclose(mixed, t * images + (1 - t) * np.roll(images, 1, axis=0), rtol=1e-5)
    np.testing.assert_allclose(np.asarray(soft).sum(axis=1), 1, rtol=1e-6)


@pytest.mark.parametrize("alpha", [0.3, *(pytest.param(one, marks=pytest.mark.slow) for one in (1.0, 4.0))])
def test_mixup_weights_follow_the_beta_law(alpha):
    images, targets = jnp.zeros((2, 1, 1, 1)), jnp.eye(2)
    keys = jax.random.split(jax.random.key(0), 2000)
    draws = jax.jit(jax.vmap(lambda key: mixup(key, images, targets, alpha)[1][0, 0]))(keys)
    assert stats.kstest(np.asarray(draws, np.float64), stats.beta(alpha, alpha).cdf).pvalue > 1e-3


def test_mixup_leaves_a_batch_of_one_as_it_is():
    image, target = jnp.full((1, 3, 3, 1), 0.3), jnp.array([[0.1, 0.9]])
    mixed, soft = mixup(jax.random.key(0), image, target, 1.0)
    np.testing.assert_array_equal(mixed, image)
    np.testing.assert_array_equal(soft, target)


@pytest.mark.parametrize("alpha", [0.0, -1.0])
def test_mixup_rejects_alpha(alpha):
    with pytest.raises(ValueError, match=f"alpha must be positive, got {alpha}"):
        mixup(jax.random.key(0), jnp.zeros((2, 1, 1, 1)), jnp.eye(2), alpha)


def test_an_alpha_of_zero_that_is_traced_mixes_nothing():
    images, targets = jnp.asarray(random_images(4, 3, 2, 2)) / 7, jnp.asarray(one_hot(4, 3))
    mixed, soft = jax.jit(mixup)(jax.random.key(0), images, targets, jnp.float32(0))
    np.testing.assert_array_equal(mixed, images)
    np.testing.assert_array_equal(soft, targets)


def test_a_traced_alpha_draws_what_the_number_draws():
    images, targets = jnp.zeros((2, 1, 1, 1)), jnp.eye(2)
    keys = jax.random.split(jax.random.key(0), 200)
    traced = jax.jit(jax.vmap(lambda key, alpha: mixup(key, images, targets, alpha)[1][0, 0], in_axes=(0, None)))
    static = jax.jit(jax.vmap(lambda key: mixup(key, images, targets, 0.3)[1][0, 0]))
    np.testing.assert_allclose(traced(keys, jnp.float32(0.3)), static(keys), rtol=1e-5, atol=1e-6)
    for alpha in (1e-3, 1e-7, 1e-30):  # as early in a ramp
        weights = np.asarray(traced(keys, jnp.float32(alpha)))
        assert np.isin(weights.round(3), (0, 1)).mean() > 0.95
        assert 0.3 < weights.mean() < 0.7


# Cutmix


@pytest.mark.parametrize("shape", [(3, 9, 7, 2), (5, 4, 6, 1), (2, 1, 1, 3)])
def test_cutmix_takes_a_rectangle_of_the_image_before_and_its_share_of_the_target(shape):
    images, targets = random_images(*shape).astype(np.float32), one_hot(shape[0], shape[0])
    before = np.roll(images, 1, axis=0)
    for seed in range(20):
        mixed, soft = cutmix(jax.random.key(seed), jnp.asarray(images), jnp.asarray(targets), 1.0)
        taken = (np.asarray(mixed) == before).all(axis=(0, 3))
        np.testing.assert_array_equal(mixed, np.where(taken[None, :, :, None], before, images))
        np.testing.assert_array_equal(taken, taken.any(axis=1)[:, None] & taken.any(axis=0)[None])
        share = taken.mean()
        np.testing.assert_allclose(soft, (1 - share) * targets + share * np.roll(targets, 1, axis=0), atol=1e-6)


@pytest.mark.parametrize("alpha", [0.3, pytest.param(1.0, marks=pytest.mark.slow)])
def test_areas_follow_the_published_law_and_targets_have_the_share_of_the_pixels(alpha):
    h, w, n = 24, 40, 2000
    images = jnp.arange(2.0).reshape(2, 1, 1, 1) * jnp.ones((1, h, w, 1))
    keys = jax.random.split(jax.random.key(0), n)
    mixed, soft = jax.jit(jax.vmap(lambda key: cutmix(key, images, jnp.eye(2), alpha)))(keys)
    np.testing.assert_array_equal(mixed[:, 0], 1 - mixed[:, 1])  # one rectangle for the whole batch
    share = np.asarray(soft[:, 0, 1], np.float64)
    np.testing.assert_allclose(share, np.asarray(mixed[:, 0]).mean(axis=(1, 2, 3)), atol=1e-6)

    rng = np.random.default_rng(0)
    side = np.sqrt(1 - rng.beta(alpha, alpha, 20_000))
    expected = np.ones(20_000)
    for length in (h, w):
        size = np.floor(side * length)
        first = rng.integers(0, length, 20_000) - size // 2
        expected *= (np.minimum(first + size, length) - np.maximum(first, 0)) / length
    assert stats.ks_2samp(share, expected).pvalue > 1e-3


def test_cutmix_leaves_a_batch_of_one_as_it_is():
    image, target = jnp.full((1, 3, 3, 1), 0.3), jnp.array([[0.1, 0.9]])
    for seed in range(5):
        mixed, soft = cutmix(jax.random.key(seed), image, target, 1.0)
        np.testing.assert_array_equal(mixed, image)
        np.testing.assert_array_equal(soft, target)


@pytest.mark.parametrize("alpha", [0.0, -1.0])
def test_cutmix_rejects_alpha(alpha):
    with pytest.raises(ValueError, match=f"alpha must be positive, got {alpha}; leave cutmix out"):
        cutmix(jax.random.key(0), jnp.zeros((2, 1, 1, 1)), jnp.eye(2), alpha)


# One of the two


@pytest.mark.slow
def test_half_of_the_batches_are_cut_and_the_others_mixed_by_the_draws_of_each_alone():
    n = 400
    images, targets = jnp.asarray(random_images(3, 6, 5, 2), jnp.float32), jnp.eye(3)
    keys = tuple(jax.random.split(jax.random.key(i), n) for i in range(3))

    def all_three(*keys):
        both = mixup_or_cutmix(keys, images, targets, 0.4, 1.0)
        return both, mixup(keys[0], images, targets, 0.4), cutmix(keys[1], images, targets, 1.0)

    both, mixed, cut = jax.tree.map(np.asarray, jax.jit(jax.vmap(all_three))(*keys))
    equal = [
        [all(np.array_equal(b[i], o[i]) for b, o in zip(both, other, strict=True)) for i in range(n)]
        for other in (mixed, cut)
    ]
    is_mixed, is_cut = np.array(equal)
    assert (is_mixed | is_cut).all()
    assert stats.binomtest(int(is_cut[is_mixed != is_cut].sum()), int((is_mixed != is_cut).sum()), 0.5).pvalue > 1e-3
