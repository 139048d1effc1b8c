"""The pooling that halves an image on the way past a unit."""

from __future__ import annotations

import numpy as np
from jax import lax

from shuffle_jax.typing import Array, Float, Images


def halve(x: Images) -> Float[Array, "n oh ow c"]:
    """The average of 3 x 3 values around every second one, zeros outside included.

    ``y[n, i, j, c] = sum_ab x[n, 2 i + a - 1, 2 j + b - 1, c] / 9``

    Args:
        x: ``(n, h, w, c)``.

    Returns:
        ``(n, ceil(h / 2), ceil(w / 2), c)``.

    >>> import jax.numpy as jnp
    >>> halve(jnp.ones((1, 3, 3, 1))).ravel().round(3).tolist()
    [0.444, 0.444, 0.444, 0.444]

    Source: Zhang et al., ShuffleNet, 2017, figure 2.
    """
    zero = np.zeros((), x.dtype)  # A constant, by which JAX knows the reduction for a sum and has its gradient.
    pads = ((0, 0), (1, 1), (1, 1), (0, 0))
    return lax.reduce_window(x, zero, lax.add, (1, 3, 3, 1), (1, 2, 2, 1), pads) / 9
