"""All figures: they leave the state of matplotlib alone, import it only when they draw, and cover no curve."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import sys
import numpy as np
from experiments.comparison import curves, figure
from experiments.matching.figures import Curves, descent_figure, recovery_figure
from experiments.matching.two_layer_figure import two_layer_figure
from shuffle_jax.analysis import dynamic_figures, run_figures
from shuffle_jax.analysis.channel_reach import Reach
from shuffle_jax.analysis.figures import learning_curves, permutations
from shuffle_jax.analysis.reach_figure import reach_figure
assert "matplotlib" not in sys.modules
import matplotlib
before = dict(matplotlib.rcParams)
hits = {"a": {2: np.ones((1, 1), bool)}}
train = [{"kind": "train", "step": i, "epoch": i, "loss": 1.0, "accuracy": 0.5} for i in (1, 2)]
run = {"seed": 1, "relaxed": {"top1": 0.5}, "hardened": {"top1": 0.5}, "certified": 1, "permutations": 1}
run["curves"] = {"train_loss": [[1, 1.0], [2, 0.5]], "top1": [[1, 0.5], [2, 0.75]]}
results = {"title": "two", "seeds": [1], "variants": [{"label": label, "runs": [run]} for label in ("a", "b")]}
for drawn in (
    figure.figure(results),
    curves.curves(results),
    learning_curves([*train, {"kind": "test", "step": 2, "epoch": 2, "loss": 0.5, "top1": 0.75}]),
    permutations({"a": np.arange(4)}),
    reach_figure({"a": {"b": [Reach("stage1_0", 4, 4, 1.0)]}}),
    descent_figure({"a": Curves([0, 1], [[1.0, 0.0]], [[1.0, 0.0]])}),
    recovery_figure({"a": {"b": (1, 2)}}),
    two_layer_figure(hits, hits),
):
    drawn.savefig("/dev/null", format="png")
    for legend in filter(None, [*drawn.legends, *(axes.get_legend() for axes in drawn.axes)]):
        assert not any(legend.get_window_extent().overlaps(axes.get_window_extent()) for axes in drawn.axes)
assert "matplotlib.pyplot" not in sys.modules and dict(matplotlib.rcParams) == before
"""


def test_no_global_state_no_import_before_use_and_no_legend_over_curves() -> None:
    subprocess.run([sys.executable, "-W", "error", "-c", PROGRAM], check=True)
