"""Which module here is which module there: one function for each published network.

A table is pairs of the path of a module here and its name there; of the two arrays of a dynamic convolution that are
modules there, the path of the array.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Literal, NamedTuple

import flax.linen as nn
import numpy as np

from shuffle_jax.models import coresnet, mobilenet_v2, resnet, shufflenet_v2
from shuffle_jax.models.convert.names import plain

Source = Literal["torchvision", "dcd", "coconv"]
"""Whose names: torchvision's, or those of the authors of dynamic convolution decomposition, or of contextual
convolution."""

Modules = Iterator[tuple[str, str]]

SHUFFLENET_V2_UNIT = {
    "left_depthwise": "branch1.0",
    "left_norm1": "branch1.1",
    "left_pointwise": "branch1.2",
    "left_norm2": "branch1.3",
    "pointwise1": "branch2.0",
    "norm1": "branch2.1",
    "depthwise": "branch2.3",
    "norm2": "branch2.4",
    "pointwise2": "branch2.5",
    "norm3": "branch2.6",
}
MOBILENET_V2_UNITS: dict[Source, tuple[dict[str, str], dict[str, str]]] = {
    # the unit of the first stage, which does not expand; all others
    "torchvision": (
        {"depthwise": "0.0", "norm2": "0.1", "project": "1", "norm3": "2"},
        {"expand": "0.0", "norm1": "0.1", "depthwise": "1.0", "norm2": "1.1", "project": "2", "norm3": "3"},
    ),
    "dcd": (
        {"depthwise": "0", "norm2": "1", "project": "3", "norm3": "4"},
        {"expand": "0", "norm1": "1", "depthwise": "3", "norm2": "4", "project": "6", "norm3": "7"},
    ),
}
RESNET_UNIT = {
    "conv1": "conv1",
    "norm1": "bn1",
    "conv2": "conv2",
    "norm2": "bn2",
    "conv3": "conv3",
    "norm3": "bn3",
    "downsample": "downsample.0",
    "downsample_norm": "downsample.1",
}
GENERATOR = {
    "generator/squeeze": "fc.0",
    "generator/gate": "fc.1.fc.0",
    "generator/fusion": "fc_phi",
    "generator/scale": "fc_scale",
    "norm1": "bn1",
    "norm2": "bn2",
}
HEADS: dict[Source, tuple[str, ...]] = {
    "torchvision": ("fc", "classifier.1"),
    "dcd": ("classifier.0", "classifier.1", "classifier", "fc"),  # .1 where dropout comes before it
    "coconv": ("fc",),
}


class Factors(NamedTuple):
    """What the authors call W0, Q and P: another name in each of their modules."""

    kernel: str
    q: str
    p: str


MOBILENET = Factors("conv", "conv_q", "conv_p")
RESNET = Factors("conv", "q", "p")
CLASSIFIER = Factors("cls", "cls_q", "cls_p")


def modules(source: Source, network: nn.Module, dynamic: Collection[str], names: Collection[str]) -> Modules:
    """The table of a network.

    Args:
        source: whose names.
        network: a ShuffleNetV2, MobileNetV2, ResNet or CoResNet.
        dynamic: paths of its dynamic convolutions.
        names: of the arrays there are; they tell the place of the authors' classifier.

    Raises:
        ValueError: the source has no such network.
    """
    match source, network:
        case "torchvision", shufflenet_v2.ShuffleNetV2():
            return torchvision_shufflenet_v2()
        case "torchvision", mobilenet_v2.MobileNetV2():
            return torchvision_mobilenet_v2()
        case "torchvision", resnet.ResNet(depth=depth):
            return torchvision_resnet(depth)
        case "dcd", mobilenet_v2.MobileNetV2():
            return decomposed(dcd_mobilenet_v2(head(source, names)), dynamic, MOBILENET)
        case "dcd", resnet.ResNet(depth=depth):
            return decomposed(dcd_resnet(depth, head(source, names)), dynamic, RESNET)
        case "coconv", coresnet.CoResNet(depth=depth):
            return coconv_coresnet(depth)
    known = {
        "torchvision": "ShuffleNetV2, MobileNetV2 and ResNet",
        "dcd": "MobileNetV2 and ResNet",
        "coconv": "CoResNet",
    }
    raise ValueError(f"{source} has no {type(network).__name__}: choose {known[source]}")


def torchvision_shufflenet_v2() -> Modules:
    """ShuffleNetV2; branch1, the left one, is empty in units of stride 1."""
    yield "stem/conv", "conv1.0"
    yield "stem/norm", "conv1.1"
    for stage, units in enumerate(shufflenet_v2.UNITS, start=2):
        for i in range(units):
            yield from _below(f"stage{stage}_{i}", f"stage{stage}.{i}", SHUFFLENET_V2_UNIT)
    yield "conv5", "conv5.0"
    yield "norm5", "conv5.1"
    yield "head", "fc"


def torchvision_mobilenet_v2() -> Modules:
    """MobileNetV2; the last 1x1 convolution is one more of the features."""
    yield from _mobilenet_v2_features("torchvision")
    last = 1 + sum(units for _, _, units, _ in mobilenet_v2.TABLE)
    yield "last", f"features.{last}.0"
    yield "last_norm", f"features.{last}.1"
    yield "head", "classifier.1"


def torchvision_resnet(depth: int) -> Modules:
    """ResNet."""
    yield from _resnet_features(resnet.UNITS[depth])
    yield "head", "fc"


def coconv_coresnet(depth: int) -> Modules:
    """The authors' CoResNet, whose names are those of ResNet once the levels of a layer are one array."""
    yield from _resnet_features(coresnet.UNITS[depth])
    yield "head", "fc"


def dcd_mobilenet_v2(head: str) -> Modules:
    """The authors' MobileNetV2; the last 1x1 convolution is on its own."""
    yield from _mobilenet_v2_features("dcd")
    yield "last", "conv.0"
    yield "last_norm", "conv.1"
    yield "head", head


def dcd_resnet(depth: int, head: str) -> Modules:
    """The authors' ResNet."""
    yield from _resnet_features(resnet.UNITS[depth])
    yield "head", head


def decomposed(table: Modules, dynamic: Collection[str], factors: Factors) -> Modules:
    """A table with the parts of each dynamic layer in place of the layer."""
    for ours, theirs in table:
        if f"{ours}/layer" in dynamic:
            yield from parts(f"{ours}/layer", theirs, CLASSIFIER)
        elif ours in dynamic:
            yield from parts(ours, theirs, factors)
        else:
            yield ours, theirs


def parts(ours: str, theirs: str, factors: Factors) -> Modules:
    """The parts of one dynamic layer; the empty name stands for no module around it."""
    yield ours, f"{theirs}.{factors.kernel}".removeprefix(".")
    for part, name in {"q": factors.q, "p": factors.p, **GENERATOR}.items():
        yield f"{ours}/{part}".removeprefix("/"), f"{theirs}.{name}".removeprefix(".")


def head(source: Source, names: Collection[str]) -> str:
    """The name of the classifier among those of the arrays; where there is none, the one it should have."""

    def is_there(head: str) -> bool:
        return any(f"{head}.{array}" in names for array in ("weight", "bias", "cls.weight", "cls.bias"))

    return next(filter(is_there, HEADS[source]), HEADS[source][0])


def count_classes(arrays: Mapping[str, np.ndarray], source: Source) -> int | None:
    """The number of logits that a state-dict makes, by its classifier; None if there is none.

    >>> count_classes({"classifier.1.weight": np.zeros((10, 1280))}, "torchvision")
    10
    """
    arrays = plain(arrays)
    name = head(source, arrays)
    found = (arrays.get(f"{name}.{array}") for array in ("weight", "bias", "cls.weight", "cls.bias"))
    return next((len(array) for array in found if array is not None and array.ndim), None)


def _mobilenet_v2_features(source: Source) -> Modules:
    yield "stem/conv", "features.0.0"
    yield "stem/norm", "features.0.1"
    first, others = MOBILENET_V2_UNITS[source]
    position = 0
    for stage, (expansion, _, units, _) in enumerate(mobilenet_v2.TABLE, start=1):
        for i in range(units):
            position += 1
            unit = first if expansion == 1 else others
            yield from _below(f"stage{stage}_{i}", f"features.{position}.conv", unit)


def _resnet_features(stages: tuple[int, ...]) -> Modules:
    """All have the names of torchvision; of a unit that keeps its shape there is no downsample."""
    yield "stem/conv", "conv1"
    yield "stem/norm", "bn1"
    for stage, units in enumerate(stages, start=1):
        for i in range(units):
            yield from _below(f"stage{stage}_{i}", f"layer{stage}.{i}", RESNET_UNIT)


def _below(ours: str, theirs: str, table: Mapping[str, str]) -> Modules:
    for module, name in table.items():
        yield f"{ours}/{module}", f"{theirs}.{name}"
