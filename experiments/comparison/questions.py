"""Questions to a comparison: paired differences over the seeds, what they answer, and which run would tell most next.

A question sets one accuracy against another, each named as ``LABEL``, as trained, or as ``LABEL: FORM``. Its pairs are
the seeds that have both, so that what a seed does to both of them cancels.
"""

from __future__ import annotations

import itertools
import math
import statistics
import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from experiments.cli import nearest
from experiments.comparison.runs import OTHERS

FORMS = ("hardened", *OTHERS)
"""Other forms of a network than as trained that a question may name."""

CONFIDENCE, POWER = 0.95, 0.8
"""Of the interval, and with which a true difference would be found by so many seeds as a verdict names."""

MOST = 100
"""Seeds beyond which their number is no longer told."""

FIRST = 2
"""Seeds of every question before they choose: without a spread there is nothing to choose by."""


def operand(text: str, labels: Iterable[str]) -> tuple[str, str | None]:
    """The label and the form that a question names; the form is None of a network as trained.

    Raises:
        ValueError: there is no such label or form.

    >>> operand("learned: hardened", ["fixed", "learned"])
    ('learned', 'hardened')
    """
    labels = list(labels)
    if text in labels:
        return text, None
    label, colon, form = text.rpartition(": ")
    if label in labels:
        if form in FORMS:
            return label, form
        raise ValueError(f"{text!r} names no form {form!r} of a network; near: {nearest(form, FORMS)}")
    near = nearest(label if colon and form in FORMS else text, labels)
    raise ValueError(f"{text!r} names no variant; near: {near}, or one with a form behind it, such as ': hardened'")


@dataclass(frozen=True)
class Answer:
    """What the seeds say to a question.

    Attributes:
        question: its name.
        first: what it names first.
        second: what that is set against.
        differences: accuracy of the first less that of the second, of each seed that has both, in points.
        margin: points below which a difference is said to be none.
    """

    question: str
    first: str
    second: str
    differences: tuple[float, ...]
    margin: float

    @property
    def mean(self) -> float:
        """Of the differences, of which there must be one."""
        return statistics.fmean(self.differences)

    @cached_property
    def interval(self) -> tuple[float, float] | None:
        """Within which the true mean is said to be, ``mean ± t s / sqrt(n)``; None of fewer than two pairs."""
        from scipy import stats

        n = len(self.differences)
        if n < 2:
            return None
        half = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) * statistics.stdev(self.differences) / math.sqrt(n)
        return self.mean - half, self.mean + half

    @property
    def is_ahead(self) -> bool:
        """Whether one of the two is ahead: the interval excludes 0."""
        return self.interval is not None and (self.interval[0] > 0 or self.interval[1] < 0)

    @property
    def is_within(self) -> bool:
        """Whether the whole interval is within the margin on both sides of 0."""
        return self.interval is not None and -self.margin <= self.interval[0] and self.interval[1] <= self.margin

    @property
    def is_open(self) -> bool:
        """Whether more seeds are needed to say something."""
        return not (self.is_ahead or self.is_within)

    @cached_property
    def seeds(self) -> float:
        """How many seeds an open question is expected to take in all; infinity of more than ``MOST``.

        The fewest with which the paired t test would find a true difference as large as the mean with ``POWER``, or the
        interval would be within the margin, if the spread stays as it is.
        """
        from scipy import stats

        if self.interval is None:
            return 2
        # An open question has a spread: without one the interval is a point, which is 0 or excludes it.
        counts = np.arange(len(self.differences) + 1, MOST + 1)
        error = statistics.stdev(self.differences) / np.sqrt(counts)
        freedom, critical = counts - 1, stats.t.ppf((1 + CONFIDENCE) / 2, counts - 1)
        shift = abs(self.mean) / error
        power = stats.nct.sf(critical, freedom, shift) + stats.nct.cdf(-critical, freedom, shift)
        enough = (power >= POWER) | (abs(self.mean) + critical * error <= self.margin)
        return float(counts[enough][0]) if enough.any() else math.inf

    @property
    def verdict(self) -> str:
        """The answer in words."""
        if self.is_ahead:
            ahead = f"{self.first if self.mean > 0 else self.second} is ahead"
            return f"{ahead}, but by less than the margin" if self.is_within else ahead
        if self.is_within:
            return "level"
        if self.interval is None:
            return "undecided: fewer than two pairs"
        return f"undecided: {f'more than {MOST}' if math.isinf(self.seeds) else f'about {self.seeds:.0f}'} seeds"


def answers(results: Mapping[str, Any]) -> list[Answer]:
    """What the results say to each of their questions, in their order; none of results without questions.

    Args:
        results: see :mod:`experiments.comparison.table`.
    """
    variants = {variant["label"]: variant["runs"] for variant in results["variants"]}
    found = []
    for question, (first, second) in results.get("questions", {}).items():
        one, other = (_accuracies(variants, text) for text in (first, second))
        differences = tuple(one[seed] - other[seed] for seed in results["seeds"] if seed in one and seed in other)
        found.append(Answer(question, first, second, differences, results["margin"]))
    return found


def next_run(results: Mapping[str, Any]) -> tuple[str, int] | None:
    """The run to train next.

    Without questions that is the first one missing, variant by variant. With questions each of them in turn gets its
    first seeds, so that the file begins with what matters most; then the open question has its turn that is expected
    to need the fewest further ones, at the seed at which it lacks the fewest runs; and when none can be brought further
    all that is missing, seed by seed.

    Args:
        results: see :mod:`experiments.comparison.table`; a run that failed is not missing, and no other makes a pair
            with it.

    Returns:
        Its label and its seed, or None if no run is missing.
    """
    variants, seeds = {variant["label"]: variant["runs"] for variant in results["variants"]}, results["seeds"]
    there = {(label, run["seed"]) for label, runs in variants.items() for run in runs}
    failed = {(label, run["seed"]) for label, runs in variants.items() for run in runs if "failed" in run}
    asked = answers(results)
    if not asked:
        return next((one for one in itertools.product(variants, seeds) if one not in there), None)

    def pairs(answer: Answer) -> list[list[tuple[str, int]]]:
        labels = dict.fromkeys(operand(text, variants)[0] for text in (answer.first, answer.second))
        return [[(label, seed) for label in labels] for seed in seeds]

    for answer in asked:
        for pair in pairs(answer)[:FIRST]:
            if lacking := [one for one in pair if one not in there]:
                return lacking[0]
    still_open = [answer for answer in asked if answer.is_open]
    for answer in sorted(still_open, key=lambda answer: answer.seeds - len(answer.differences)):
        whole = [pair for pair in pairs(answer) if not failed.intersection(pair)]
        if wanting := [lacking for pair in whole if (lacking := [one for one in pair if one not in there])]:
            return min(wanting, key=len)[0]
    return next(((label, seed) for seed in seeds for label in variants if (label, seed) not in there), None)


def answer_table(results: Mapping[str, Any]) -> str:
    """The answers in Markdown, one row a question; nothing of results without questions."""
    found = answers(results)
    if not found:
        return ""
    lines = ["| question | pairs | mean difference | 95 % interval | verdict |", "|---|---|---|---|---|"]
    for answer in found:
        mean = _points(answer.mean) if answer.differences else ""
        interval = " to ".join(map(_points, answer.interval)) if answer.interval else ""
        cells = (answer.question, str(len(answer.differences)), mean, interval, answer.verdict)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def answer_legend(results: Mapping[str, Any]) -> str:
    """What the table of answers shows, as a paragraph; nothing of results without questions."""
    found = answers(results)
    if not found:
        return ""
    named = "; ".join(f"{answer.question}: '{answer.first}' less '{answer.second}'" for answer in found)
    text = (
        f"Differences of accuracies in points, seed by seed, and the interval of Student's t for their mean. {named}. "
        "Ahead: the interval excludes 0. Level: it does not, and the whole of it is within the margin of "
        f"{results['margin']} points. Undecided: how many seeds it takes that a true difference as large as the mean is"
        f" found with {100 * POWER:.0f} % power, or the interval is within the margin, if the spread stays as it is."
    )
    return textwrap.fill(text, 120, break_on_hyphens=False) + "\n"


def _accuracies(variants: Mapping[str, Any], text: str) -> dict[int, float]:
    """Accuracies in per cent by seed, of the finished runs that have what a question names."""
    label, form = operand(text, variants)
    found = {}
    for run in variants[label]:
        forms: dict[str | None, Any] = {None: run.get("relaxed"), "hardened": run.get("hardened")}
        forms |= run.get("others", {})
        if (numbers := forms.get(form)) is not None:
            found[run["seed"]] = 100.0 * numbers["top1"]
    return found


def _points(value: float) -> str:
    return f"{round(value, 2) + 0.0:.2f}"  # Adding 0 turns the -0.0 of a rounding into 0.0.
