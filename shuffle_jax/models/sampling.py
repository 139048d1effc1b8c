"""Where a network halves its images: by strides, or by what samples instead of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn

from shuffle_jax.ops.convolution import Padding
from shuffle_jax.typing import Images

Sampling = Callable[..., nn.Module]
"""Factory of what samples, called as ``sampling(name="sampling")``.

It gives a module ``(x, choice) -> (y, choice)`` that halves an image, by its own choice where none (None) is given.
"""


class Halving(NamedTuple):
    """What takes the place of a stride of 1 or 2: the stride itself, or a stride of 1 and what samples behind it.

    Attributes:
        step: 1 or 2.
        sampling: factory; None for the stride.
    """

    step: int
    sampling: Sampling | None

    @property
    def stride(self) -> int:
        """Of the convolution."""
        return 1 if self.sampling else self.step

    @property
    def padding(self) -> Padding:
        """Of every convolution of a network that samples so."""
        return "wrap" if self.sampling else "zeros"

    @property
    def around(self) -> dict[str, Padding]:
        """What a factory of convolutions is told of it: nothing where they are strided, which is their default."""
        return {"padding": "wrap"} if self.sampling else {}

    def __call__(self, *branches: Images, name: str = "sampling") -> tuple[Images, ...]:
        """Samples images alike, by the choice of the first, inside the calling module; with a stride nothing is left.

        Args:
            branches: images of one size.
            name: of the module.
        """
        if self.step == 1 or self.sampling is None:
            return branches
        sample = self.sampling(name=name)
        first, choice = sample(branches[0], None)
        return first, *(sample(branch, choice)[0] for branch in branches[1:])


def check_sizes(x: Images, sampling: Sampling | None, times: int) -> None:
    """Raises a ValueError for images that a network which samples could not halve so often, every time to the whole.

    Args:
        x: ``(n, h, w, c)``.
        sampling: factory; None for strides, which take any size.
        times: how often it halves.
    """
    height, width = x.shape[1:3]
    if sampling is not None and (height % 2**times or width % 2**times):
        raise ValueError(
            f"sampling {times} times takes heights and widths that are multiples of {2**times}, got {height} x "
            f"{width}: resize or crop the images, or sample by strides (on an odd size nothing follows every shift)"
        )
