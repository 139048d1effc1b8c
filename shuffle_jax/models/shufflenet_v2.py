"""ShuffleNetV2 (Ma, Zhang, Zheng and Sun, 2018)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import field
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from shuffle_jax.models.classifier import classify
from shuffle_jax.models.sampling import Halving, Sampling, check_sizes
from shuffle_jax.models.sizes import Node, Side, multiple_of, sizes_of
from shuffle_jax.models.stem import Stem, StemKind
from shuffle_jax.nn import BatchNorm, ChannelShuffle, DepthwiseConv, PointwiseConv
from shuffle_jax.nn.dense import Dense
from shuffle_jax.typing import Array, Float, Images, Outputs

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
        sizes: channels one by one, in place of ``width``: of the stem; for each stage those of its output, which are
            even, and those between the 1x1 convolutions of each of its units; of the last 1x1 convolution.
        sampling: factory of what samples in place of strides, :class:`shuffle_jax.models.sampling.Halving`, as
            :class:`shuffle_jax.nn.polyphase.PolyphaseSampling` does; every convolution then wraps. None for strides.
        depthwise: factory of the depthwise convolutions, called as
            ``depthwise(stride=..., padding=..., dtype=..., name=...)``.
    """

    classes: int
    width: float = 1.0
    stem: StemKind = "imagenet"
    mixer: Callable[..., nn.Module] = ChannelShuffle
    pointwise: Callable[..., nn.Module] = PointwiseConv
    dtype: jnp.dtype | None = None
    head: Callable[..., nn.Module] = field(default_factory=lambda: Dense)
    dropout: float = 0.0
    sizes: tuple[int, ...] = ()
    sampling: Sampling | None = None
    depthwise: Callable[..., nn.Module] = field(default_factory=lambda: DepthwiseConv)

    @property
    def mixing_groups(self) -> int:
        """Channel groups that a mixer brings together: the two branches of a unit."""
        return 2

    @nn.nowrap
    def all_sizes(self) -> tuple[int, ...]:
        """The sizes given, or those of the width, in the order of ``sizes``.

        Raises:
            ValueError: the width is not published, or the sizes do not fit.
        """
        if self.width not in WIDTHS:
            raise ValueError(f"ShuffleNetV2 has no width {self.width}: choose one of {list(WIDTHS)}")
        *stages, last = WIDTHS[self.width]
        inner = [size for f, units in zip(stages, UNITS, strict=True) for size in (f, *units * (f // 2,))]
        return sizes_of("ShuffleNetV2", self.sizes, (STEM, *inner, last), self.width)

    @nn.nowrap
    def nodes(self) -> tuple[Node, ...]:
        """The sizes with the sides of 1x1 convolutions and stem that have them; of a stage's most have half of it."""
        one = multiple_of(self.pointwise(features=1, groups=1))
        whole = math.lcm(2 * one, multiple_of(self.mixer()))
        sizes = iter(self.all_sizes())
        ends: dict[int, tuple[Side, ...]] = {
            stage: ((f"stage{stage}_0/left_pointwise", "in"), (f"stage{stage}_0/pointwise1", "in"))
            for stage, _ in enumerate(UNITS, start=2)
        }
        ends[max(ends) + 1] = (("conv5", "in"),)
        found = [Node("stem", next(sizes), one, (("stem/conv", "out"), *ends[2]))]
        for stage, units in enumerate(UNITS, start=2):
            paths = [f"stage{stage}_{i}" for i in range(units)]
            outputs: list[Side] = [(f"{paths[0]}/left_pointwise", "out"), *((f"{p}/pointwise2", "out") for p in paths)]
            halves: list[Side] = [(f"{path}/pointwise1", "in") for path in paths[1:]]
            found.append(Node(f"stage{stage}", next(sizes), whole, (*outputs, *halves, *ends[stage + 1])))
            for path in paths:
                found.append(
                    Node(path, next(sizes), one, ((f"{path}/pointwise1", "out"), (f"{path}/pointwise2", "in")))
                )
        found.append(Node("conv5", next(sizes), one, (("conv5", "out"),)))
        return tuple(found)

    @nn.compact
    def __call__(self, x: Images, train: bool = False) -> Float[Array, "n classes"]:
        """Maps images ``(n, h, w, 3)`` (or any number of channels) to float32 logits ``(n, classes)``.

        Raises:
            ValueError: the width is not published, the dropout is out of range, or the image cannot be sampled.
        """
        check_sizes(x, self.sampling, len(UNITS) + (0 if self.stem == "small" else 2))
        stem, *inner, last = self.all_sizes()
        remaining = iter(inner)
        parts: dict[str, Any] = {"mixer": self.mixer, "pointwise": self.pointwise, "sampling": self.sampling}
        parts["depthwise"] = self.depthwise
        unit: Callable[..., nn.Module] = partial(Unit, dtype=self.dtype, **parts)

        x = Stem(stem, self.stem, self.dtype, sampling=self.sampling, name="stem")(x, train)
        for stage, units in enumerate(UNITS, start=2):
            features = next(remaining)
            for i, inside in zip(range(units), remaining, strict=False):
                x = unit(features, stride=2 if i == 0 else 1, inside=inside, name=f"stage{stage}_{i}")(x, train)
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
        inside: channels between the 1x1 convolutions, half of ``features`` by default.
        sampling: factory of what samples in place of the stride, if anything does.
        depthwise: factory of the depthwise convolutions.
    """

    features: int
    stride: int
    mixer: Callable[..., nn.Module]
    pointwise: Callable[..., nn.Module]
    dtype: jnp.dtype | None = None
    inside: int | None = None
    sampling: Sampling | None = None
    depthwise: Callable[..., nn.Module] = field(default_factory=lambda: DepthwiseConv)

    @nn.compact
    def __call__(self, x: Images, train: bool = False) -> Outputs:
        """Maps ``(n, h, w, c)`` to ``(n, ceil(h / stride), ceil(w / stride), features)``."""
        to = partial(self.pointwise, groups=1, dtype=self.dtype)
        half = self.features // 2
        pointwise, inside = partial(to, features=half), half if self.inside is None else self.inside
        halving = Halving(self.stride, self.sampling)
        depthwise = partial(self.depthwise, stride=halving.stride, padding=halving.padding, dtype=self.dtype)
        norm = partial(BatchNorm, dtype=self.dtype)

        if self.stride == 1:
            left, right = jnp.split(x, 2, axis=-1)
        else:
            left, right = norm(name="left_norm1")(depthwise(name="left_depthwise")(x), train), x
        right = nn.relu(norm(name="norm1")(to(features=inside, name="pointwise1")(right, train=train), train))
        right = norm(name="norm2")(depthwise(name="depthwise")(right), train)
        if self.stride > 1:
            right, left = halving(right, left)
            left = nn.relu(norm(name="left_norm2")(pointwise(name="left_pointwise")(left, train=train), train))
        right = nn.relu(norm(name="norm3")(pointwise(name="pointwise2")(right, train=train), train))
        return self.mixer(name="mixer")(jnp.concatenate([left, right], axis=-1), train=train)
