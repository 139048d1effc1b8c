"""What the benchmark measures of shifts: what a mixer adds to a network, and what each operation takes alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import lax

from experiments.benchmark.cases import CLASSES, Cases, Workload, normal
from experiments.benchmark.measuring import Program
from shuffle_jax.models.addressnet import GROUPS, AddressNet
from shuffle_jax.nn import ChannelShift, ChannelShuffle, DepthwiseConv, FixedPermutation, GridShift, Identity
from shuffle_jax.nn.shift import ShiftedPointwise
from shuffle_jax.ops import convolution, mixing, permutation, shift
from shuffle_jax.ops.permutation import half_group
from shuffle_jax.ops.shift import LEFT_UP_RIGHT_DOWN, Boundary, Offsets
from shuffle_jax.ops.shifted_pointwise import Form, shifted_pointwise
from shuffle_jax.typing import Array, Images, Key, PyTree

DEPTH = 32
"""Of the AddressNet whose times the paper reports."""

BATCHES = (1, 128)
"""Images of an inference: one, and the batch that the network is trained with."""

CHANNELS = (72, 144, 288)
"""Inside the units of its stages; the images of each have half the height and width of those before."""

COPIES = 16
"""In one program, so that neither its call nor memory that is new to it counts."""


class Mixing(NamedTuple):
    """What stands between the two 1x1 convolutions of a unit.

    Attributes:
        mixer: of the channels; None for the channel shift that is a part of the second convolution.
        offsets: of the address shift.
        form: of the second convolution.
        moves: what must be read and written once more than without: the array between the convolutions, the smaller
            one of this and the second convolution's output, or nothing.
    """

    mixer: Callable[..., nn.Module] | None
    offsets: Offsets
    form: Form
    moves: Literal["nothing", "smaller", "between"]


IDENTITY = "identity"
_channel_shift = partial(ChannelShift, groups=GROUPS)
MIXERS = {
    IDENTITY: Mixing(Identity, (), "plain", "nothing"),
    "channel shift, plain": Mixing(_channel_shift, (), "plain", "between"),
    "channel shift, folded": Mixing(None, (), "folded", "nothing"),
    "fixed shuffle": Mixing(partial(ChannelShuffle, groups=GROUPS), (), "plain", "between"),
    "learned hard permutation": Mixing(FixedPermutation, (), "plain", "between"),
    "address shift, plain": Mixing(Identity, LEFT_UP_RIGHT_DOWN, "plain", "between"),
    "address shift, folded": Mixing(Identity, LEFT_UP_RIGHT_DOWN, "folded", "smaller"),
    "channel and address shift, plain": Mixing(_channel_shift, LEFT_UP_RIGHT_DOWN, "plain", "between"),
    "channel and address shift, fused": Mixing(None, LEFT_UP_RIGHT_DOWN, "folded", "smaller"),
    "depthwise 3x3": Mixing(DepthwiseConv, (), "plain", "between"),
    "grid shift": Mixing(GridShift, (), "plain", "between"),
}
"""The first is what the others are compared with. A permutation is a variable here, as after hardening."""


def mixers(work: Workload) -> dict[str, Program]:
    """The network in evaluation with each mixer, and copies of its largest array between two convolutions.

    All have the identity's weights; a depthwise convolution and a permutation have theirs beside them.
    """
    images = normal(work, work.batch_size, work.image_size, work.image_size, 3)
    moving: list[tuple[int, int]] = []
    programs: dict[str, Program] = {}
    for label, (network, variables) in networks(work).items():
        moving = moving or arrays(network, variables, images)
        compiled = jax.jit(network.apply).lower(variables, images).compile()
        moved = _moved(MIXERS[label].moves, moving)
        programs[label] = Program(partial(compiled, variables, images), accessed(compiled), moved)
    widest = max(between for between, _ in moving)
    x = normal(work, widest // jnp.dtype(work.dtype).itemsize)
    compiled = jax.jit(_copy_again_and_again).lower(x).compile()
    name = f"{COPIES} copies of {widest / 2**20:.3g} MiB"
    programs[name] = Program(partial(compiled, x), accessed(compiled), 2 * widest * COPIES)
    return programs


def networks(work: Workload) -> dict[str, tuple[nn.Module, dict[str, PyTree]]]:
    """AddressNet and its variables with each mixer."""
    image = jnp.zeros((1, work.image_size, work.image_size, 3))
    found: dict[str, tuple[nn.Module, dict[str, PyTree]]] = {}
    shared: dict[str, PyTree] = {}
    for label, (mixer, offsets, form, _) in MIXERS.items():
        network = AddressNet(CLASSES, DEPTH, mixer=mixer, offsets=offsets, form=form, dtype=jnp.dtype(work.dtype))
        variables = _variables(network, shared, image)
        shared = shared or variables
        found[label] = network, variables
    return found


def arrays(network: nn.Module, variables: dict[str, PyTree], images: Images) -> list[tuple[int, int]]:
    """Bytes of the input and of the output of the second convolution of each unit."""
    found: list[tuple[int, int]] = []

    def visit(call: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        y = call(*args, **kwargs)
        if isinstance(context.module, ShiftedPointwise) and context.method_name == "__call__":
            x = args[0]
            found.append((x.size * x.dtype.itemsize, y.size * y.dtype.itemsize))
        return y

    def run(variables: dict[str, PyTree], images: Images) -> PyTree:  # new at each call, so that it is traced
        return network.apply(variables, images)

    with nn.intercept_methods(visit):
        jax.eval_shape(run, variables, images)
    return found


def accessed(compiled: jax.stages.Compiled) -> float | None:
    """Bytes that a compiled program reads and writes, as the compiler counts them; None where it does not."""
    costs = compiled.cost_analysis()
    costs = costs[0] if isinstance(costs, list) else costs  # a list of one for each program, in some versions
    return None if costs is None else costs.get("bytes accessed")


def shifts(work: Workload, channels: int, backward: bool) -> Cases:
    """Ways to move what is between the convolutions of a stage's units, against a copy."""
    x = _between(work, channels)
    index = permutation.random(jax.random.key(0), channels)
    kernel = normal(work, 3, 3, 1, channels)
    boundaries: tuple[Boundary, ...] = ("pointer", "zero", "wrap")
    forms: dict[str, tuple[Callable[..., Array], list[Array]]] = {
        "copy": (lambda x: 2 * x, []),  # x + 1 would hand the gradient through
        "channel shift": (partial(shift.channel_shift, groups=GROUPS), []),
        "fixed shuffle": (partial(mixing.shuffle, groups=GROUPS), []),
        "permutation": (lambda x: mixing.permute(x, index), []),
        **{f"address shift, {edge}": (partial(shift.address_shift, boundary=edge), []) for edge in boundaries},
        "grid shift": (shift.grid_shift, []),
        "depthwise 3x3": (convolution.depthwise, [kernel]),
    }
    return {name: _case(work, backward, form, x, *weights) for name, (form, weights) in forms.items()}


def steps(work: Workload, channels: int, backward: bool) -> Cases:
    """The step from what is between the convolutions to the second one's output, against that convolution alone."""
    x = _between(work, channels)
    kernel = normal(work, 1, 1, channels // GROUPS, channels // 2)
    step = partial(shifted_pointwise, groups=GROUPS, rotation=half_group(channels, GROUPS))
    forms: dict[str, Callable[..., Array]] = {
        "grouped 1x1": partial(convolution.pointwise, groups=GROUPS),
        "channel and address shift, plain": partial(step, form="plain"),
        "channel and address shift, fused": partial(step, form="folded"),
    }
    if jax.default_backend() == "gpu":
        forms["channel and address shift, one kernel"] = partial(step, form="kernel")
    return {name: _case(work, backward, form, x, kernel) for name, form in forms.items()}


def _variables(network: nn.Module, shared: dict[str, PyTree], image: Images) -> dict[str, PyTree]:
    """The shared variables, and beside them those that only this network has: no others are drawn, which takes long."""
    known = flatten_dict(shared)

    def own(key: Key) -> dict[tuple[str, ...], Array]:
        made = flatten_dict(network.init(key, image))
        return {path: leaf for path, leaf in made.items() if path not in known}

    return unflatten_dict(known | jax.jit(own)(jax.random.key(0)))


def _moved(moves: Literal["nothing", "smaller", "between"], found: list[tuple[int, int]]) -> int:
    """Bytes to read and write once in all units, from those of :func:`arrays`."""
    match moves:
        case "nothing":
            return 0
        case "smaller":
            return sum(2 * min(pair) for pair in found)
        case "between":
            return sum(2 * between for between, _ in found)


def _copy_again_and_again(x: Array) -> Array:
    return lax.fori_loop(0, COPIES, lambda _, x: x + 1, x)


def _between(work: Workload, channels: int) -> Images:
    """What is between the convolutions of the stage that has so many channels there."""
    side = max(1, work.image_size * CHANNELS[0] // channels)
    return normal(work, work.batch_size, side, side, channels)


def _case(work: Workload, backward: bool, form: Callable[..., Array], *arguments: Array) -> partial[object]:
    """An operation; or both its output and, from a given gradient of the output, those of its arguments.

    It is given because from one that depends on the output XLA could make a single operation of both directions.
    """
    if not backward:
        return partial(jax.jit(form), *arguments)

    def forth_and_back(gradient: Array, *arguments: Array) -> tuple[Array, tuple[Array, ...]]:
        y, back = jax.vjp(form, *arguments)
        return y, back(gradient)

    gradient = normal(work, *jax.eval_shape(form, *arguments).shape)
    return partial(jax.jit(forth_and_back), gradient, *arguments)
