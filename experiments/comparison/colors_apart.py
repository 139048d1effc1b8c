"""A network whose first mixer meets the colours of its input one by one, for `experiments.compare`."""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn

from shuffle_jax.models.shufflenet_v2 import ShuffleNetV2
from shuffle_jax.models.stem import StemKind
from shuffle_jax.nn import BatchNorm, ChannelShuffle, Conv
from shuffle_jax.typing import Array, Float, Images


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


class ColorsApart(nn.Module):
    """One mixer behind :class:`FilteredColors`, in groups of the three colours, then a ShuffleNetV2 as it is published.

    Attributes:
        classes: number of classes.
        width: of the ShuffleNetV2.
        stem: of the ShuffleNetV2.
        mixer: factory of the mixer, called as ``mixer(name="mixer")``.
        kernels: of the filters.
    """

    classes: int
    width: float = 0.5
    stem: StemKind = "small"
    mixer: Callable[..., nn.Module] = ChannelShuffle
    kernels: int = 8

    @property
    def mixing_groups(self) -> int:
        """Channel groups of the mixer: one for each kernel."""
        return self.kernels

    @nn.compact
    def __call__(self, x: Images, train: bool = False) -> Float[Array, "n classes"]:
        """Maps images ``(n, h, w, c)`` to float32 logits ``(n, classes)``."""
        x = FilteredColors(self.kernels, name="filters")(x)
        x = nn.relu(BatchNorm(name="norm")(x, train))
        x = self.mixer(name="mixer")(x, train=train)
        return ShuffleNetV2(self.classes, self.width, self.stem, name="body")(x, train)
