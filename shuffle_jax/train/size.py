"""Whether images are large enough for a network to see more than one pixel of them."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict

from shuffle_jax.models import NetworkConfig

STEM_STRIDE = 4
"""The most by which the stem of a network here divides height and width: larger images leave several pixels."""

SMALL_BELOW = 48
"""Sides below which the stem for ImageNet leaves the later layers a single pixel or two."""


def check_size(network: nn.Module, image_shape: tuple[int, int, int]) -> None:
    """Raises a ValueError if no layer behind the stem sees more than one pixel.

    Nothing is left to be learned from neighbours then, and batch norms divide by the deviation of a few values.

    Args:
        network: called as ``network(images, train=False)``.
        image_shape: (h, w, c).
    """
    height, width, channels = image_shape
    if max(height, width) > STEM_STRIDE or _sees_pixels(network, image_shape):
        return
    sizes = range(max(height, width) + 1, STEM_STRIDE + 2)
    least = next(size for size in sizes if size == sizes[-1] or _sees_pixels(network, (size, size, channels)))
    raise ValueError(
        f"the images must be at least {least}x{least} for this network, got {height}x{width}, of which its stem leaves "
        "one pixel: raise --data.image-size, or choose --network.stem small if it is imagenet"
    )


def small_images(config: NetworkConfig, image_shape: tuple[int, int, int]) -> list[str]:
    """A line for small images before the stem for ImageNet; none if there is nothing to say."""
    height, width, _ = image_shape
    if config.stem != "imagenet" or min(height, width) >= SMALL_BELOW:
        return []
    return [
        f"warning: the stem for ImageNet leaves little of {height}x{width} images: below {SMALL_BELOW} pixels "
        "--network.stem small usually learns more"
    ]


def _sees_pixels(network: nn.Module, image_shape: tuple[int, int, int]) -> bool:
    """Whether the output of any layer outside of the stem has more than one pixel; a network without images has."""

    def traced() -> object:
        images = jnp.zeros((1, *image_shape), jnp.float32)
        return network.init_with_output(jax.random.key(0), images, train=False, capture_intermediates=True)[1]

    outputs = flatten_dict(dict(jax.eval_shape(traced))["intermediates"], sep="/")  # type: ignore[call-overload]
    shapes = [
        leaf.shape[1:3]
        for path, leaves in outputs.items()
        if not path.startswith(("stem", "__call__"))
        for leaf in jax.tree.leaves(leaves)
        if leaf.ndim == 4
    ]
    return not shapes or any(shape != (1, 1) for shape in shapes)
