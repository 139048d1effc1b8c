"""Every published network of the library, by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from shuffle_jax.models import (
    addressnet,
    anchored,
    coresnet,
    mobilenet_v2,
    resnet,
    shift_resnet,
    shufflenet_v1,
    shufflenet_v2,
)
from shuffle_jax.models.config import NetworkConfig
from shuffle_jax.models.stem import StemKind


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


Variant = Mapping[str, Any]
"""What moves information across the channels of a network, by the fields of a configuration; the others stay."""

DCD = {"pointwise": "dcd", "head": "dcd"}
"""Decomposed, and counted in the form with the fewest multiply-adds; by default a layer takes what is faster."""

SHUFFLENETS: dict[str, Variant] = {
    "": {"mixer": "shuffle"},
    "auto_": {"mixer": "auto"},
    "dynamic_": {"mixer": "dynamic"},
    "factors_": {"mixer": "factors"},
    "squeeze_": {"mixer": "squeeze"},
    "static_dynamic_": {"mixer": "shuffle", "pointwise": "static_dynamic"},
}
"""Variants of ShuffleNetV2 by the prefix of a name."""

SHUFFLENETS_V1 = SHUFFLENETS | {
    "static_dynamic_": {"mixer": "shuffle", "pointwise": "static_dynamic", "dynamic": {"replaced": "all"}}
}
"""Variants of ShuffleNetV1, all of whose 1x1 layers change the number of channels."""

RESNETS: dict[str, Variant] = {
    "": {},
    "dcd_": DCD | {"dcd": {"form": "fewest"}},
    "condconv_": {"pointwise": "condconv"},
    "dyconv_": {"pointwise": "dyconv"},
}
"""Variants of ResNet."""

MOBILENETS = RESNETS | {
    "dcd8_": DCD | {"dcd": {"form": "fewest", "squeeze": 8}},
    "address_": {"spatial": "address"},
}
"""Variants of MobileNetV2, whose decomposition is published with two sizes of its heads."""

ADDRESSNETS: dict[str, Variant] = {
    "": {"mixer": "shift"},
    "enhanced_": {"mixer": "shift", "shift": {"shortcut": "shift"}},
    "shuffle_": {"mixer": "shuffle"},
    "auto_": {"mixer": "auto"},
}
"""Variants of AddressNet; with the fixed shuffle it is the control of its paper."""

CORESNETS: dict[str, Variant] = {"": {}}
"""Variants of CoResNet."""

SHIFT_RESNETS: dict[str, Variant] = {"": {}}
"""Variants of ShiftResNet."""

ANCHORED: dict[str, Variant] = {
    "": {},
    "mix_": {"anchored": {"kernels": "each_width"}},
    "regulated_mix_": {"anchored": {"kernels": "each_width", "regulator": "pointwise"}},
    "auto_mix_": {"mixer": "auto", "anchored": {"kernels": "each_width"}},
}
"""Variants of the anchored networks."""

TORCHVISION = {
    **{f"shufflenet_v2_x{width}".replace(".", "_"): f"shufflenet_v2_{width}x" for width in shufflenet_v2.WIDTHS},
    "mobilenet_v2": "mobilenet_v2_1.0x",
}
"""What torchvision calls a network of the catalogue otherwise; its ResNets have the same names."""

SUFFIXES: dict[str, StemKind] = {"": "imagenet", "_32": "small"}


def catalogue() -> dict[str, Entry]:
    """Every family in every published width or depth, with the layers of its paper and with every learned variant.

    Returns:
        Entries by names such as ``shufflenet_v2_1.0x``, ``shufflenet_v1_g3_0.5x``, ``mobilenet_v2_0.5x`` and
        ``resnet18``, for 224 x 224 pixels and 1000 classes. A prefix of :data:`SHUFFLENETS`, :data:`MOBILENETS`,
        :data:`RESNETS`, :data:`ADDRESSNETS` or :data:`ANCHORED` stands for another variant, the suffix ``_32`` for the
        stem for small images, 32 x 32 pixels and 10 classes.

    >>> entry = catalogue()["auto_shufflenet_v1_g3_0.5x"]
    >>> entry.config.mixer, entry.config.groups, entry.image_shape, entry.classes
    ('auto', 3, (224, 224, 3), 1000)
    """
    entries: dict[str, Entry] = {}
    for name, config, variants in _families():
        shape, classes = ((224, 224, 3), 1000) if config.stem == "imagenet" else ((32, 32, 3), 10)
        for prefix, variant in variants.items():
            entries[f"{prefix}{name}"] = Entry(replace(config, **variant), shape, classes)
    return entries


def _families() -> Iterator[tuple[str, NetworkConfig, dict[str, Variant]]]:
    """Name, plain configuration and variants of each network. A family is one more loop."""
    for groups in shufflenet_v1.CHANNELS:
        for width in shufflenet_v1.WIDTHS if groups in (3, 8) else (1.0,):
            config = NetworkConfig("shufflenet_v1", width, groups=groups, stem="imagenet")
            yield f"shufflenet_v1_g{groups}_{width}x", config, SHUFFLENETS_V1
    for suffix, stem in SUFFIXES.items():
        config = NetworkConfig(stem=stem, mixer="identity")
        for width in shufflenet_v2.WIDTHS:
            yield f"shufflenet_v2_{width}x{suffix}", replace(config, family="shufflenet_v2", width=width), SHUFFLENETS
        for width in mobilenet_v2.WIDTHS:
            yield f"mobilenet_v2_{width}x{suffix}", replace(config, family="mobilenet_v2", width=width), MOBILENETS
        for depth in addressnet.DEPTHS if suffix else (None,):
            name = f"addressnet{depth or ''}{suffix}"
            yield name, replace(config, family="addressnet", depth=depth), ADDRESSNETS
        for depth in shift_resnet.DEPTHS if suffix else ():
            yield f"shift_resnet{depth}{suffix}", replace(config, family="shift_resnet", depth=depth), SHIFT_RESNETS
        for depth in (anchored.LAYERS, *anchored.UNITS) if suffix else ():
            yield f"anchored{depth}{suffix}", replace(config, family="anchored", depth=depth), ANCHORED
        for depth in coresnet.UNITS:
            yield f"coresnet{depth}{suffix}", replace(config, family="coresnet", depth=depth), CORESNETS
        for depth in resnet.UNITS:
            yield f"resnet{depth}{suffix}", replace(config, family="resnet", depth=depth), RESNETS
