"""Which of its forms an op takes: that of the platform it runs on, or the plain, native one where that is asked for."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TypeVar

import jax
from jax import lax

from shuffle_jax.typing import Array

_T = TypeVar("_T")

_asked = jax.make_user_context(False)  # Part of the key of every cache of jax.jit: no other form comes out of one.


def native() -> AbstractContextManager[None]:
    """A context in which ops are traced in their native form, whatever the platform.

    That is one convolution, pooling or gather where the form of a platform may be shifted copies, products of slices
    or a hint about layout. XLA runs it on every platform, slower where another form is there for a reason; converters
    to other runtimes want it, since their convolutions need no such help.

    >>> import jax.numpy as jnp
    >>> from shuffle_jax.ops.convolution import pointwise
    >>> x, kernel = jnp.ones((1, 2, 2, 4)), jnp.ones((1, 1, 2, 4))
    >>> with native():
    ...     print([e.primitive.name for e in jax.make_jaxpr(lambda x: pointwise(x, kernel, groups=2))(x).eqns])
    ['conv_general_dilated']
    """
    return _asked(True)


def is_native() -> bool:
    """Whether :func:`native` is in force."""
    return bool(_asked.value)


def by_platform(*operands: Array, cpu: Callable[..., _T], default: Callable[..., _T]) -> _T:
    """Computes a function in the form for CPU there, and in the native form elsewhere or under :func:`native`.

    >>> import jax.numpy as jnp
    >>> by_platform(jnp.ones(2), cpu=lambda x: x + 1, default=lambda x: 1 + x).tolist()
    [2.0, 2.0]
    """
    if is_native():
        return default(*operands)
    found: _T = lax.platform_dependent(*operands, cpu=cpu, default=default)
    return found
