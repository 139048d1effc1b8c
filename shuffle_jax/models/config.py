"""Which network: frozen dataclasses, read from the command line and kept with every run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from shuffle_jax.models.addressnet import Shortcut
from shuffle_jax.models.stem import StemKind
from shuffle_jax.nn.dynamic_conv import Form
from shuffle_jax.nn.dynamic_shuffle import Evaluation
from shuffle_jax.ops.shift import Boundary

Family = Literal["shufflenet_v1", "shufflenet_v2", "mobilenet_v2", "resnet", "addressnet", "shift_resnet"]
MixerKind = Literal["auto", "shuffle", "shift", "random", "identity", "dynamic", "factors", "squeeze"]
PointwiseKind = Literal["plain", "static_dynamic", "dcd", "condconv", "dyconv"]
HeadKind = Literal["plain", "dcd"]
SpatialKind = Literal["depthwise", "address"]


@dataclass(frozen=True)
class DynamicConfig:
    """Layers that depend on the image: mixers "dynamic", "factors" and "squeeze", 1x1 layers "static_dynamic"."""

    groups: int | None = None
    """Groups of the Kronecker product and of the shuffle behind it; those of the network's own shuffle by default. More
    groups have smaller factors and a smaller head."""

    per_group: bool = False
    """A pair of factors for each group, and not one that all share. Mixers only."""

    hidden: int | None = None
    """Hidden units of each head; the larger of 4 and a sixteenth of the channels by default."""

    start: Literal["identity", "random"] = "identity"
    """Start of the factors: identities, with which mixers are the fixed shuffle, or random."""

    start_logit: float = 4.0
    """How far the start "identity" is from the next permutation: the logits on the diagonals, above 0."""

    normalization: Literal["rows", "sinkhorn"] = "rows"
    """Of the factors: the softmax of every row, or of rows and columns in turn."""

    temperature: float = 1.0
    """Of the softmax of the factors at the start."""

    end_temperature: float | None = None
    """At the end of the training, approached geometrically; None for no change."""

    binarize_from: float = 0.0
    """Share of the training from which factors are binarized, with straight-through gradients; 1 for in evaluation
    only."""

    evaluation: Evaluation = "hard"
    """Factors in evaluation: "hard", "soft", or "repaired" (by assignment where the hard ones are no permutations)."""

    pointwise_groups: int | None = None
    """Groups of the Kronecker product of 1x1 layers; those of the convolution they replace by default."""

    static: Literal["kronecker", "grouped"] = "kronecker"
    """Static part of 1x1 layers: factors added to the dynamic ones, or a grouped convolution before a shuffle."""

    replaced: Literal["square", "all"] = "square"
    """Which 1x1 layers become static-dynamic: those with as many channels out as in, or all."""

    def __post_init__(self) -> None:
        for name in ("groups", "pointwise_groups", "hidden"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} of dynamic layers is {value}: give 1 or more, or None for the default")
        for name in ("temperature", "end_temperature", "start_logit"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name} of dynamic layers is {value}: give a number above 0")
        if not 0 <= self.binarize_from <= 1:
            raise ValueError(f"binarize_from is {self.binarize_from}: give a share of the training, from 0 to 1")


@dataclass(frozen=True)
class DecompositionConfig:
    """Dynamic convolution decomposition: 1x1 layers and classifiers "dcd"."""

    squeeze: int = 16
    """Divides the width of each head: 8 or 16 in the published MobileNetV2, 16 in ResNet."""

    latent: int | None = None
    """Latent channels L, at most the channels of every layer; by default what the published networks give each."""

    blocks: int | None = None
    """Blocks of the residual, which see nothing of each other; one by default, or those of the layer's groups."""

    elements: int = 0
    """Factors over the elements of k x k kernels; 0 for the element in the middle alone, as published."""

    form: Form = "auto"
    """What evaluation computes: two "features" and their sum, "kernels" for each image, what takes the "fewest"
    multiply-adds, or "auto" for that in 1x1 layers and features in others, where they are faster."""

    def __post_init__(self) -> None:
        for name in ("squeeze", "latent", "blocks"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} of a decomposition is {value}: give 1 or more")
        if self.elements < 0:
            raise ValueError(f"elements of a decomposition is {self.elements}: give 0 or more")


@dataclass(frozen=True)
class AttentionConfig:
    """Layers that weigh whole kernels for each image: "condconv" and "dyconv"."""

    kernels: int | None = None
    """How many, K; by default 8 in "condconv" and 4 in "dyconv"."""

    temperature: float = 30.0
    """Of the softmax at the start. dyconv only."""

    end_temperature: float = 1.0
    """Where it ends. dyconv only."""

    annealing: float = 0.1
    """Share of the training in which it falls. dyconv only."""

    form: Form = "auto"
    """What evaluation and training compute: K "features" and their sum, "kernels" for each image, or ("auto" and
    "fewest") what takes fewer multiply-adds."""

    def __post_init__(self) -> None:
        for name in ("kernels", "temperature", "end_temperature"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name} of kernel attention is {value}: give a number above 0")


@dataclass(frozen=True)
class ShiftConfig:
    """Shifts over the image, of AddressNet, ShiftResNet and MobileNetV2."""

    boundary: Boundary = "pointer"
    """What an address shift reads beyond the edge: the neighbour in memory ("pointer"), "zero", or the opposite edge
    ("wrap")."""

    shortcut: Shortcut = "add"
    """"add", or "shift" in Enhanced AddressNet. AddressNet only."""

    expansion: int = 3
    """Inner channels of a unit over those of its output. ShiftResNet only."""

    def __post_init__(self) -> None:
        if self.expansion < 1:
            raise ValueError(f"an expansion of {self.expansion} leaves no channels: give 1 or more")


@dataclass(frozen=True)
class NetworkConfig:
    """Which network, and what it mixes channels with."""

    family: Family = "shufflenet_v2"
    """The network family."""

    width: float = 1.0
    """Multiplies the channels: 0.5, 1.0, 1.5 or 2.0; of MobileNetV2 0.35, 0.5, 0.75 or 1.0."""

    depth: int = 18
    """Layers: 10, 18, 34, 50, 101 or 152 of ResNet; 6 n + 2 of AddressNet for small images, such as 20, 32 or
    44, and of ShiftResNet, such as 20, 56 or 110."""

    groups: int = 3
    """Groups of the 1x1 convolutions: 1, 2, 3, 4 or 8. ShuffleNetV1 only."""

    stem: StemKind = "small"
    """"imagenet" divides height and width by 4 before the first stage; "small" (up to 32 x 32) keeps them."""

    mixer: MixerKind = "auto"
    """"auto": learned permutations; "shuffle": the fixed one of ShuffleNet; "shift": the channel shift of AddressNet;
    "random": fixed random ones; "identity"; "dynamic": made for each image; "factors": the same, learned once for all
    images; "squeeze": squeeze-excitation. ShuffleNets and AddressNet only."""

    mixer_seed: int = 0
    """Seed of the random permutations. mixer = random only."""

    auto_start: Literal["random", "shuffle"] = "random"
    """Start of the learned permutations: random, or the fixed shuffle blended with it. mixer = auto only."""

    auto_candidates: int | None = None
    """Inputs that each output of a learned permutation averages at the start; None for all. mixer = auto only."""

    auto_noise: float = 0.5
    """Share of noise in the start "shuffle", above 0 and at most 1. mixer = auto only."""

    pointwise: PointwiseKind = "plain"
    """1x1 layers, of ResNet all convolutions of its units: "plain" ones, "static_dynamic" shuffles (1x1 only), or
    dynamic convolutions: "dcd", "condconv" and "dyconv"."""

    spatial: SpatialKind = "depthwise"
    """What moves information over the image: "depthwise" convolutions, or "address" shifts. MobileNetV2 only."""

    head: HeadKind = "plain"
    """The classifier: "plain", or "dcd". MobileNetV2 and ResNet only."""

    dropout: float = 0.0
    """Share of the classifier's inputs that training sets to 0. MobileNetV2 and ResNet only."""

    dynamic: DynamicConfig = field(default_factory=DynamicConfig)
    """Options of dynamic mixers and static-dynamic 1x1 layers."""

    dcd: DecompositionConfig = field(default_factory=DecompositionConfig)
    """Options of "dcd"."""

    attention: AttentionConfig = field(default_factory=AttentionConfig)
    """Options of "condconv" and "dyconv"."""

    shift: ShiftConfig = field(default_factory=ShiftConfig)
    """Options of shifts over the image."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the computation. Parameters, statistics and penalties are float32 in either case."""
