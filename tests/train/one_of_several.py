"""experiments.train beside the networks of this folder; its steps take their time where processes run together."""

from __future__ import annotations

import os
import time

from experiments.cli import main
from experiments.train import run
from shuffle_jax.distributed import Agreement, exit_process

if __name__ == "__main__":
    largest, pause = Agreement.largest, float(os.environ.get("PAUSE", "0"))

    def slowly(self, value):
        time.sleep(pause)
        return largest(self, value)

    Agreement.largest = slowly
    main(run, exit_process)
