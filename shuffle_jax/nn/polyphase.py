"""Sampling by every second row and column, those that the image itself chooses."""

from __future__ import annotations

import flax.linen as nn

from shuffle_jax.ops import polyphase
from shuffle_jax.ops.polyphase import BlurSize, Criterion, Select
from shuffle_jax.typing import Array, Images, Int, Outputs


class PolyphaseSampling(nn.Module):
    """Adaptive polyphase sampling, :func:`shuffle_jax.ops.polyphase.sample`: nothing is learned.

    Of an image of even sizes that is shifted circularly it keeps the same values. Behind convolutions that wrap, and
    with a mean over positions at the end, a network so gives the same logits for every circular shift.

    Attributes:
        criterion: what the kept rows and columns have the most of: the l2 or l1 norm, the largest absolute or signed
            value; or the least l2 or l1 norm.
        blur: size of the circular binomial blur in front, 1 (none) to 5.
        select: what is compared, the image "blurred" or "unblurred".
    """

    criterion: Criterion = "l2"
    blur: BlurSize = 1
    select: Select = "blurred"

    @nn.compact
    def __call__(self, x: Images, choice: Int[Array, " n"] | None = None) -> tuple[Outputs, Int[Array, " n"]]:
        """Maps ``(n, h, w, c)`` to ``(n, ceil(h / 2), ceil(w / 2), c)``, and says which of the four each sample kept.

        Args:
            x: the images.
            choice: which they keep, as it was chosen for another branch; by default (None) their own.
        """
        return polyphase.sample(x, choice, self.criterion, self.blur, self.select)
