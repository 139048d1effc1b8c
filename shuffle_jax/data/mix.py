"""Pairs of images mixed, and their targets with them: mixup and cutmix; pure functions for ``jax.jit``."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from shuffle_jax.data.erase import within
from shuffle_jax.typing import Array, Bool, Float, Images, Key


def mixup(
    key: Key, images: Images, targets: Float[Array, "n k"], alpha: float | Float[Array, ""]
) -> tuple[Images, Float[Array, "n k"]]:
    """Mixes every image, and its target, with the one before it in the batch.

    ``x~[i] = t x[i] + (1 - t) x[i - 1]`` and the same for the targets, with the index taken round the batch
    and one t ~ Beta(alpha, alpha) for the whole batch, as in the authors' code. They pair by a random
    permutation; in a batch drawn in random order the neighbour is as random, its pairs are n different ones,
    and over devices it moves one image per device where a permutation gathers the batch. A batch of one is
    left as it is.

    Args:
        key: the random key.
        images: float32 (n, h, w, c).
        targets: float32 (n, k), each row a distribution over the classes.
        alpha: positive; small keeps t near 0 and 1, 1 is uniform. An array may be 0 as well, and then mixes nothing.

    Returns:
        The mixed images and targets.

    Raises:
        ValueError: alpha is not positive.

    Source: H. Zhang, M. Cisse, Y. N. Dauphin, D. Lopez-Paz, "mixup: Beyond Empirical Risk Minimization", ICLR
    2018.
    """
    t = _mixup_share(key, alpha)
    return _mix(t, images, _before(images)), _mix(t, targets, _before(targets))


def cutmix(key: Key, images: Images, targets: Float[Array, "n k"], alpha: float) -> tuple[Images, Float[Array, "n k"]]:
    """Replaces a rectangle of every image by that of the image before it in the batch, and a share of its target.

    ``x~[i, r, s] = x[i - 1, r, s]`` inside the rectangle and ``x[i, r, s]`` outside,
    ``y~[i] = t y[i] + (1 - t) y[i - 1]`` with t the share of the pixels outside. The rectangle is one for the whole
    batch, as in the authors' code: with u ~ Beta(alpha, alpha) its sides are ``sqrt(1 - u)`` of those of the image,
    rounded down, its centre is uniform over the pixels, and what lies outside the image is lost, so that t is u or
    more. Why the neighbour: see :func:`mixup`. A batch of one is left as it is.

    Args:
        key: the random key.
        images: float32 (n, h, w, c).
        targets: float32 (n, k), each row a distribution over the classes.
        alpha: positive; 1, the paper's, is uniform.

    Returns:
        The mixed images and targets.

    Raises:
        ValueError: alpha is not positive.

    Source: S. Yun et al., "CutMix: Regularization Strategy to Train Strong Classifiers with Localizable Features",
    ICCV 2019.
    """
    inside, t = _rectangle(key, alpha, *images.shape[1:3])
    return jnp.where(inside, _before(images), images), _mix(t, targets, _before(targets))


def mixup_or_cutmix(
    keys: tuple[Key, Key, Key],
    images: Images,
    targets: Float[Array, "n k"],
    mixup_alpha: float | Float[Array, ""],
    cutmix_alpha: float,
) -> tuple[Images, Float[Array, "n k"]]:
    """Either :func:`mixup` or :func:`cutmix` for the whole batch, with probability 1/2 each.

    Args:
        keys: of mixup, of cutmix, and of the choice.
        images: float32 (n, h, w, c).
        targets: float32 (n, k), each row a distribution over the classes.
        mixup_alpha: as mixup takes it.
        cutmix_alpha: as cutmix takes it.

    Returns:
        The mixed images and targets.
    """
    mixup_key, cutmix_key, choice_key = keys
    t, (inside, t_cut) = _mixup_share(mixup_key, mixup_alpha), _rectangle(cutmix_key, cutmix_alpha, *images.shape[1:3])
    cut = jax.random.bernoulli(choice_key)
    before = _before(images)  # once: both need it, and over devices it is an exchange
    mixed = jnp.where(cut, jnp.where(inside, before, images), _mix(t, images, before))
    return mixed, _mix(jnp.where(cut, t_cut, t), targets, _before(targets))


def _mixup_share(key: Key, alpha: float | Float[Array, ""]) -> Float[Array, ""]:
    if isinstance(alpha, jax.Array):
        mixes = alpha > 0
        shape = jnp.where(mixes, alpha, 1)
        return jnp.where(mixes, jax.random.beta(key, shape, shape, dtype=jnp.float32), 1)
    if alpha <= 0:
        raise ValueError(f"alpha must be positive, got {alpha}; leave mixup out to mix nothing")
    return jax.random.beta(key, alpha, alpha, dtype=jnp.float32)


def _rectangle(key: Key, alpha: float, h: int, w: int) -> tuple[Bool[Array, "1 h w 1"], Float[Array, ""]]:
    """Which pixels are of the image before, and the share of the others."""
    if alpha <= 0:
        raise ValueError(f"alpha must be positive, got {alpha}; leave cutmix out to mix nothing")
    area_key, row_key, column_key = jax.random.split(key, 3)
    side = jnp.sqrt(1 - jax.random.beta(area_key, alpha, alpha, dtype=jnp.float32))
    rows, columns = (jnp.floor(side * length).astype(jnp.int32) for length in (h, w))
    inside_rows = within(jax.random.randint(row_key, (1, 1), 0, h, jnp.int32) - rows // 2, rows, h)
    inside_columns = within(jax.random.randint(column_key, (1, 1), 0, w, jnp.int32) - columns // 2, columns, w)
    inside = inside_rows[:, :, None, None] & inside_columns[:, None, :, None]
    return inside, 1 - inside.sum(dtype=jnp.float32) / (h * w)


def _before(values: Float[Array, "n *rest"]) -> Float[Array, "n *rest"]:
    return jnp.roll(values, 1, axis=0)


def _mix(
    t: Float[Array, ""], values: Float[Array, "n *rest"], before: Float[Array, "n *rest"]
) -> Float[Array, "n *rest"]:
    # Written as x + (1 - t) (x' - x) so that mixing an image with itself changes no bit of it.
    rest = (1 - t).astype(values.dtype)
    return values + rest * (before - values)
