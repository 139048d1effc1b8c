"""Where a convolution looks: one description for images and for sequences, which are images of one row."""

from __future__ import annotations

import math
from typing import NamedTuple

from shuffle_jax.ops.convolution import Padding, Pads, resolve_padding


class Window(NamedTuple):
    """A window over an image.

    Attributes:
        image: rows and columns of the input.
        size: (kh, kw).
        pads: zeros around rows and columns, or "wrap" for the opposite side.
        out: rows and columns of the output.
    """

    image: tuple[int, int]
    size: tuple[int, int]
    pads: Pads | Padding
    out: tuple[int, int]

    @property
    def positions(self) -> tuple[int, int]:
        """How many the input and the output have."""
        return math.prod(self.image), math.prod(self.out)


def window(
    positions: tuple[int, ...],
    kernel_size: int | tuple[int, ...],
    stride: int,
    padding: tuple[tuple[int, int], ...] | Padding | None,
) -> Window:
    """The window of a layer over an input with one or two axes of positions.

    Args:
        positions: sizes of these axes.
        kernel_size: k for all of them, or one for each.
        stride: at least 1, the same for all.
        padding: zeros before and after each axis; ``k // 2`` by default, or as many of the opposite side, "wrap".

    Raises:
        ValueError: another number of axes, or a window larger than the padded input.

    >>> window((9,), 3, 2, None)
    Window(image=(1, 9), size=(1, 3), pads=((0, 0), (1, 1)), out=(1, 5))
    """
    axes = len(positions)
    if axes not in (1, 2):
        raise ValueError(f"a convolution takes (n, h, w, c) or (n, l, c), not {axes + 2} axes")
    sizes = (kernel_size,) * axes if isinstance(kernel_size, int) else kernel_size
    for name, given in (("kernel_size", sizes), ("padding", padding)):
        if given is not None and not isinstance(given, str) and len(given) != axes:
            raise ValueError(f"{name} {given} is for {len(given)} axes, the input has {axes}: give one for each")
    if stride < 1 or min(sizes) < 1:
        raise ValueError(f"kernel_size and stride must be positive, got {sizes} and {stride}")
    if axes == 1:
        positions, sizes = (1, *positions), (1, *sizes)
        padding = padding if padding is None or isinstance(padding, str) else ((0, 0), *padding)
    image, size = (positions[0], positions[1]), (sizes[0], sizes[1])
    given = padding if padding is None or isinstance(padding, str) else (padding[0], padding[1])
    pads = resolve_padding(image, size, given)
    rows, columns = ((m + sum(pad) - k) // stride + 1 for m, k, pad in zip(image, size, pads, strict=True))
    return Window(image, size, "wrap" if padding == "wrap" else pads, (rows, columns))
