"""Comparing variants of a training over several seeds: what their records say, as a table.

Results are plain dictionaries, as JSON holds them, so that a table or a figure can be made again without a run::

    {"name", "title", "text", "command", "each_seed", "seeds", "margin", "questions", "measured", "versions", "devices",
     "date", "variants": [
        {"label", "command", "parameters", "multiply_adds", "runs": [
            {"seed", "digest", "relaxed", "hardened", "certified", "permutations", "others", "dynamic", "curves"},
            ...]}, ...]}

``relaxed`` and ``hardened`` hold ``top1`` and ``loss``, ``others`` the same by network, ``curves`` pairs with the
epoch, see :mod:`experiments.comparison.runs`; a run that failed holds ``seed``, ``digest`` and ``failed``, a message,
and one that is not finished is missing. ``others`` is missing where there are none, ``dynamic``
(:class:`shuffle_jax.analysis.dynamic_use.DynamicUse`) without dynamic layers; it, ``curves``, ``parameters`` and
``multiply_adds`` also where they are not known, as in results of earlier versions, which have no ``digest`` either
(:attr:`experiments.comparison.plan.Planned.digest`). ``margin`` and ``questions`` are there if there are questions,
``measured`` if accuracies are of other images than test images: "validation".
"""

from __future__ import annotations

import statistics
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from experiments.comparison.questions import answer_legend, answer_table
from experiments.comparison.runs import OTHERS
from shuffle_jax.analysis.dynamic_use import DynamicUse, frozen_and_not

Results = Mapping[str, Any]

COLUMNS = ("variant", "as trained")
"""The columns of every table."""

HARDENED = ("hardened", "change by hardening", "certified")
"""The columns behind them, where a variant has learned permutations."""

DYNAMIC = ("permutations in use", "invalid", "used")
"""The columns behind those of ``OTHERS``, where it is known what a variant's dynamic layers do."""

COSTS = ("parameters", "multiply-adds")
"""The last columns, where the costs of every variant are known."""


@dataclass(frozen=True)
class Spread:
    """Numbers of several seeds, at least one."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Their mean."""
        return statistics.fmean(self.values)

    @property
    def deviation(self) -> float | None:
        """Their sample standard deviation (divisor n - 1); None of a single number."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None


@dataclass(frozen=True)
class Row:
    """What the seeds of one variant say together.

    Attributes:
        label: of the variant.
        relaxed: top-1 accuracy as trained, in per cent; None if no run has come to one.
        hardened: the same with index vectors; None also for a network without learned permutations.
        change: hardened less relaxed of the same seed, in points.
        certified: learned permutations that are certified, over all seeds.
        permutations: learned permutations, over all seeds.
        failed: the message of each failed run by its seed.
        missing: the seeds whose runs are not finished.
        others: top-1 accuracy in per cent of the further networks that were evaluated, see ``OTHERS``.
        costs: parameters, and multiply-adds of one image, both after hardening; None if they are not known.
        dynamic: what the dynamic layers of each seed do, where that is known.
        used: top-1 accuracy that freezing loses in those seeds, in points.
    """

    label: str
    relaxed: Spread | None
    hardened: Spread | None
    change: Spread | None
    certified: int
    permutations: int
    failed: dict[int, str]
    missing: tuple[int, ...]
    others: dict[str, Spread]
    costs: tuple[int, int] | None
    dynamic: tuple[DynamicUse, ...]
    used: Spread | None


def rows(results: Results) -> list[Row]:
    """One row for each variant, in their order."""
    found = []
    for variant in results["variants"]:
        there = {run["seed"]: run for run in variant["runs"]}
        done = [run for run in there.values() if "failed" not in run]
        hardened = [run for run in done if run["hardened"] is not None]
        dynamic = [run for run in done if "dynamic" in run]
        others = {name: [run["others"][name] for run in done if name in run.get("others", {})] for name in OTHERS}
        found.append(
            Row(
                label=variant["label"],
                relaxed=_spread([_percent(run["relaxed"]) for run in done]),
                hardened=_spread([_percent(run["hardened"]) for run in hardened]),
                change=_spread([_percent(run["hardened"]) - _percent(run["relaxed"]) for run in hardened]),
                certified=sum(run["certified"] for run in done),
                permutations=sum(run["permutations"] for run in done),
                failed={seed: run["failed"] for seed, run in there.items() if "failed" in run},
                missing=tuple(seed for seed in results["seeds"] if seed not in there),
                others={name: Spread(tuple(map(_percent, each))) for name, each in others.items() if each},
                costs=_costs(variant),
                dynamic=tuple(DynamicUse(**run["dynamic"]) for run in dynamic),
                used=_spread([100 * (pair[0] - pair[1]) for pair in map(_frozen_and_not, dynamic) if pair]),
            )
        )
    return found


def table(results: Results) -> str:
    """The comparison in Markdown, one row a variant.

    Accuracies are in per cent, as mean and sample standard deviation with minimum and maximum over the seeds; the
    change by hardening is in points, seed by seed. Runs that failed or are not finished are left out of the numbers
    and named below. The columns of ``HARDENED`` are there if a variant has learned permutations, those of ``OTHERS``
    and ``DYNAMIC`` if there are numbers for them, those of ``COSTS`` if every variant has both.

    Args:
        results: see above.

    Returns:
        Lines of as many cells as there are columns, one for each failed run, and one for all that are not finished.
    """
    found = rows(results)
    hardened, others, dynamic, costs = _more(found)
    further = [*(OTHERS[name] for name in others), *(DYNAMIC if dynamic else ()), *(COSTS if costs else ())]
    columns = [*COLUMNS, *(HARDENED if hardened else ()), *further]
    lines = [_cells(columns), _cells(["---"] * len(columns))]
    below = []
    for row in found:
        done = len(row.relaxed.values) if row.relaxed else 0
        seeds = done + len(row.failed) + len(row.missing)
        label = row.label if done == seeds else f"{row.label} ({done} of {seeds} seeds)"
        cells = [label, _accuracy(row.relaxed) if row.relaxed else "failed" if row.failed else "not finished"]
        if hardened:
            certified = f"{row.certified} of {row.permutations}" if row.permutations else ""
            cells += [_accuracy(row.hardened), _change(row.change), certified]
        cells += [_accuracy(row.others.get(name)) for name in others]
        if dynamic:
            cells += [*_in_use(row.dynamic), _change(row.used, digits=1)]
        if costs and row.costs:
            cells += [f"{row.costs[0]:,}", _millions(row.costs[1])]
        lines.append(_cells(cells))
        below += [f"Failed: {row.label}, seed {seed}: {message}" for seed, message in row.failed.items()]
    if missing := [(row.label, seed) for row in found for seed in row.missing]:
        below.append(f"Not finished: {listed(missing)}.")
    return "\n".join([*lines, *(line for one in below for line in ("", one))]) + "\n"


def listed(runs: Iterable[tuple[str, int]]) -> str:
    """Runs in words, by label.

    >>> listed([("plain", 3), ("learned", 2), ("learned", 3)])
    'plain, seed 3; learned, seeds 2, 3'
    """
    by_label: dict[str, list[int]] = {}
    for label, seed in runs:
        by_label.setdefault(label, []).append(seed)
    parts = [f"{k}, seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}" for k, seeds in by_label.items()]
    return "; ".join(parts)


def remarks(results: Results) -> list[str]:
    """What to change, a line for each variant that hardening costs more than a point, or that is not all certified."""
    lines = []
    for row in rows(results):
        lost = -min(row.change.values) if row.change else 0.0
        found = [f"hardening loses up to {lost:.1f} points"] if lost > 1 else []
        if row.certified < row.permutations:
            found.append(f"{row.certified} of {row.permutations} learned permutations are certified")
        if found:
            lines.append(f"{row.label}: {' and '.join(found)}; train longer (--epochs), or raise --penalty.weight")
    return lines


def block(results: Results) -> str:
    """The comparison as a part of a document: the text, the table, and how to repeat it.

    Args:
        results: see above.

    Returns:
        Markdown without a heading, ending with a newline.
    """
    seeds = ", ".join(map(str, results["seeds"]))
    versions = ", ".join(f"{name} {text}" for name, text in results["versions"].items())
    hardened, others, dynamic, costs = _more(rows(results))
    kind = results.get("measured", "test")
    legend = f"{kind.capitalize()} accuracy in per cent: mean ± sample standard deviation (minimum to maximum) over "
    legend += f"seeds {seeds}"
    legend += "; the change by hardening in points, seed by seed: mean (minimum to maximum)." if hardened else "."
    if others:
        named = "; ".join(OTHERS[name] for name in others)
        legend += f" Further columns are {kind} accuracies of the same networks in other forms: {named}."
    if dynamic:
        legend += (
            f" Permutations in use: different ones in a layer, the fewest to the most, for so many {kind} images; a"
            " layer with one is static in effect. Invalid: images whose row-argmax is no permutation, over layers and "
            "seeds. Used: points of accuracy lost by freezing, mean (minimum to maximum)."
        )
    if costs:
        after = ", are those after hardening" if hardened else ""
        legend += f" Parameters, and multiply-adds of one image{after}."
    variants = [f"- {v['label']}: `{v['command']}`" for v in results["variants"]]
    made = f"Each variant is `python -m experiments.train` with `{results['each_seed']}` and"
    where = f"{results['date']}; {'; '.join(results['devices'])}; {versions}."
    parts = [
        results["text"],
        textwrap.fill(legend, 120),
        table(results),
        answer_table(results),
        answer_legend(results),
        f"    {results['command']}",
        made,
        "\n".join(variants),
        where,
    ]
    return "\n\n".join(part.strip("\n") for part in parts if part) + "\n"


def _more(found: Sequence[Row]) -> tuple[bool, list[str], bool, bool]:
    """Whether anything was hardened, those of ``OTHERS`` with numbers, and what is known: dynamic layers, all costs."""
    others = [name for name in OTHERS if any(name in row.others for row in found)]
    hardened, dynamic = any(row.permutations for row in found), any(row.dynamic for row in found)
    return hardened, others, dynamic, all(row.costs for row in found)


def _frozen_and_not(run: Mapping[str, Any]) -> tuple[float, float] | None:
    return frozen_and_not({"relaxed": run["relaxed"], **run.get("others", {})})


def _in_use(uses: Sequence[DynamicUse]) -> tuple[str, str]:
    """Permutations in use and invalid, over the layers of all seeds."""
    if not uses:
        return "", ""
    counts = [count for use in uses for count in use.counts]
    static, images = sum(use.static for use in uses), max(use.images for use in uses)
    several = f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
    text = f"{several} of {images}; {static} of {len(counts)} layers static in effect"
    return text, f"{statistics.fmean(use.invalid for use in uses):.1%}"


def _costs(variant: Mapping[str, Any]) -> tuple[int, int] | None:
    known = "parameters" in variant and "multiply_adds" in variant
    return (variant["parameters"], variant["multiply_adds"]) if known else None


def _spread(values: Sequence[float]) -> Spread | None:
    return Spread(tuple(values)) if values else None


def _percent(numbers: Mapping[str, float]) -> float:
    return 100.0 * numbers["top1"]


def _accuracy(spread: Spread | None) -> str:
    if spread is None:
        return ""
    deviation = "" if spread.deviation is None else f" ± {spread.deviation:.1f}"
    return f"{spread.mean:.1f}{deviation} ({min(spread.values):.1f} to {max(spread.values):.1f})"


def _change(spread: Spread | None, digits: int = 2) -> str:
    if spread is None:
        return ""
    # Adding 0 turns the -0.0 of a rounding into 0.0.
    mean, low, high = (round(x, digits) + 0.0 for x in (spread.mean, min(spread.values), max(spread.values)))
    return f"{mean:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def _millions(number: int) -> str:
    """Such as 12.3M; a number of which that would leave nothing is written out."""
    return f"{number / 1e6:.1f}M" if number >= 100_000 else f"{number:,}"


def _cells(cells: Sequence[str]) -> str:
    return "|" + "|".join(f" {cell} " if cell != "---" else cell for cell in cells) + "|"
