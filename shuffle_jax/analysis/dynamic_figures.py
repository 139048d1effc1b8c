"""Figures of dynamic shuffles: which permutations the images receive, and from which soft factors.

Every function takes snapshots, which :mod:`~shuffle_jax.analysis.dynamic_numbers` describes, and returns a figure as
those of :mod:`~shuffle_jax.analysis.figures` do.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import numpy as np

from shuffle_jax.analysis.drawing import GREY, blank, by_depth, short_names
from shuffle_jax.analysis.dynamic_numbers import (
    Snapshot,
    between_classes,
    factors_of,
    frequency,
    from_the_rest,
    layers_of,
    pair_distances,
    within_and_between,
)
from shuffle_jax.analysis.figures import pooled, spread
from shuffle_jax.typing import Float

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

MAX_COLUMNS = 6
"""More classes than these get no heat map of their own."""

MAX_NAMES = 20
"""More classes than these are not named along an axis."""

ALIKE = "every image receives the same permutation"


def class_permutations(snapshot: Snapshot, classes: Sequence[str]) -> Figure:
    """What the images of a class take from where, in the layer whose classes differ most.

    The columns are all images and the classes that lie farthest from the other images: by the mean distance to those,
    less the mean distance within the class and within the rest. In expectation it does not depend on how few images a
    class has, and it is 0 for a class like the others.

    Args:
        snapshot: as :mod:`~shuffle_jax.analysis.dynamic_numbers` describes it.
        classes: the names by label.

    Returns:
        A figure of one row for each factor, of the first group, and one column for each class.

    Raises:
        ValueError: there are no layers or no images, or a class has no name.
    """
    factors, labels = factors_of(snapshot, classes), snapshot["labels"]
    distances = {layer: pair_distances(*pair) for layer, pair in factors.items()}
    means = {layer: within_and_between(between_classes(d, labels, len(classes))) for layer, d in distances.items()}
    apart = {layer: np.nan_to_num(between - within, nan=-np.inf) for layer, (within, between) in means.items()}
    layer = max(factors, key=lambda layer: (distances[layer].any(), apart[layer]))
    present = [int(label) for label in np.unique(labels)]
    far = {label: from_the_rest(distances[layer], labels == label) for label in present}
    farthest = sorted(present, key=lambda label: -np.nan_to_num(far[label], nan=-np.inf))[:MAX_COLUMNS]
    columns = [(f"all images\n{len(labels)} images\n", np.full(len(labels), True))]
    for label in farthest:
        distance = f"{far[label]:.2g} from the rest" if np.isfinite(far[label]) else ""
        columns.append((f"{_short(classes[label])}\n{_images(np.sum(labels == label))}\n{distance}", labels == label))
    parts = {"block": factors[layer][0][:, 0], "channel within a block": factors[layer][1][:, 0]}
    parts = {name: part for name, part in parts.items() if part.shape[1] > 1} or parts  # One place leaves no choice.
    figure = blank(max(1.8 * len(columns) + 2.0, 8.0), 2.0 * len(parts) + 1.6)
    panels = figure.subplots(len(parts), len(columns), squeeze=False)
    for k, (name, part) in enumerate(parts.items()):
        for axes, (title, chosen) in zip(panels[k], columns, strict=True):
            image = _heat_map(axes, frequency(part[chosen]), 1 / 2)
            axes.set_xlabel(f"input {name}", fontsize=8)
            if k == 0:
                axes.set_title(title.rstrip("\n"), fontsize=9)
        panels[k, 0].set_ylabel(f"output {name}", fontsize=8)
    bar = figure.colorbar(image, ax=panels, ticks=[0, 0.05, 0.2, 0.5, 1], format="%g", aspect=25)
    bar.set_label("share of the images\n(colour: its square root)", fontsize=9)
    outer = factors[layer][0]
    group = f", group 0 of {outer.shape[1]}" if outer.shape[1] > 1 else ""
    figure.suptitle(
        f"Where the images of a class take their channels from: {_name(layer, factors)}{group}\n"
        f"{_difference(*means[layer], bool(distances[layer].any()))}"
    )
    if np.isfinite(list(far.values())).any():
        note = "From the rest: share between a class and the other images, less its mean within the two."
        figure.supxlabel(note, fontsize=9, color=GREY)
    return figure


def class_distances(snapshot: Snapshot, classes: Sequence[str]) -> Figure:
    """How different the permutations of two images are, by their classes.

    Args:
        snapshot: as :mod:`~shuffle_jax.analysis.dynamic_numbers` describes it.
        classes: the names by label; those without images are left out.

    Returns:
        A figure of one heat map for each of at most ``MAX_ROWS`` layers, spread evenly in depth: of those that are not
        static in effect, if there are any.

    Raises:
        ValueError: there are no layers or no images, or a class has no name.
    """
    from matplotlib import colormaps

    factors, labels = factors_of(snapshot, classes), snapshot["labels"]
    moving = [layer for layer, pair in factors.items() if not all((factor == factor[0]).all() for factor in pair)]
    shown = spread(moving or list(factors))
    present, labels = np.unique(labels, return_inverse=True)
    names = [_short(classes[label]) for label in present] if len(present) <= MAX_NAMES else []
    columns = 2 if len(shown) == 4 else min(3, len(shown))
    rows = -(-len(shown) // columns)
    figure = blank(max(4.0 * columns + 0.5, 7.0), 3.9 * rows + 1.2)
    panels = figure.subplots(rows, columns, squeeze=False)
    for k, (axes, layer, name) in enumerate(zip(panels.flat, shown, short_names(shown), strict=False)):
        means = between_classes(pair_distances(*factors[layer]), labels, len(present))
        within, between = within_and_between(means)
        finite = means[np.isfinite(means)]
        low, high = (finite.min(), finite.max()) if len(finite) and np.ptp(finite) > 0 else (0.0, 1.0)
        image = axes.imshow(means, cmap=colormaps["Blues"].with_extremes(bad="#d4d4d4"), vmin=low, vmax=high)
        figure.colorbar(image, ax=axes, shrink=0.8, format="%.3g").set_label("mean distance", fontsize=8)
        axes.set_title(f"{name}\nwithin {_number(within)}, between {_number(between)}", fontsize=10)
        axes.set_xticks(range(len(names)), labels=names if k + columns >= len(shown) else [""] * len(names))
        axes.set_yticks(range(len(names)), labels=names if k % columns == 0 else [""] * len(names))
        axes.tick_params(length=0, labelsize=8)
        axes.tick_params("x", rotation=90)
        if not names:
            axes.set(xlabel=f"{len(present)} classes by label", ylabel=f"{len(present)} classes by label")
    for axes in panels.flat[len(shown) :]:
        axes.remove()
    static = len(factors) - len(moving)
    layers = f"{len(shown)} of {len(factors)} layers"
    if static and moving:
        layers = f"{len(shown)} of the {len(moving)} layers where they differ (static in effect: {static} more)"
    figure.suptitle(
        f"In every layer {ALIKE}"
        if not moving and len(labels) > 1
        else f"Distance of the permutations of two images, in {layers}\n(share of channels taken from different places)"
    )
    grey = "\nGrey: the images make no such pair." if np.isnan(means).any() else ""
    note = f"{_images(len(labels))}. On the diagonal two of one class. Each panel has its own colours.{grey}"
    figure.supxlabel(note, fontsize=9, color=GREY)
    return figure


def factor_means(snapshots: Sequence[tuple[int | str, Snapshot]]) -> Figure:
    """The soft factors averaged over the images: one row a layer, a pair of columns a moment.

    A blurred mean can be soft factors or hard ones that differ between the images. The numbers below tell: they give
    the mean of the row maxima of the mean, once of the soft factors and once of their row-wise argmax.

    Args:
        snapshots: for each moment its name, or its step, and the snapshot.

    Returns:
        A figure of at most ``MAX_ROWS`` layers, spread evenly in depth; of the first group if there are several.

    Raises:
        ValueError: there are no snapshots, or they have no layer in common.
    """
    layers = by_depth(set.intersection(*(set(layers_of(s)) for _, s in snapshots))) if snapshots else []
    if not layers:
        raise ValueError("no factors to draw: pass one snapshot or more, with at least one layer in all of them")
    shown = spread(layers)
    figure = blank(max(3.6 * len(snapshots) + 1.6, 7.0), 1.9 * len(shown) + 1.6)
    widths = ([1.0, 1.0, 0.12] * len(snapshots))[:-1]  # Some room between the moments.
    panels = figure.subplots(len(shown), len(widths), squeeze=False, width_ratios=widths)
    for axes in panels[:, 2::3].flat:
        axes.remove()
    for row, (layer, name) in enumerate(zip(shown, short_names(shown), strict=True)):
        panels[row, 0].set_ylabel(f"{name}\noutput", fontsize=9)
        for k, (moment, snapshot) in enumerate(snapshots):
            for axes, factor in zip(panels[row, 3 * k :], ("outer", "inner"), strict=False):
                mean = np.asarray(snapshot[f"{layer}/{factor}_mean"][0])
                image = _heat_map(axes, mean, 1 / 3)
                soft, hard = (m.max(axis=1).mean() for m in (mean, frequency(snapshot[f"{layer}/{factor}"][:, 0])))
                below = "\ninput" if row == len(shown) - 1 else ""
                axes.set_xlabel(f"soft {soft:.2g}, hard {hard:.2g}{below}", fontsize=8)
                if row == 0:
                    axes.set_title(f"{moment if isinstance(moment, str) else f'step {moment}'}\n{factor}", fontsize=10)
    ticks = [0, 0.001, 0.01, 0.05, 0.2, 0.5, 1]
    figure.colorbar(
        image, ax=figure.axes, label="entry", ticks=ticks, format="%g", shrink=max(0.6, 1 / len(shown)), aspect=40
    )
    groups = max(snapshots[0][1][f"{layer}/outer"].shape[1] for layer in shown)
    group = f", group 0 of {groups}" if groups > 1 else ""
    images = _images(len(snapshots[0][1]["labels"]))
    figure.suptitle(f"Soft factors of {len(shown)} of {len(layers)} layers{group}, mean over {images}")
    note = (
        "Below: mean of the row maxima, of the soft factors and of their row-wise argmax.\n"
        "Soft below hard: not sharp yet. Hard below 1: the images differ.\n"
        "Colour goes with the cube root of the entry."
    )
    figure.supxlabel(note, fontsize=9, color=GREY)
    return figure


def _heat_map(axes: Axes, matrix: Float[np.ndarray, "s s"], power: float) -> AxesImage:
    """Draws entries in [0, 1], row 0 on top; colours go with the given power of an entry."""
    from matplotlib.colors import PowerNorm

    size = len(matrix)
    cells, side = pooled(matrix)
    extent = (-0.5, side - 0.5, side - 0.5, -0.5)
    image = axes.imshow(cells, cmap="Blues", norm=PowerNorm(power, 0.0, 1.0), extent=extent, interpolation="none")
    axes.set(xlim=(-0.5, size - 0.5), ylim=(size - 0.5, -0.5))
    ticks = range(size) if size <= 8 else (0, size // 2, size - 1)
    axes.set_xticks(ticks)
    axes.set_yticks(ticks)
    axes.tick_params(labelsize=7, length=2)
    return image


def _difference(within: float, between: float, differ: bool) -> str:
    """How far the classes are apart, in words."""
    if not differ:
        return ALIKE
    if not np.isfinite(between):
        return f"one class, whose images take {_number(within)} of the channels from different places"
    if not np.isfinite(within):
        return f"one image a class, {_number(between)} of the channels taken from different places"
    return (
        "share of channels that two images take from different places:\n"
        f"{_number(between)} between classes, {_number(within)} within, {between - within:.2g} apart"
    )


def _name(layer: str, layers: Collection[str]) -> str:
    """The short name of one layer among others."""
    return dict(zip(layers, short_names(list(layers)), strict=True))[layer]


def _short(name: str) -> str:
    """A class name of bearable length."""
    return name if len(name) <= 18 else f"{name[:17]}…"


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count} images"


def _number(value: float) -> str:
    return f"{value:.3g}" if np.isfinite(value) else "(no pair)"
