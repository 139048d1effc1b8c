"""The fused step of AddressNet: a channel shift, an address shift and a grouped 1x1 convolution as one operation.

Here the form is chosen; two of them stand in files of their own.
"""

from __future__ import annotations

from typing import Literal, get_args

from shuffle_jax.ops import convolution
from shuffle_jax.ops.form import is_native
from shuffle_jax.ops.shift import LEFT_UP_RIGHT_DOWN, Boundary, Offsets, address_shift, check_shift, rotate
from shuffle_jax.ops.shifted_pointwise_folded import folded
from shuffle_jax.typing import Array, Float, Images

Form = Literal["auto", "plain", "folded", "kernel"]
"""How it is computed: see :func:`shifted_pointwise`."""


def shifted_pointwise(
    x: Images,
    kernel: Float[Array, "1 1 i o"],
    groups: int = 4,
    rotation: int = 0,
    offsets: Offsets = LEFT_UP_RIGHT_DOWN,
    boundary: Boundary = "pointer",
    form: Form = "auto",
) -> Float[Array, "n h w o"]:
    """Rotates the channels, moves them over the image, and convolves them in groups.

    ``y = pointwise(address_shift(rotate(x, r), offsets, boundary), K, g)``

    - "plain" is this equation, left to XLA to fuse; it is also the native form, see :mod:`shuffle_jax.ops.form`.
    - "folded" is :func:`~shuffle_jax.ops.shifted_pointwise_folded.folded`, which moves products where they are fewer.
      Where it does with the boundary "pointer", there is no forward-mode derivative.
    - "kernel" is :func:`~shuffle_jax.ops.shifted_pointwise_kernel.shift_and_convolve`, one kernel for GPU.
    - "auto" is the fastest known on the platform: "folded". On GPU nothing has been measured, and the kernel has only
      been lowered and interpreted, not run: it is there to be asked for.

    Args:
        x: ``(n, h, w, c)``.
        kernel: ``(1, 1, c / g, o)``, of the type of x.
        groups: g, a divisor of c and o.
        rotation: r, channels by which they rotate to the left; ``c / (2 g)`` is the channel shift.
        offsets: of the address shift; none for no address shift.
        boundary: of the address shift.
        form: "auto", "plain", "folded" or "kernel".

    Returns:
        ``(n, h, w, o)``.

    Raises:
        ValueError: as :func:`~shuffle_jax.ops.shift.address_shift` and
            :func:`~shuffle_jax.ops.convolution.pointwise`, or there is no such form, or not here.

    >>> import jax.numpy as jnp
    >>> x, kernel = jnp.arange(4.0).reshape(1, 1, 1, 4), jnp.ones((1, 1, 2, 2))
    >>> shifted_pointwise(x, kernel, groups=2, rotation=1, offsets=()).ravel().tolist()
    [3.0, 3.0]

    Source: He, Liu, Zhong and Ma, AddressNet, 2019; how it is folded is this project's.
    """
    check_shift(x.shape, offsets, boundary)
    if form not in get_args(Form):
        raise ValueError(f"there is no form {form!r}: choose one of {list(get_args(Form))}")
    if form == "kernel":
        from shuffle_jax.ops.shifted_pointwise_kernel import shift_and_convolve  # imports Pallas

        return shift_and_convolve(x, kernel, groups, rotation, offsets, boundary)
    if form == "plain" or is_native():
        return convolution.pointwise(address_shift(rotate(x, rotation), offsets, boundary), kernel, groups)
    return folded(x, kernel, groups, rotation, offsets, boundary)
