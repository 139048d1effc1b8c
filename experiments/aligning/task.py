"""A task that needs a permutation for each image: every image's channels arrive in one of a few orders."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from shuffle_jax.nn import BatchNorm, Conv, Dense, DepthwiseConv
from shuffle_jax.ops import kronecker
from shuffle_jax.ops.permutation import to_matrix
from shuffle_jax.typing import Array, Float, Images, Int, UInt8

Source = Literal["digits", "seed"]
TASK = "task"
"""The collection of what a seed draws: ``orders`` and ``offsets``. Not trained."""

CLASSES = 10
SIDE = 8


class Pictures(NamedTuple):
    """Grey images to train and test on, in ten classes.

    Attributes:
        images: to train on, (n, 8, 8, 1).
        labels: theirs.
        test_images: (m, 8, 8, 1).
        test_labels: theirs.
    """

    images: UInt8[np.ndarray, "n 8 8 1"]
    labels: Int[np.ndarray, " n"]
    test_images: UInt8[np.ndarray, "m 8 8 1"]
    test_labels: Int[np.ndarray, " m"]

    @property
    def mean_std(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """For the normalisation of grey levels and of the number of the order, which stays as it is."""
        return (float(self.images.mean() / 255), 0.0), (float(self.images.std() / 255), 1 / 255)


def pictures(source: Source) -> Pictures:
    """Scikit-learn's digits, or as many images that are made up: a smooth pattern a class, moved, fainter and noisy."""
    if source == "digits":
        from shuffle_jax.data import DigitsConfig, load

        data = load(DigitsConfig())
        train, test = (split.take(np.arange(len(split))) for split in (data.train, data.test))
        return Pictures(*train, *test)
    rng = np.random.default_rng(0)
    waves = np.cos(np.pi * np.outer(np.arange(3), np.arange(SIDE) + 0.5) / SIDE)
    patterns = np.einsum("cij,iy,jx->cyx", rng.standard_normal((CLASSES, 3, 3)), waves, waves)
    patterns /= np.abs(patterns).max((1, 2), keepdims=True)
    labels = np.arange(1800) % CLASSES
    moved = [np.roll(patterns[label], rng.integers(-1, 2, 2), (0, 1)) for label in labels]
    grey = np.stack(moved) * rng.uniform(0.5, 1, (len(labels), 1, 1)) + 0.3 * rng.standard_normal((len(labels), 8, 8))
    images = np.clip(128 + 100 * grey, 0, 255).astype(np.uint8)[..., None]
    labels = labels.astype(np.int32)
    return Pictures(images[:1440], labels[:1440], images[1440:], labels[1440:])


def in_order(images: UInt8[Array, "n 8 8 1"], numbers: Int[Array, " n"]) -> UInt8[Array, "n 8 8 2"]:
    """The images with the number of their order, which :class:`Scrambled` reads, as a second channel."""
    second = jnp.broadcast_to(numbers[:, None, None, None], images.shape)
    return jnp.concatenate([images, second.astype(images.dtype)], axis=-1)


def balanced_numbers(images: int, orders: int) -> Int[np.ndarray, " m"]:
    """Of each test image the number of its order, each as often as the others, always the same."""
    numbers: np.ndarray = np.random.default_rng(0).permutation(np.arange(images) % orders)
    return numbers


def draw(
    seed: int, channels: int, orders: int, *, groups: int = 1, copies: int = 1, depth: int = 1
) -> dict[str, np.ndarray]:
    """What a seed draws for :class:`Scrambled`: different orders that factors can undo, and what tells channels apart.

    An order is the inverse of the permutation ``S_G (I_G kron A kron B)`` of random factors, so that a mixer that makes
    them puts the channels into their own order, and one that makes others of one common product into a common one.

    Args:
        seed: of everything.
        channels: c.
        orders: K, how many different ones.
        groups: G of the mixer.
        copies: pairs of factors in an order: 1 for all groups, or one for each.
        depth: mixers in the network, each with orders of its own.

    Returns:
        ``orders`` (depth, K, c) int32 index vectors and ``offsets`` (depth, c) float32.

    Raises:
        ValueError: there are not so many different orders.
    """
    rng = np.random.default_rng(seed)
    p, q = kronecker.group_factors(channels, groups)
    possible = (math.factorial(p) * math.factorial(q)) ** copies
    if orders > possible:
        raise ValueError(
            f"factors of {p} and {q} have {possible} different orders, got {orders}: lower --orders or raise --channels"
        )
    every = []
    for _ in range(depth):
        found: dict[bytes, np.ndarray] = {}
        while len(found) < orders:
            outer, inner = (np.stack([rng.permutation(size) for _ in range(copies)]) for size in (p, q))
            index = mixer_index(outer[None], inner[None], groups)[0]
            found[index.tobytes()] = np.argsort(index)
        every.append(np.stack(list(found.values())))
    offsets = rng.standard_normal((depth, channels))
    return {"orders": np.stack(every).astype(np.int32), "offsets": offsets.astype(np.float32)}


def mixer_index(
    outer: Int[np.ndarray, "n k p"], inner: Int[np.ndarray, "n k q"], groups: int
) -> Int[np.ndarray, "n c"]:
    """What :func:`shuffle_jax.ops.kronecker.index` gives, for one pair or one for each group, compiling nothing.

    ``r[(i q + j) G + k] = k p q + outer[k, i] q + inner[k, j]``
    """
    q = inner.shape[-1]
    tables = outer[..., :, None] * q + inner[..., None, :]
    size = tables.shape[-2] * q
    whole: np.ndarray = tables + size * np.arange(groups)[:, None, None]
    return np.moveaxis(whole, 1, -1).reshape(len(whole), -1)


class Scrambled(nn.Module):
    """A small classifier in which the channels of each image are put into one of K orders, before each mixer.

    A convolution makes c channels of the image, the same in all orders. Then, for each mixer: fixed offsets, by whose
    means a head can tell the channels and so the order; the order of the image; the mixer; and two depthwise layers
    with norms, which treat each channel in their own way. Their means over the four quarters of the image are
    classified.

    Attributes:
        mixer: factory of the mixers, called as ``mixer(name=...)``.
        channels: c.
        orders: K.
        depth: how many mixers.
    """

    mixer: Callable[..., nn.Module]
    channels: int
    orders: int
    depth: int = 1

    @nn.compact
    def __call__(self, x: Images, train: bool = False) -> Float[Array, "n 10"]:
        """Maps images of :func:`in_order` to logits; the collection "task" holds what :func:`draw` gives."""
        shape = (self.depth, self.orders, self.channels)
        orders = self.variable(TASK, "orders", jnp.zeros, shape, jnp.int32).value
        offsets = self.variable(TASK, "offsets", jnp.zeros, (self.depth, self.channels)).value
        number = jnp.round(x[:, 0, 0, 1]).astype(jnp.int32)
        x = Conv(self.channels, name="stem")(x[..., :1], train)
        for place in range(self.depth):
            x = x + offsets[place][None, None, None]
            x = jnp.einsum("nij,nhwj->nhwi", to_matrix(orders[place])[number], x)
            x = self.mixer(name=f"mixer{place}")(x, train)
            for layer in ("first", "second"):
                x = DepthwiseConv(name=f"{layer}{place}")(x, train)
                x = nn.relu(BatchNorm(name=f"{layer}{place}_norm")(x, train))
        n, h, w, c = x.shape
        quarters = x.reshape(n, 2, h // 2, 2, w // 2, c).mean((2, 4))
        return Dense(CLASSES, name="classifier")(quarters.reshape(n, -1), train)
