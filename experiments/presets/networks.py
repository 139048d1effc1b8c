"""The networks of the presets, with the stem for small images, and what an option makes of each."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from shuffle_jax.models import NetworkConfig
from shuffle_jax.nn import DynamicShuffle, FactorGenerator


class Network(NamedTuple):
    """A title, in which ``{width}`` and ``{depth}`` stand for those of the network, what options make of it, and it."""

    title: str
    text: str
    config: NetworkConfig

    def of(self, width: float | None = None, depth: int | None = None) -> Network:
        """The same of another width or depth."""
        config = self.config if width is None else replace(self.config, width=width)
        return self._replace(config=config if depth is None else replace(config, depth=depth))


AUTO = Network(
    "ShuffleNetV2 {width}x with learned shuffles (AutoShuffleNet)",
    "Mixers: learned permutations; ``--network.mixer shuffle`` is the baseline, ``random`` a control.",
    NetworkConfig(family="shufflenet_v2", stem="small", mixer="auto", auto={"candidates": 4}),
)
AUTO_V1 = Network(
    "ShuffleNetV1 {width}x of three groups with learned shuffles (AutoShuffleNet)",
    f"{AUTO.text} ``--network.groups`` is 1, 2, 3, 4 or 8.",
    replace(AUTO.config, family="shufflenet_v1", groups=3),
)
_HEAD, _FROM = FactorGenerator((1, 1)), DynamicShuffle().binarize_from
_BINARIZED = f"binarized from {_FROM:g} on" if _FROM < 1 else "not binarized in training"
_SOFT = (
    f"at first soft, from a normalised pooled vector: Sinkhorn's factors at the logit {_HEAD.start_logit:g}, whose "
    f"temperature falls from {_HEAD.temperature:g} to {_HEAD.end_temperature:g}; regularised from "
    f"{_HEAD.regularize_from:g} of the training on, fully from {_HEAD.regularize_fully:g}, and {_BINARIZED}. In "
    "evaluation they are hard all the time, so that test accuracies say little before they are sharp."
)
ROLLING = Network(
    "ShuffleNetV1 {width}x of three groups with rolling pointwise convolutions in place of shuffles",
    "Convolutions: 1x1 in groups that overlap by half, ``--network.rolling.overlap``; ``--network.pointwise plain "
    "--network.mixer shuffle`` is ShuffleNet, of as many parameters and multiply-adds; ``--network.mixer shuffle`` has "
    "both.",
    replace(AUTO_V1.config, mixer="identity", pointwise="rolling"),
)
DYNAMIC = Network(
    "ShuffleNetV2 {width}x with a permutation for each image (Dynamic Shuffle)",
    f"Mixers: {_SOFT} ``--network.mixer dynamic_hard`` is the former default: the fixed shuffle at the start, in "
    "training as well, which no image left in any run with these settings. ``factors`` learns one permutation of the "
    "same kind for all images. ``--network.dynamic.kept 0.8`` costs less accuracy where images need no permutation of "
    "their own, and finds fewer. ``--network.dynamic.information`` rewards that images differ. "
    "``--network.dynamic.groups`` sets how many groups of channels share a pair of small factors: more groups, a "
    "smaller generator. ``--network.pointwise static_dynamic`` adds static-dynamic 1x1 layers.",
    replace(AUTO.config, mixer="dynamic"),
)
STATIC_DYNAMIC = Network(
    "ShuffleNetV2 {width}x with static-dynamic 1x1 layers (Dynamic Shuffle)",
    "Layers: those 1x1 with as many channels out as in; ``--network.dynamic.replaced all`` takes the others too. Their "
    f"dynamic factors are {_SOFT} ``--network.pointwise static_dynamic_hard`` is the former default, whose dynamic "
    "factors start, and in every run with these settings stay, at the identity. ``--network.mixer dynamic`` adds "
    "dynamic shuffles between them.",
    replace(AUTO.config, mixer="shuffle", pointwise="static_dynamic"),
)
MOBILENET = Network(
    "MobileNetV2 {width}x",
    "Convolutions: static; ``--network.pointwise dcd --network.head dcd`` decomposes those of the published network, "
    "``condconv`` and ``dyconv`` weigh whole kernels.",
    NetworkConfig(family="mobilenet_v2", width=1.0, stem="small", mixer="identity"),
)
RESNET = Network(
    "ResNet-{depth}",
    f"{MOBILENET.text} ``--network.pointwise`` is for all convolutions of the units.",
    NetworkConfig(family="resnet", depth=18, width=1.0, stem="small", mixer="identity"),
)
POLYPHASE = Network(
    "ResNet-{depth} with polyphase sampling",
    "Sampling: ``aps``, for which every convolution wraps: no circular shift changes a logit, which ``python -m "
    "experiments.consistency`` shows. ``--network.aps.blur 3`` blurs before it, ``--network.sampling stride`` is the "
    "plain network.",
    replace(RESNET.config, sampling="aps"),
)
SMALL_RESNET = RESNET.of(width=0.25, depth=10)._replace(title="ResNet-{depth} of a quarter of the width")
CORESNET = Network(
    "CoResNet-{depth}, whose 3x3 convolutions are contextual",
    "Levels: ``--network.coresnet.levels 4321`` gives the dilations of each stage, 4 in the first; with ``1111`` it is "
    "ResNet but for the norm behind the addition that ends a stage, and ``--network.family resnet`` is that. "
    "``--network.depth`` is 50, 101 or 152. In ShuffleNets and MobileNetV2 ``--network.spatial contextual`` does the "
    "like for depthwise convolutions.",
    NetworkConfig(family="coresnet", depth=50, stem="small", mixer="identity"),
)
ADDRESSNET = Network(
    "AddressNet-{depth}",
    "Mixers: the channel shift, fused with what follows it; ``--network.mixer shuffle`` is the control of the paper, "
    "``auto`` learns permutations. ``--network.shift.shortcut shift`` is Enhanced AddressNet. ``--network.depth 20``, "
    "``32`` and ``44`` are those of the paper, and with ``--network.stem imagenet`` the one of its table for ImageNet. "
    "``--network.shift.boundary zero`` or ``wrap`` reads something else beyond the edge.",
    NetworkConfig(family="addressnet", depth=32, stem="small", mixer="shift"),
)
TABLE_ADDRESSNET = ADDRESSNET._replace(title="AddressNet, the network of the paper's table for ImageNet,")
SHIFT_RESNET = Network(
    "ShiftResNet-{depth}, expansion 3,",
    "Sizes: the paper has ``--network.depth 20``, ``56`` and ``110`` and ``--network.shift.expansion`` from 1 to 9.",
    NetworkConfig(family="shift_resnet", depth=20, stem="small", mixer="identity"),
)
ANCHORED = Network(
    "Deep anchored network of {depth} layers with one 3x3 kernel for each width",
    "Regulators: learned permutations, which cost no parameters once they are hard; ``--network.mixer identity`` has "
    "none, with ``--network.anchored.regulator pointwise`` it has the 1x1 convolutions of the paper; ``roll`` and "
    "``--network.anchored.mixing stream`` are the rotations of its code. ``--network.anchored.kernels one`` has one "
    "kernel for all layers, with ``--network.depth 14`` without shortcuts.",
    NetworkConfig(
        family="anchored", depth=18, mixer="auto", auto={"candidates": 4}, anchored={"kernels": "each_width"}
    ),
)
CONET = Network(
    "ResNet-{depth} with 32 channels everywhere",
    "Sizes: those with which CONet's search begins; ``python -m experiments.search`` with the name of this preset goes "
    "on, and writes what it finds for ``experiments.train``.",
    replace(RESNET.config, depth=34, sizes=(32,) * 20),
)
DCD_MOBILENET = Network(
    "MobileNetV2 {width}x with decomposed dynamic convolutions",
    "Convolutions: ``dcd``, and the classifier; ``--network.pointwise plain --network.head plain`` is the static "
    "network, ``condconv`` and ``dyconv`` weigh whole kernels.",
    replace(MOBILENET.config, pointwise="dcd", head="dcd", dropout=0.2),
)
DCD_RESNET = Network(
    "ResNet-{depth} with decomposed dynamic convolutions",
    f"{DCD_MOBILENET.text} ``--network.pointwise`` is for all convolutions of the units.",
    replace(RESNET.config, depth=50, pointwise="dcd", head="dcd", dropout=0.1),
)
