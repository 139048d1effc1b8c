"""Every published network of the library, by name."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from shuffle_jax.models import shufflenet_v1, shufflenet_v2
from shuffle_jax.models.config import MixerKind, NetworkConfig, PointwiseKind


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


VARIANTS: dict[str, tuple[MixerKind, PointwiseKind]] = {
    "": ("shuffle", "plain"),
    "auto_": ("auto", "plain"),
    "dynamic_": ("dynamic", "plain"),
    "factors_": ("factors", "plain"),
    "squeeze_": ("squeeze", "plain"),
    "static_dynamic_": ("shuffle", "static_dynamic"),
}
"""Mixer and 1x1 layers by the prefix of a name."""


def catalogue() -> dict[str, Entry]:
    """Every family in every published width, with the shuffle of its paper and with every learned one.

    Returns:
        Entries by names such as ``shufflenet_v2_1.0x`` and ``shufflenet_v1_g3_0.5x``, for 224 x 224 pixels and 1000
        classes. A prefix of :data:`VARIANTS` stands for another mixer or other 1x1 layers, the suffix ``_32`` for the
        stem for small images, 32 x 32 pixels and 10 classes.

    >>> entry = catalogue()["auto_shufflenet_v1_g3_0.5x"]
    >>> entry.config.mixer, entry.config.groups, entry.image_shape, entry.classes
    ('auto', 3, (224, 224, 3), 1000)
    """
    entries: dict[str, Entry] = {}
    for name, config in _families():
        shape, classes = ((224, 224, 3), 1000) if config.stem == "imagenet" else ((32, 32, 3), 10)
        for prefix, (mixer, pointwise) in VARIANTS.items():
            # All 1x1 layers of ShuffleNetV1 change the number of channels.
            all_layers = (config.family, pointwise) == ("shufflenet_v1", "static_dynamic")
            dynamic = replace(config.dynamic, replaced="all" if all_layers else "square")
            variant = replace(config, mixer=mixer, pointwise=pointwise, dynamic=dynamic)
            entries[f"{prefix}{name}"] = Entry(variant, shape, classes)
    return entries


def _families() -> Iterator[tuple[str, NetworkConfig]]:
    """The name and configuration of each network; the mixer is chosen later. A new family is one more loop."""
    for groups in shufflenet_v1.CHANNELS:
        for width in shufflenet_v1.WIDTHS if groups in (3, 8) else (1.0,):
            name = f"shufflenet_v1_g{groups}_{width}x"
            yield name, NetworkConfig(family="shufflenet_v1", width=width, groups=groups, stem="imagenet")
    for width in shufflenet_v2.WIDTHS:
        yield f"shufflenet_v2_{width}x", NetworkConfig(family="shufflenet_v2", width=width, stem="imagenet")
    for width in shufflenet_v2.WIDTHS:
        yield f"shufflenet_v2_{width}x_32", NetworkConfig(family="shufflenet_v2", width=width, stem="small")
