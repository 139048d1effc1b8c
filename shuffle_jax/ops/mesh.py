"""What an op owes to the devices that its arrays are split over.

On a mesh with Auto axes it owes nothing: the partitioner sees to it. On one with Explicit axes, as ``jax.make_mesh``
gives, a type says how an array is split, and an operation that cannot tell how its result is split raises: a reshape
that merges and splits axes at once, so that there are two here, or two arrays that are split differently. Within
``jax.shard_map`` a type says over which axes an array varies: what a loop carries must not come to vary, and a
gradient by hand varies as what it is the gradient of.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import jax
from jax import lax
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec

from shuffle_jax.typing import Array, PyTree

_T = TypeVar("_T")


def varying_alike(*arrays: Array) -> tuple[Array, ...]:
    """Arrays as they are, but within ``jax.shard_map`` varying over the same axes of the mesh.

    The gradient of one that did not vary, a kernel say, is the sum of those of all devices.

    >>> import jax.numpy as jnp
    >>> [array.tolist() for array in varying_alike(jnp.ones(2), jnp.zeros(1))]
    [[1.0, 1.0], [0.0]]
    """
    axes = [jax.typeof(array).manual_axis_type.varying for array in arrays]
    every = frozenset().union(*axes)
    missing = [tuple(sorted(every - own)) for own in axes]
    return tuple(
        lax.pcast(array, names, to="varying") if names else array for array, names in zip(arrays, missing, strict=True)
    )


def whole(array: Array) -> Array:
    """An array as it is, but of one that is split over Explicit axes all of it on every device.

    >>> import jax.numpy as jnp
    >>> whole(jnp.ones(2)).tolist()
    [1.0, 1.0]
    """
    return jax.sharding.reshard(array, NamedSharding(_mesh(array), PartitionSpec())) if _split(array) else array


def each_device(function: Callable[..., _T], split: tuple[PyTree, ...], whole: tuple[PyTree, ...] = ()) -> _T:
    """``function(*split, *whole)``, by which the entries along a leading axis do not see each other.

    If that axis is split over Explicit axes of a mesh, every device computes its own entries.

    Args:
        function: to arrays with the same leading axis.
        split: arrays with that axis.
        whole: arrays without.

    >>> import jax.numpy as jnp
    >>> each_device(lambda x, y: lax.map(jnp.sum, x) + y, (jnp.ones((2, 3)),), (jnp.ones(1),)).tolist()
    [4.0, 4.0]
    """
    first = jax.tree.leaves(split)[0]
    axis = _split(first)
    if not axis:
        return function(*split, *whole)
    mesh, own, everything = _mesh(first), PartitionSpec(*axis), PartitionSpec()
    arguments = (
        *jax.sharding.reshard(split, NamedSharding(mesh, own)),
        *jax.sharding.reshard(whole, NamedSharding(mesh, everything)),
    )
    in_specs = (own,) * len(split) + (everything,) * len(whole)
    return jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=own)(*arguments)


def whole_result(split: Array) -> NamedSharding | None:
    """``out_sharding`` of a product that sums over the leading axis of an array: all of it on every device.

    >>> import jax.numpy as jnp
    >>> whole_result(jnp.ones(2)) is None
    True
    """
    return NamedSharding(_mesh(split), PartitionSpec()) if _split(split) else None


def _mesh(array: Array) -> AbstractMesh:
    return jax.typeof(array).sharding.mesh


def _split(array: Array) -> tuple[str | tuple[str, ...] | None, ...]:
    """Over which Explicit axes of the mesh the leading axis of an array is split."""
    spec = jax.typeof(array).sharding.spec
    return tuple(spec[:1]) if any(names is not None for names in spec) else ()
