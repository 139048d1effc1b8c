"""Every published network of the library, by name."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from shuffle_jax.models import addressnet, mobilenet_v2, resnet, shift_resnet, shufflenet_v1, shufflenet_v2
from shuffle_jax.models.addressnet import Shortcut
from shuffle_jax.models.config import HeadKind, MixerKind, NetworkConfig, PointwiseKind, SpatialKind


class Entry(NamedTuple):
    """One network of the catalogue, as :func:`shuffle_jax.models.build` makes it.

    Attributes:
        config: the network.
        image_shape: (h, w, c) of its images.
        classes: number of logits.
    """

    config: NetworkConfig
    image_shape: tuple[int, int, int]
    classes: int


class Variant(NamedTuple):
    """What moves information across the channels of a network.

    Attributes:
        mixer: where a ShuffleNet shuffles.
        pointwise: its 1x1 layers; of ResNet all convolutions of its units.
        head: the classifier.
        squeeze: of "dcd".
        spatial: of MobileNetV2.
        shortcut: of AddressNet.
    """

    mixer: MixerKind
    pointwise: PointwiseKind = "plain"
    head: HeadKind = "plain"
    squeeze: int = 16
    spatial: SpatialKind = "depthwise"
    shortcut: Shortcut = "add"


SHUFFLENETS = {
    "": Variant("shuffle"),
    "auto_": Variant("auto"),
    "dynamic_": Variant("dynamic"),
    "factors_": Variant("factors"),
    "squeeze_": Variant("squeeze"),
    "static_dynamic_": Variant("shuffle", "static_dynamic"),
}
"""Variants of ShuffleNetV1 and V2 by the prefix of a name."""

RESNETS = {
    "": Variant("identity"),
    "dcd_": Variant("identity", "dcd", "dcd"),
    "condconv_": Variant("identity", "condconv"),
    "dyconv_": Variant("identity", "dyconv"),
}
"""Variants of ResNet."""

MOBILENETS = RESNETS | {
    "dcd8_": Variant("identity", "dcd", "dcd", squeeze=8),
    "address_": Variant("identity", spatial="address"),
}
"""Variants of MobileNetV2, whose decomposition is published with two sizes of its heads."""

ADDRESSNETS = {
    "": Variant("shift"),
    "enhanced_": Variant("shift", shortcut="shift"),
    "shuffle_": Variant("shuffle"),
    "auto_": Variant("auto"),
}
"""Variants of AddressNet; with the fixed shuffle it is the control of its paper."""

SHIFT_RESNETS = {"": Variant("identity")}
"""Variants of ShiftResNet."""


def catalogue() -> dict[str, Entry]:
    """Every family in every published width or depth, with the layers of its paper and with every learned variant.

    Returns:
        Entries by names such as ``shufflenet_v2_1.0x``, ``shufflenet_v1_g3_0.5x``, ``mobilenet_v2_0.5x`` and
        ``resnet18``, for 224 x 224 pixels and 1000 classes. A prefix of :data:`SHUFFLENETS`, :data:`MOBILENETS`,
        :data:`RESNETS` or :data:`ADDRESSNETS` stands for another variant, the suffix ``_32`` for the stem for small
        images, 32 x 32 pixels and 10 classes.

    >>> entry = catalogue()["auto_shufflenet_v1_g3_0.5x"]
    >>> entry.config.mixer, entry.config.groups, entry.image_shape, entry.classes
    ('auto', 3, (224, 224, 3), 1000)
    """
    entries: dict[str, Entry] = {}
    for name, config, variants in _families():
        shape, classes = ((224, 224, 3), 1000) if config.stem == "imagenet" else ((32, 32, 3), 10)
        for prefix, variant in variants.items():
            entries[f"{prefix}{name}"] = Entry(configured(config, variant), shape, classes)
    return entries


def configured(config: NetworkConfig, variant: Variant) -> NetworkConfig:
    """A network of the catalogue in one of its variants."""
    # All 1x1 layers of ShuffleNetV1 change the number of channels.
    all_layers = (config.family, variant.pointwise) == ("shufflenet_v1", "static_dynamic")
    return replace(
        config,
        mixer=variant.mixer,
        pointwise=variant.pointwise,
        head=variant.head,
        dynamic=replace(config.dynamic, replaced="all" if all_layers else "square"),
        spatial=variant.spatial,
        shift=replace(config.shift, shortcut=variant.shortcut),
        # What is counted of them; "auto" takes what is faster.
        dcd=replace(config.dcd, squeeze=variant.squeeze, form="fewest" if variant.pointwise == "dcd" else "auto"),
    )


def _families() -> Iterator[tuple[str, NetworkConfig, dict[str, Variant]]]:
    """Name, configuration and variants of each network; the variant is configured later. A family is one more loop."""
    for groups in shufflenet_v1.CHANNELS:
        for width in shufflenet_v1.WIDTHS if groups in (3, 8) else (1.0,):
            name, config = f"shufflenet_v1_g{groups}_{width}x", NetworkConfig(family="shufflenet_v1", groups=groups)
            yield name, replace(config, width=width, stem="imagenet"), SHUFFLENETS
    for suffix, config in (("", NetworkConfig(stem="imagenet")), ("_32", NetworkConfig(stem="small"))):
        for width in shufflenet_v2.WIDTHS:
            yield f"shufflenet_v2_{width}x{suffix}", replace(config, family="shufflenet_v2", width=width), SHUFFLENETS
        for width in mobilenet_v2.WIDTHS:
            yield f"mobilenet_v2_{width}x{suffix}", replace(config, family="mobilenet_v2", width=width), MOBILENETS
        for depth in addressnet.DEPTHS if suffix else (None,):
            name = f"addressnet{depth or ''}{suffix}"
            yield name, replace(config, family="addressnet", depth=depth or config.depth), ADDRESSNETS
        for depth in shift_resnet.DEPTHS if suffix else ():
            yield f"shift_resnet{depth}{suffix}", replace(config, family="shift_resnet", depth=depth), SHIFT_RESNETS
        for depth in resnet.UNITS:
            yield f"resnet{depth}{suffix}", replace(config, family="resnet", depth=depth), RESNETS
