"""A network that computes each channel of its input apart, behind a mixer that can exchange them: for comparisons."""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from shuffle_jax.nn import BatchNorm, ChannelShuffle, Conv, Dense
from shuffle_jax.typing import Array, Float, Images

PLANES = np.array([[0.299, 0.587, 0.114], [-0.169, -0.331, 0.5], [0.5, -0.419, -0.081]], np.float32)
"""Brightness and two differences of colour, of red, green and blue (ITU-R BT.601)."""

FEATURES = (16, 32, 64)
"""Of each tower, by layer."""


class FilteredColors(nn.Module):
    """Filters every channel by the same 3 x 3 kernels: channel ``3 k + c`` is colour c filtered by kernel k.

    So an order of the colours is the same order in each group of three that comes out.

    Attributes:
        kernels: how many there are.
    """

    kernels: int

    @nn.compact
    def __call__(self, x: Images, train: bool = False) -> Images:
        """Maps ``(n, h, w, c)`` to ``(n, h, w, kernels c)``."""
        n, h, w, c = x.shape
        y = Conv(self.kernels, name="kernels")(x.transpose(0, 3, 1, 2).reshape(n * c, h, w, 1))
        return y.reshape(n, c, h, w, self.kernels).transpose(0, 2, 3, 4, 1).reshape(n, h, w, self.kernels * c)


class ColorTowers(nn.Module):
    """:class:`FilteredColors`, one mixer, and from there on three convolutions a channel until the classifier.

    The shuffle in as many groups as there are kernels, with which every mixer ends, hands each channel to its tower.
    If the channels come in different orders, a tower sees now this one, now that one, unless the mixer puts them right.

    Attributes:
        classes: number of classes.
        mixer: factory of the mixer, called as ``mixer(name="mixer")``.
        kernels: of the filters.
        planes: whether the channels are taken for red, green and blue and turned into brightness and two differences
            of colour: what ``data.vary="planes"`` gives, in one order.
    """

    classes: int
    mixer: Callable[..., nn.Module] = ChannelShuffle
    kernels: int = 8
    planes: bool = False

    @property
    def mixing_groups(self) -> int:
        """Channel groups of the mixer: one for each kernel."""
        return self.kernels

    @nn.compact
    def __call__(self, x: Images, train: bool = False) -> Float[Array, "n classes"]:
        """Maps images ``(n, h, w, c)`` to float32 logits ``(n, classes)``."""
        colors = x.shape[-1]
        if self.planes:
            x = x @ jnp.asarray(PLANES.T)
        x = FilteredColors(self.kernels, name="filters")(x)
        x = nn.relu(BatchNorm(name="norm")(x, train))
        x = self.mixer(name="mixer")(x, train=train)
        for i, features in enumerate(FEATURES):
            x = Conv(colors * features, stride=2, groups=colors, name=f"towers_{i}")(x)
            x = nn.relu(BatchNorm(name=f"towers_norm_{i}")(x, train))
        return Dense(self.classes, name="head")(x.mean((1, 2)))
