"""Which network: frozen dataclasses, read from the command line and kept with every run."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, make_dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, Union

from shuffle_jax.models.options import chosen_options, groups, parameters
from shuffle_jax.models.parts import HEADS, KINDS, MIXERS, NETWORKS, POINTWISE, SAMPLING, SPATIAL, Part, named, part
from shuffle_jax.models.stem import StemKind

RENAMED = {
    "mixer_seed": "random.seed",
    "auto_start": "auto.start",
    "auto_candidates": "auto.candidates",
    "auto_noise": "auto.noise",
    "dynamic.pointwise_groups": "dynamic.blocks",
    "attention.kernels": "attention.count",
}
"""Fields of a network that had another name in earlier versions: those of the command line and those of a run."""

BEFORE = {"auto": {"unit_rows": False}}
"""By group, options that earlier versions did not have and whose default is not what they did."""

HARD = {"mixer": ("dynamic", "factors"), "pointwise": ("static_dynamic",)}
"""Parts which in earlier versions were what these with ``_hard`` behind their name are now."""

_OWN = r"(?P<place>shuffle_jax\.nn(\.dynamic_shuffle)?:)(?P<name>(Static)?DynamicShuffle)(?P<options>\(.*\))?"
_DYNAMIC = re.compile(_OWN)  # given as a class
_AUTO = re.compile(r"(?P<name>shuffle_jax\.nn(\.auto_shuffle)?:AutoShuffle)(\((?P<options>.*)\))?")  # given as a class

GROUPS = groups()
"""The options of the parts by group, each a frozen dataclass."""

if TYPE_CHECKING:
    Family: TypeAlias = Any
    MixerKind: TypeAlias = Any
    PointwiseKind: TypeAlias = Any
    SpatialKind: TypeAlias = Any
    SamplingKind: TypeAlias = Any
    HeadKind: TypeAlias = Any

    @dataclass(frozen=True, kw_only=True)
    class _Options:
        """Of the groups those that code of the library names; the real class has all of :data:`GROUPS`."""

        auto: Any = None
        random: Any = None
        dynamic: Any = None
        dcd: Any = None
        attention: Any = None
        shift: Any = None
        anchored: Any = None

else:
    Family, MixerKind, PointwiseKind, SpatialKind, SamplingKind, HeadKind = (
        Union[Literal[tuple(table)], str]  # noqa: UP007 (made of values)
        for table in KINDS.values()
    )
    _Options = make_dataclass(
        "_Options",
        [(name, kind, field(default_factory=kind)) for name, kind in GROUPS.items()],
        frozen=True,
        kw_only=True,
    )


def _choices(table: Mapping[str, Part]) -> str:
    return f"{'; '.join(f'{name}: {text}' for name, (_, text, _) in table.items())}; or your own as module:Name"


@dataclass(frozen=True)
class NetworkConfig(_Options):  # noqa: D101 (its docstring lists the parts)
    __doc__ = f"""Which network, and what it mixes channels with.

    A part is a name, or the text of one from outside the library, such as ``my_module:Butterfly(levels=2)``. In Python
    it may be handed over itself, as a class or a ``functools.partial`` (:func:`shuffle_jax.models.parts.spec`), and the
    options of a group as a mapping: ``NetworkConfig(mixer=Butterfly, auto=dict(candidates=4))``.

    Attributes:
        family: The network. {_choices(NETWORKS)}.
        width: Multiplies the channels: 0.5, 1.0, 1.5 or 2.0 in ShuffleNets, 0.25 as well in the first; 0.35, 0.5, 0.75
            or 1.0 in MobileNetV2.
        depth: Layers: 10, 18, 34, 50, 101 or 152 of ResNet; 6 n + 2 of AddressNet for small images, such as 20, 32 or
            44, and of ShiftResNet, such as 20, 56 or 110; 14, 18 or 34 of anchored networks. By default the network's
            own.
        groups: Of the convolutions on both sides of a mixer: 1, 2, 3, 4 or 8 in ShuffleNetV1. By default the network's
            own.
        stem: "imagenet" divides height and width by 4 before the first stage; "small" (up to 32 x 32) keeps them.
        mixer: What carries information across channel groups. {_choices(MIXERS)}.
        pointwise: 1x1 layers, and where they are of any size all convolutions of ResNet's units. {_choices(POINTWISE)}.
        spatial: What moves information over the image. {_choices(SPATIAL)}.
        sampling: What halves the image. {_choices(SAMPLING)}.
        head: The classifier. {_choices(HEADS)}.
        dropout: Share of the classifier's inputs that training sets to 0.
        sizes: Channels one by one in place of a width, as experiments.search finds them, of ResNet up to depth 34,
            ShuffleNetV2 and MobileNetV2.
        dtype: Type of the computation. Parameters, statistics and penalties are float32 in either case.
    """

    family: Family = "shufflenet_v2"
    width: float = 1.0
    depth: int | None = None
    groups: int | None = None
    stem: StemKind = "small"
    mixer: MixerKind = "auto"
    pointwise: PointwiseKind = "plain"
    spatial: SpatialKind = "depthwise"
    sampling: SamplingKind = "stride"
    head: HeadKind = "plain"
    dropout: float = 0.0
    sizes: tuple[int, ...] = ()
    dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        for kind in KINDS:
            object.__setattr__(self, kind, named(kind, getattr(self, kind)))
        for group, options in GROUPS.items():
            if isinstance(value := getattr(self, group), Mapping):
                object.__setattr__(self, group, options(**value))

    def parts(self) -> dict[str, str]:
        """The names of the parts by kind, such as ``{"family": "shufflenet_v2", "mixer": "auto", ...}``."""
        return {kind: getattr(self, kind) for kind in KINDS}

    def of_family(self, family: str) -> NetworkConfig:
        """The same of another family, without a width, depth or groups that it has no field for, and without sizes."""
        takes = parameters(part("family", named("family", family)))
        defaults: dict[str, Any] = {f.name: f.default for f in dataclasses.fields(self)}
        gone = {name: defaults[name] for name in ("width", "depth", "groups") if name not in takes}
        return replace(self, family=family, **gone, sizes=())

    def resolved(self) -> NetworkConfig:
        """The same with the network's own depth and groups where none are given."""
        takes = parameters(part("family", self.family))
        own = {n: takes[n].default for n in ("depth", "groups") if getattr(self, n) is None and n in takes}
        return replace(self, **own)


def upgraded(value: Mapping[str, Any]) -> dict[str, Any]:
    """A network's configuration as plain values, as this version writes it, from that of this or an earlier version.

    Fields that did not exist have the values that stand for what those versions did. What a network had no use for,
    which they wrote as well, is gone.

    >>> upgraded({"family": "shufflenet_v1", "groups": 8, "depth": 18, "mixer_seed": 3})["random"]["seed"]
    3
    """
    old = "auto" not in value
    found: dict[str, Any] = {name: dict(item) if isinstance(item, Mapping) else item for name, item in value.items()}
    for before, after in RENAMED.items():
        place, name = before.rpartition(".")[::2]
        fields = found.get(place, {}) if place else found
        if name in fields:
            new_place, new_name = after.split(".")
            found.setdefault(new_place, {})[new_name] = fields.pop(name)
    if "unit_rows" not in found.get("auto", {}) and (by := _AUTO.fullmatch(str(found.get("mixer")))):
        found["mixer"] = f"{by['name']}({', '.join(filter(None, [by['options'], 'unit_rows=False']))})"
    if "pooled_norm" not in found.get("dynamic", {}):
        for kind, names in HARD.items():
            given = str(found.get(kind))
            if given in names:
                found[kind] = f"{given}_hard"
            elif by := _DYNAMIC.fullmatch(given):
                found[kind] = f"{by['place']}Hard{by['name']}{by['options'] or ''}"
    for group, options in GROUPS.items():
        default = dataclasses.asdict(options()) | BEFORE.get(group, {})
        found[group] = {**default, **found.get(group, {}), "type": options.__name__}
    common = {f.name: f.default for f in dataclasses.fields(NetworkConfig) if f.name not in GROUPS}
    found = {**common, **found}
    if old:  # They wrote a width, a depth of 18 and 3 groups for every network.
        takes = parameters(part("family", found["family"]))
        found |= {name: common[name] for name in ("width", "depth", "groups") if name not in takes}
        found["groups"] = found["groups"] if found["family"] == "shufflenet_v1" else None
        for group, parts in chosen_options({kind: found[kind] for kind in KINDS}).items():
            had = set().union(*parts.values())
            own = dataclasses.asdict(GROUPS[group]())
            found[group] |= {name: default for name, default in own.items() if name not in had}
    return found
