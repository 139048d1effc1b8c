"""From a configuration to a network: the one place where names become modules."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from functools import partial
from itertools import chain
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from shuffle_jax.models.config import GROUPS, NetworkConfig
from shuffle_jax.models.options import COMMON, chosen_options, module_of, parameters, with_options
from shuffle_jax.models.parts import KINDS, Factory, part
from shuffle_jax.nn import FactorGenerator, RollingPointwise

PLACES = {
    "mixer": ("mixer",),
    "pointwise": ("pointwise", "conv"),
    "spatial": ("shift", "depthwise"),
    "sampling": ("sampling",),
    "head": ("head",),
}
"""The fields of a network that take the parts of each kind: ``conv`` those of any kernel size, ``depthwise`` those
whose class says so in ``place``; a norm follows them, as it does a depthwise convolution."""

NEUTRAL = {"mixer": "identity", "pointwise": "plain", "spatial": "depthwise", "sampling": "stride", "head": "plain"}
"""What a network without a place has."""


def build(config: NetworkConfig, classes: int) -> nn.Module:
    """Builds a network.

    Args:
        config: which one.
        classes: number of logits.

    Returns:
        A module ``(images, train) -> logits``.

    Raises:
        ValueError: the configuration asks for something that the network, or another part, has not.
    """
    _check_options(config)
    family = part("family", config.family)
    takes = parameters(family)
    family = partial(family, **_classes(config.family, family, takes, classes), **_common(config, takes))
    family = with_options("family", family, _values(config, "family"))
    unset = [p for p in chain(*PLACES.values()) if p in takes and takes[p].default is inspect.Parameter.empty]
    network = family(**dict.fromkeys(unset))
    if not isinstance(network, nn.Module):
        raise ValueError(f"{config.family} must make a linen module, got {network!r}")
    parts: dict[str, Factory] = {}
    for kind, own in PLACES.items():
        name = getattr(config, kind)
        make = part(kind, name)
        places = (getattr(module_of(make), "place", "shift"),) if kind == "spatial" else own
        free = [place for place in places if place in takes]
        if not free and name != NEUTRAL[kind]:
            raise ValueError(
                f"{config.family} has no place for --network.{kind} {name}: choose {NEUTRAL[kind]}, or a network of "
                f"{', '.join(_with_place(places[0]))}"
            )
        if make is not None:
            made = factory(config, kind, network)
            any_size = "kernel_size" in parameters(make)
            if any_size and "conv" in free and config.sampling != "stride" and "padding" not in parameters(make):
                raise ValueError(
                    f"{name} must take padding, as nn.Conv does, where the network samples by {config.sampling}"
                )
            parts |= {place: made for place in free if place != "conv" or any_size}
    if missing := [place for place in unset if place not in parts]:
        raise ValueError(f"{config.family} needs a choice for {' and '.join(missing)}: it has none of its own")
    network = family(**parts) if parts else network
    _check_replaced(config, network)
    return network


def factory(config: NetworkConfig, kind: str, network: nn.Module | None = None) -> Factory:
    """A part of a network with the options of the configuration.

    Args:
        config: of the network.
        kind: "mixer", "pointwise", "spatial", "sampling" or "head".
        network: the one that it is for, which says what its layers start from (``layer_defaults``) and across how many
            groups a mixer mixes (``mixing_groups``).

    Raises:
        ValueError: the configuration leaves this part to the network.
    """
    name = getattr(config, kind)
    make = part(kind, name)
    if make is None:
        raise ValueError(f"--network.{kind} {name} is a choice of the network itself, and no part")
    start: dict[str, Any] = {}
    if (defaults := getattr(network, "layer_defaults", None)) is not None:
        start |= defaults().get(module_of(make), {})
    if kind == "mixer" and "groups" in parameters(make) and (count := getattr(network, "mixing_groups", None)):
        start["groups"] = count
    if kind == "pointwise" and "default_groups" in parameters(make) and network is not None:
        start["default_groups"] = 2 if getattr(network, "groups", 1) == 1 else 1
    if kind == "spatial" and config.sampling != "stride" and "padding" in parameters(make):
        start["padding"] = "wrap"
    return with_options(kind, partial(make, **start) if start else make, _values(config, kind))


def _classes(name: str, family: Factory, takes: Mapping[str, inspect.Parameter], classes: int) -> dict[str, int]:
    """The number of classes under the name by which the network takes it: "classes", or the only one that it needs."""
    fixed = family.keywords.get("classes", classes) if isinstance(family, partial) else classes
    if fixed != classes:
        raise ValueError(f"{name} has {fixed} classes, but {classes} are needed: leave them out")
    needed = [word for word, one in takes.items() if one.default is inspect.Parameter.empty]
    if "classes" in takes:
        return {"classes": classes}
    return {needed[0]: classes} if len(needed) == 1 and not isinstance(module_of(family), type) else {}


def _common(config: NetworkConfig, takes: Mapping[str, inspect.Parameter]) -> dict[str, Any]:
    """The options that all networks share, of which this one has a field."""
    defaults = {f.name: f.default for f in dataclasses.fields(config)}
    found = {}
    for name in COMMON:
        value = getattr(config, name)
        if name in takes and value is not None:
            found[name] = jnp.dtype(value) if name == "dtype" else value
        elif name not in takes and value != defaults[name]:
            has = ", ".join(word for word in COMMON if word in takes)
            raise ValueError(
                f"{config.family} has no {name}, got {value}: leave --network.{name} at {defaults[name]}"
                + (f" (it has {has})" if has else "")
            )
    return found


def _values(config: NetworkConfig, kind: str) -> dict[str, Any]:
    """The options of a part in the configuration; None where the part or the network decides."""
    name = getattr(config, kind)
    group = KINDS[kind][name].group or name if name in KINDS[kind] else ""
    if group not in GROUPS:
        return {}
    options = getattr(config, group)
    values = {f.name: (getattr(options, f.name), f.default) for f in dataclasses.fields(options)}
    return {name: value for name, (value, default) in values.items() if value is not None or default is not None}


def _check_options(config: NetworkConfig) -> None:
    """Refuses options, in a group that the chosen parts share with others, that none of them has."""
    for group, parts in chosen_options(config.parts()).items():
        had = set().union(*parts.values())
        options = getattr(config, group)
        for field in dataclasses.fields(options):
            if field.name not in had and getattr(options, field.name) != field.default:
                raise ValueError(
                    f"{' and '.join(parts)} has no option {field.name}: leave --network.{group}.{field.name} at "
                    f"{field.default} (it has {', '.join(sorted(had))})"
                )


def _check_replaced(config: NetworkConfig, network: nn.Module) -> None:
    """Refuses layers that would replace none of the network's."""
    rolling = config.pointwise == "rolling" and hasattr(network, "conv")  # Others have 1x1 layers in every form.
    squares = config.pointwise in ("static_dynamic", "static_dynamic_hard") and config.dynamic.replaced != "all"
    if not rolling and not squares:
        return
    found, kind = [], RollingPointwise if rolling else FactorGenerator

    def record(call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        found.append(isinstance(context.module, kind) and "mixer" not in context.module.path)
        return call(*args, **kwargs)

    with nn.intercept_methods(record):
        jax.eval_shape(network.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32))
    if not any(found) and rolling:
        raise ValueError(
            f"{config.family} of this form has no 1x1 layer that another can replace: leave --network.pointwise at "
            "plain, or choose another depth or family"
        )
    if not any(found):
        raise ValueError(
            f"no 1x1 layer of {config.family} has as many channels out as in: choose --network.dynamic.replaced all, "
            "or another network"
        )


def _with_place(field: str) -> list[str]:
    return [name for name, (make, _, _) in KINDS["family"].items() if make is not None and field in parameters(make)]
