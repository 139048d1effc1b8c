"""The confusion matrix and a sheet of the pictures that are wrong, as figures."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from experiments.evaluation.predictions import Predictions
from shuffle_jax.analysis.drawing import blank
from shuffle_jax.data import Dataset

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NUMBERED = 20
"""Classes of which the counts are written into the matrix; of up to ``NAMED`` the names beside it."""

NAMED = 100

COLUMNS = 6


def confusion_figure(found: Predictions) -> Figure:
    """The share of the images of each class (row) that are said to be of each (column)."""
    matrix, names = found.confusion, found.classes
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    side = min(max(4.0, 0.45 * len(names)), 16.0)
    figure = blank(side + 1.5, side + 0.5)
    axes = figure.add_subplot()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.suptitle("share of each class (row), by what it is said to be (column)", fontsize=11)
    if len(names) <= NAMED:
        size = 9 if len(names) <= NUMBERED else 5
        axes.set_xticks(range(len(names)), [_short(name) for name in names], rotation=90, fontsize=size)
        axes.set_yticks(range(len(names)), [_short(name) for name in names], fontsize=size)
    if len(names) <= NUMBERED:
        for i, j in np.argwhere(matrix):
            colour = "white" if shares[i, j] > 0.5 else "black"
            axes.text(j, i, str(matrix[i, j]), ha="center", va="center", fontsize=8, color=colour)
    figure.colorbar(image, ax=axes, shrink=0.7)
    return figure


def wrong_figure(found: Predictions, dataset: Dataset, most: int) -> Figure:
    """The pictures that are wrong with the highest probability, what they are and what they are said to be."""
    positions = found.wrong(most)
    images, _ = dataset.test.take(positions)
    columns = min(COLUMNS, max(len(positions), 2))
    rows = max(1, math.ceil(len(positions) / columns))
    figure = blank(1.7 * columns, 2.1 * rows + 0.3)
    figure.suptitle("wrong, the surest first", fontsize=11)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in panels:
        axes.set_axis_off()
    for axes, image, position in zip(panels, images, positions, strict=False):
        axes.imshow(image if image.shape[-1] == 3 else image[..., 0], cmap="gray", vmin=0, vmax=255)
        name, said = found.classes[found.labels[position]], found.classes[found.said[position]]
        axes.set_title(f"{_short(name)}\nsaid {_short(said)} {found.probability[position]:.2f}", fontsize=8)
    return figure


def _short(name: str, most: int = 18) -> str:
    """A name that fits beside a picture, in which nothing is taken for a formula."""
    name = name if len(name) <= most else f"{name[: most - 1]}…"
    return name.replace("$", r"\$")
