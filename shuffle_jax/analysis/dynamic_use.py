"""What dynamic layers do for single images, in a few numbers and one line.

A layer is static in effect if every image that was looked at has the same permutation in it; invalid is the share of
the images (and groups, where each has its own) whose row-wise argmax is no permutation; used is the top-1 accuracy that
is lost by freezing, one permutation for all images.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Numbers = Mapping[str, float]
"""Of one layer, as :meth:`shuffle_jax.analysis.probe.Probe.numbers` gives them and a run records them."""

Results = Mapping[str, Mapping[str, float]]
"""``top1`` by the form of the network, as :func:`shuffle_jax.train.trained.forms` names them."""


def static_in_effect(numbers: Numbers) -> bool:
    """Whether every image that was looked at has the same permutation in a layer; so it is where none makes another.

    >>> static_in_effect({"permutations": 1, "images": 512}), static_in_effect({"permutations": 2, "images": 512})
    (True, False)
    """
    return numbers.get("permutations", 1) <= 1


@dataclass(frozen=True)
class DynamicUse:
    """What the dynamic layers of a network do for single images.

    Attributes:
        counts: for each layer that makes its permutation from the image, how many different ones there were.
        static: how many of these layers are static in effect.
        images: how many were looked at; 0 without such layers.
        invalid: share of the images whose row-argmax is no permutation, averaged over all layers.
        learned: layers beside these whose factors are learned once for all images.
    """

    counts: tuple[int, ...]
    static: int
    images: int
    invalid: float
    learned: int = 0

    def cells(self, results: Results) -> dict[str, str]:
        """Heading and text of each column that a table of networks has for them."""
        found = {"static in effect": f"{self.static}/{len(self.counts)}"} if self.counts else {}
        pair = frozen_and_not(results)
        used = {"used": f"{_points(*pair)} points"} if self.counts and pair else {}
        return found | {"invalid": f"{self.invalid:.1%}"} | used

    def text(self, results: Results, test_images: int | None = None) -> str:
        """A line without its end.

        Args:
            results: of the network as trained and frozen; others are not looked at.
            test_images: on which the accuracies were measured, for their standard error.
        """
        invalid = f"invalid {self.invalid:.1%}"
        if not self.counts:
            return f"learned factors: {self.learned}, each the same for all images; {invalid}"
        learned = f" (and {self.learned} learned once for all images)" if self.learned else ""
        layers = f"dynamic layers: {len(self.counts)}{learned}, {self._static()}"
        return f"{layers}; {invalid}{self._used(results, test_images)}"

    def _static(self) -> str:
        one, moving = f"one permutation for all {self.images} images", [count for count in self.counts if count > 1]
        if self.static == len(self.counts):
            return f"{'all ' if self.static > 1 else ''}static in effect ({one})"
        several = f"{min(moving)} to {max(moving)}" if min(moving) < max(moving) else f"{moving[0]}"
        if self.static:
            return f"{self.static} of them static in effect ({one}), the other{'s' * (len(moving) > 1)} with {several}"
        return f"none static in effect ({several} permutations for {self.images} images)"

    def _used(self, results: Results, test_images: int | None) -> str:
        pair = frozen_and_not(results)
        if pair is None:
            return ""
        own, frozen = pair
        name = "hard" if "hard" in results else "as trained"
        shown = f"{name} {own:.1%}, frozen{' and repaired' if self.invalid else ''} {frozen:.1%}"
        used = f"; used: {_points(own, frozen)} points of top-1"
        if test_images is None:
            return f"{used} ({shown})"
        error = math.sqrt(max(own * (1 - own), 0.0) / test_images)
        if abs(own - frozen) <= error:
            return f"{used}, within the standard error of {100 * error:.1f} ({shown})"
        return f"{used} ({shown}, standard error {100 * error:.1f})"


def dynamic_use(layers: Mapping[str, Numbers]) -> DynamicUse:
    """What the layers of a network do, from the numbers of each; those learned once tell no ``permutations``.

    Args:
        layers: by name, at least one.
    """
    moving = [numbers for numbers in layers.values() if "permutations" in numbers]
    return DynamicUse(
        counts=tuple(int(numbers["permutations"]) for numbers in moving),
        static=sum(map(static_in_effect, moving)),
        images=int(moving[0]["images"]) if moving else 0,
        invalid=statistics.fmean(numbers["invalid"] for numbers in layers.values()),
        learned=len(layers) - len(moving),
    )


def recorded_use(records: Sequence[Mapping[str, Any]], step: int) -> DynamicUse | None:
    """What a run has recorded of its dynamic layers at a step.

    Returns:
        None if it has none, did not look at that step, or is of an earlier version, which did not count.
    """
    layers = {r["layer"]: r for r in records if r["kind"] == "dynamic" and r["step"] == step}
    counted = all("permutations" in r or "distinct" not in r for r in layers.values())
    return dynamic_use(layers) if layers and counted else None


def frozen_and_not(results: Results) -> tuple[float, float] | None:
    """Top-1 with a permutation for each image and with one for all; None if it was not measured."""
    own = results.get("hard", results.get("relaxed"))
    return (own["top1"], results["frozen"]["top1"]) if own and "frozen" in results else None


def _points(own: float, frozen: float) -> str:
    return f"{100 * (own - frozen) + 0.0:.1f}"
