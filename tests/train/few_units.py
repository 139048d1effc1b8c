"""experiments.train with four units of a ShuffleNetV2 and not 16, for processes that start again and again."""

from __future__ import annotations

from experiments.cli import main
from experiments.train import run
from shuffle_jax.models import shufflenet_v2

if __name__ == "__main__":
    shufflenet_v2.UNITS = (2, 1, 1)
    main(run)
