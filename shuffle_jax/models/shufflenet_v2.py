"""ShuffleNetV2 (Ma, Zhang, Zheng and Sun, 2018)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import field
from functools import partial

import flax.linen as nn
import jax.numpy as jnp

from shuffle_jax.models.classifier import classify
from shuffle_jax.models.stem import Stem, StemKind
from shuffle_jax.nn import BatchNorm, ChannelShuffle, DepthwiseConv, PointwiseConv
from shuffle_jax.nn.dense import Dense
from shuffle_jax.typing import Array, Float, Images

WIDTHS = {
    # width: channels of stage 2, 3, 4 and of the last 1x1 convolution
    0.5: (48, 96, 192, 1024),
    1.0: (116, 232, 464, 1024),
    1.5: (176, 352, 704, 1024),
    2.0: (244, 488, 976, 2048),
}
UNITS = (4, 8, 4)
STEM = 24


class ShuffleNetV2(nn.Module):
    """ShuffleNetV2 with an exchangeable shuffle and exchangeable 1x1 convolutions.

    Attributes:
        classes: number of classes.
        width: 0.5, 1.0, 1.5 or 2.0.
        stem: "imagenet", or "small" for images of 32 x 32 and below.
        mixer: factory of the 16 mixers, called as ``mixer(name=...)`` after the concatenation that ends each unit; the
            paper's shuffle in 2 groups by default.
        pointwise: factory of the 1x1 convolutions, called as
            ``pointwise(features=..., groups=1, dtype=..., name=...)``.
        dtype: type of the computation, float32 by default; parameters and statistics are float32 always.
        head: factory of the classifier, called as ``head(features=classes, name="head")``, of the mean over positions
            in float32.
        dropout: share of the classifier's inputs that training sets to 0, by the random stream "dropout".
    """

    classes: int
    width: float = 1.0
    stem: StemKind = "imagenet"
    mixer: Callable[..., nn.Module] = ChannelShuffle
    pointwise: Callable[..., nn.Module] = PointwiseConv
    dtype: jnp.dtype | None = None
    head: Callable[..., nn.Module] = field(default_factory=lambda: Dense)
    dropout: float = 0.0

    @property
    def mixing_groups(self) -> int:
        """Channel groups that a mixer brings together: the two branches of a unit."""
        return 2

    @nn.compact
    def __call__(self, x: Images, train: bool = False) -> Float[Array, "n classes"]:
        """Maps images ``(n, h, w, 3)`` (or any number of channels) to float32 logits ``(n, classes)``.

        Raises:
            ValueError: the width is not published, or the dropout is out of range.
        """
        if self.width not in WIDTHS:
            raise ValueError(f"ShuffleNetV2 has no width {self.width}: choose one of {list(WIDTHS)}")
        *stages, last = WIDTHS[self.width]
        unit = partial(Unit, mixer=self.mixer, pointwise=self.pointwise, dtype=self.dtype)

        x = Stem(STEM, self.stem, self.dtype, name="stem")(x, train)
        for stage, (features, units) in enumerate(zip(stages, UNITS, strict=True), start=2):
            for i in range(units):
                x = unit(features, stride=2 if i == 0 else 1, name=f"stage{stage}_{i}")(x, train)
        x = self.pointwise(features=last, groups=1, dtype=self.dtype, name="conv5")(x, train=train)
        x = nn.relu(BatchNorm(self.dtype, name="norm5")(x, train))
        return classify(x, self.classes, self.head, self.dropout, train)


class Unit(nn.Module):
    """One unit: half the channels pass through, half are transformed, both are concatenated and mixed.

    With stride 2 both branches see all channels, and the first has a depthwise convolution of its own.

    Attributes:
        features: output channels, even.
        stride: 1 or 2; with 1 the input must have ``features`` channels.
        mixer: factory of the mixer that ends the unit.
        pointwise: factory of the 1x1 convolutions.
        dtype: type of the computation.
    """

    features: int
    stride: int
    mixer: Callable[..., nn.Module]
    pointwise: Callable[..., nn.Module]
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: Images, train: bool = False) -> Images:
        """Maps ``(n, h, w, c)`` to ``(n, ceil(h / stride), ceil(w / stride), features)``."""
        pointwise = partial(self.pointwise, features=self.features // 2, groups=1, dtype=self.dtype)
        depthwise = partial(DepthwiseConv, stride=self.stride, dtype=self.dtype)
        norm = partial(BatchNorm, dtype=self.dtype)

        if self.stride == 1:
            left, right = jnp.split(x, 2, axis=-1)
        else:
            left, right = x, x
            left = norm(name="left_norm1")(depthwise(name="left_depthwise")(left), train)
            left = nn.relu(norm(name="left_norm2")(pointwise(name="left_pointwise")(left, train=train), train))
        right = nn.relu(norm(name="norm1")(pointwise(name="pointwise1")(right, train=train), train))
        right = norm(name="norm2")(depthwise(name="depthwise")(right), train)
        right = nn.relu(norm(name="norm3")(pointwise(name="pointwise2")(right, train=train), train))
        return self.mixer(name="mixer")(jnp.concatenate([left, right], axis=-1), train=train)
