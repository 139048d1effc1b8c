"""What networks are made of: one table for each kind of part, one line for each part; others by where they are.

A part from outside the library has a text such as ``my_module:Butterfly(levels=2)``, under which it is found again.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import importlib
import sys
from collections.abc import Callable, Mapping
from functools import partial, reduce
from typing import Any, NamedTuple

import flax.linen as nn

from shuffle_jax.models.addressnet import AddressNet
from shuffle_jax.models.anchored import AnchoredNet
from shuffle_jax.models.coresnet import CoResNet
from shuffle_jax.models.mobilenet_v2 import MobileNetV2
from shuffle_jax.models.resnet import ResNet
from shuffle_jax.models.shift_resnet import ShiftResNet
from shuffle_jax.models.shufflenet_v1 import ShuffleNetV1
from shuffle_jax.models.shufflenet_v2 import ShuffleNetV2
from shuffle_jax.nn import (
    AddressShift,
    AutoShuffle,
    ChannelRotation,
    ChannelShift,
    ChannelShuffle,
    CondConv,
    ContextualDepthwise,
    DYConv,
    DynamicConv,
    DynamicDense,
    DynamicShuffle,
    FactorGenerator,
    FixedPermutation,
    HardDynamicShuffle,
    HardFactorGenerator,
    HardStaticDynamicShuffle,
    Identity,
    PolyphaseSampling,
    RollingPointwise,
    SqueezeExcitation,
    StaticDynamicShuffle,
)

Factory = Callable[..., nn.Module]
"""What makes a module: its class, a function, or a partial of one."""

ELSEWHERE = "put it at the top level of a module file and hand that over, or its name as module:Name"


class Part(NamedTuple):
    """A part that the library names.

    Attributes:
        make: its class, or a partial of it whose values stand in for the defaults of the class; None for the network's
            own.
        text: what it is, for ``--help``.
        group: where its options stand in a configuration; the name of the part if empty.
    """

    make: Any
    text: str
    group: str = ""


NETWORKS = {
    "shufflenet_v1": Part(ShuffleNetV1, "ShuffleNet, 2017"),
    "shufflenet_v2": Part(ShuffleNetV2, "ShuffleNetV2, 2018"),
    "mobilenet_v2": Part(MobileNetV2, "MobileNetV2, 2018"),
    "resnet": Part(ResNet, "ResNet, 2015"),
    "coresnet": Part(CoResNet, "CoResNet, 2021, whose 3x3 convolutions are contextual"),
    "addressnet": Part(AddressNet, "AddressNet, 2019, whose only layers with weights are 1x1", "shift"),
    "shift_resnet": Part(ShiftResNet, "ShiftResNet, 2018, for small images", "shift"),
    "anchored": Part(AnchoredNet, "deep anchored networks, 2019, whose layers share their kernels, for small images"),
}
MIXERS = {
    "auto": Part(AutoShuffle, "learned permutations"),
    "shuffle": Part(ChannelShuffle, "the fixed one of ShuffleNet"),
    "shift": Part(ChannelShift, "the channel shift of AddressNet"),
    "roll": Part(ChannelRotation, "all channels rotated by one, as in the code of anchored networks"),
    "random": Part(FixedPermutation, "fixed random ones"),
    "identity": Part(Identity, "none"),
    "dynamic": Part(DynamicShuffle, "permutations made for each image"),
    "dynamic_hard": Part(HardDynamicShuffle, "the same, hard from the start, the fixed shuffle", "dynamic"),
    "factors": Part(
        partial(DynamicShuffle, generator=partial(FactorGenerator, dynamic=False)),
        "as dynamic, but learned once for all images",
        "dynamic",
    ),
    "factors_hard": Part(
        partial(HardDynamicShuffle, generator=partial(HardFactorGenerator, dynamic=False)),
        "the latter, hard from the start, the fixed shuffle",
        "dynamic",
    ),
    "squeeze": Part(SqueezeExcitation, "squeeze-excitation before the fixed one", "dynamic"),
}
POINTWISE = {
    "plain": Part(None, "those of the network"),
    "static_dynamic": Part(partial(StaticDynamicShuffle, replaced="square"), "static-dynamic shuffles", "dynamic"),
    "static_dynamic_hard": Part(
        partial(HardStaticDynamicShuffle, replaced="square"), "the same, hard from the start", "dynamic"
    ),
    "dcd": Part(DynamicConv, "dynamic convolution decomposition"),
    "condconv": Part(CondConv, "a sum of kernels, weighted for each image", "attention"),
    "dyconv": Part(DYConv, "the same, with a softmax", "attention"),
    "rolling": Part(RollingPointwise, "rolling pointwise convolutions, whose groups of channels overlap"),
}
SPATIAL = {
    "depthwise": Part(None, "the network's own, depthwise convolutions in most"),
    "address": Part(AddressShift, "address shifts", "shift"),
    "contextual": Part(ContextualDepthwise, "depthwise convolutions of several dilations"),
}
SAMPLING = {
    "stride": Part(None, "every second row and column"),
    "aps": Part(PolyphaseSampling, "those that the image chooses, so that its shifts change nothing"),
}
HEADS = {
    "plain": Part(None, "a dense layer"),
    "dcd": Part(DynamicDense, "dynamic convolution decomposition", "classifier"),
}
KINDS = {
    "family": NETWORKS,
    "mixer": MIXERS,
    "pointwise": POINTWISE,
    "spatial": SPATIAL,
    "sampling": SAMPLING,
    "head": HEADS,
}
"""The tables by the field of a configuration that chooses from them. A part is one line here."""


def named(kind: str, thing: object) -> str:
    """What a configuration keeps for a part: its name in the table, or its text, see :func:`spec`.

    Args:
        kind: a field of :data:`KINDS`.
        thing: a name, a text, or what :func:`spec` takes.

    Raises:
        ValueError: there is no such part.
    """
    if not isinstance(thing, str):
        return spec(thing)
    if thing in KINDS[kind]:
        return thing
    if ":" in thing:
        return canonical(thing)
    near = sorted(KINDS[kind], key=lambda name: difflib.SequenceMatcher(None, thing, name).ratio(), reverse=True)
    raise ValueError(
        f"--network.{kind} has no choice {thing!r}; near: {', '.join(near[:3])} (all of them: "
        f"{', '.join(KINDS[kind])}; or your own as module:Name)"
    )


def part(kind: str, name: str) -> Any:
    """The part behind a name or text of :func:`named`; None for the network's own."""
    return KINDS[kind][name].make if name in KINDS[kind] else load_part(name)


def spec(thing: object) -> str:
    """The text under which a part is found again: ``module:Name``, or ``module:Name(option=value, ...)``.

    Args:
        thing: such a text; a class or a function at the top level of a module file; a ``functools.partial`` of one with
            plain keyword values; or a linen module, which becomes its class and the fields that are not its defaults.

    Returns:
        The text, for which :func:`load_part` gives the same.

    Raises:
        ValueError: the part cannot be imported, or holds a value that is no Python literal.

    >>> from functools import partial
    >>> from shuffle_jax.nn import ChannelShuffle
    >>> spec(partial(ChannelShuffle, groups=3))
    'shuffle_jax.nn.permutation:ChannelShuffle(groups=3)'
    >>> load_part(spec(ChannelShuffle(groups=3)))()
    ChannelShuffle(
        # attributes
        groups = 3
    )
    """
    if isinstance(thing, str):
        load_part(thing)
        return canonical(thing)
    if isinstance(thing, partial):
        if thing.args:
            raise ValueError(f"{thing.func!r} has positional values {thing.args}: give each by its name")
        return _text(thing.func, thing.keywords)
    if isinstance(thing, nn.Module):
        return _text(type(thing), _changed(thing))
    return _text(thing, {})


def load_part(text: str) -> Factory:
    """What a text of :func:`spec` names: a class or a function, or a ``functools.partial`` of it with the options.

    Raises:
        ValueError: the text is none, its module cannot be imported, or the module has no such part.
    """
    module, name, options = _parsed(text)
    try:
        found = reduce(getattr, name.split("."), importlib.import_module(module))
    except ImportError as error:
        raise ValueError(
            f"cannot import {module} for {text}: {error}; start in the folder that holds the module, or install it"
        ) from error
    except AttributeError:
        near = difflib.get_close_matches(name, dir(sys.modules[module])) if module in sys.modules else []
        raise ValueError(f"{module} has no {name}{'; near: ' if near else ''}{', '.join(near)}") from None
    if not callable(found):
        raise ValueError(f"{text} must name a class or a function, got {found!r}")
    return partial(found, **options) if options else found


def canonical(text: str) -> str:
    """A text of :func:`spec` in its one spelling; nothing is imported.

    >>> canonical("my_module:Butterfly( levels = 2 )")
    'my_module:Butterfly(levels=2)'
    """
    return _rendered(*_parsed(text))


def _text(thing: Any, options: Mapping[str, object]) -> str:
    """The text of a class or function with options, held against what importing it gives."""
    module, name = getattr(thing, "__module__", None), getattr(thing, "__qualname__", None)
    if not callable(thing) or not module or not name:
        raise ValueError(f"a part must be a class, a function, a partial of one or a linen module, got {thing!r}")
    if module == "__main__" or "<" in name:
        raise ValueError(f"{name} of {module} cannot be imported again: {ELSEWHERE}")
    for option, value in options.items():
        if not _is_plain(value):
            raise ValueError(
                f"{option} of {name} must be a number, a string or another Python literal to be kept, got {value!r}: "
                "hand over a function at the top level of a module file that makes the part"
            )
    text = _rendered(module, name, options)
    found = load_part(text)
    if (found.func if isinstance(found, partial) else found) is not thing:
        raise ValueError(f"importing {module}:{name} gives another object than the one handed over: {ELSEWHERE}")
    return text


def _changed(module: nn.Module) -> dict[str, object]:
    """The fields of a module that are not its defaults."""
    fields = [f for f in dataclasses.fields(module) if f.init and f.name not in ("parent", "name")]
    return {f.name: getattr(module, f.name) for f in fields if not _same(getattr(module, f.name), default_of(f))}


def default_of(field: dataclasses.Field[Any]) -> Any:
    """The default of a field, made if it is made; MISSING for none."""
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _same(value: object, default: object) -> bool:
    return value is default or (type(value) is type(default) and bool(value == default))


def _is_plain(value: object) -> bool:
    try:
        return bool(ast.literal_eval(repr(value)) == value)
    except (ValueError, SyntaxError, TypeError):
        return False


def _rendered(module: str, name: str, options: Mapping[str, object]) -> str:
    inside = ", ".join(f"{option}={value!r}" for option, value in options.items())
    return f"{module}:{name}({inside})" if options else f"{module}:{name}"


def _parsed(text: str) -> tuple[str, str, dict[str, Any]]:
    """Module, name and options of a text."""
    module, _, rest = text.partition(":")
    try:
        node = ast.parse(rest.strip(), mode="eval").body
        options = {}
        if isinstance(node, ast.Call):
            if node.args or any(word.arg is None for word in node.keywords):
                raise ValueError("options need their names")
            options = {str(word.arg): ast.literal_eval(word.value) for word in node.keywords}
            node = node.func
        name = ast.unparse(node)
        if not all(word.isidentifier() for word in [*module.strip().split("."), *name.split(".")]):
            raise ValueError("these are no names")
    except (ValueError, SyntaxError) as error:
        raise ValueError(
            f"{text!r} names no part ({error.args[0]}): give module:Name, or module:Name(option=value, ...) with plain "
            "values"
        ) from None
    return module.strip(), name, options
