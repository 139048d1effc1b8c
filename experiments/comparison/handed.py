"""A mixer with the permutations that another run has learned: a permutation apart from how it was found."""

from __future__ import annotations

from pathlib import Path

import jax.numpy as jnp

from shuffle_jax.naming import some
from shuffle_jax.nn import FixedPermutation
from shuffle_jax.run import Run
from shuffle_jax.typing import Array, Int


class Handed(FixedPermutation):
    """The hardened permutation that a finished run has at the same place of its network, from the first step on.

    In a network with fresh weights it tells whether the permutation is to blame for an accuracy or the way to it. With
    ``--start-from`` the same run it is that network hardened and trained on.

    Attributes:
        run: folder of the run.
    """

    run: str = ""

    def _index(self, channels: int) -> Int[Array, " c"]:
        learned, layer = Run(Path(self.run)).permutations(), "/".join(self.path)
        if layer not in learned:
            raise ValueError(
                f"{self.run} must have a hardened permutation of {layer}, and has {some(learned) or 'none'}: name a "
                "finished run of the same network with --network.mixer auto"
            )
        if (known := len(learned[layer])) != channels:
            raise ValueError(
                f"{self.run} has a permutation of {known} channels in {layer}, and {channels} are to be permuted: name "
                "a run of the same width"
            )
        return jnp.asarray(learned[layer])
