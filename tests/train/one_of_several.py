"""experiments.train with a small network and steps that take their time, for processes that run together."""

from __future__ import annotations

import os
import runpy
import time
from pathlib import Path

from experiments.cli import main
from experiments.train import run
from shuffle_jax.distributed import Agreement, leave
from shuffle_jax.train import experiment

if __name__ == "__main__":
    small = runpy.run_path(str(Path(__file__).with_name("conftest.py")))["Small"]
    experiment.build = lambda config, classes: small(classes)
    largest, pause = Agreement.largest, float(os.environ["PAUSE"])

    def slowly(self, value):
        time.sleep(pause)
        return largest(self, value)

    Agreement.largest = slowly
    main(run, leave)
