"""Comparing variants of a training over several seeds: what their records say, as a table.

Results are plain dictionaries, as JSON holds them, so that a table or a figure can be made again without a run::

    {"name", "title", "text", "command", "each_seed", "seeds", "versions", "devices", "date", "variants": [
        {"label", "command", "parameters", "multiply_adds", "runs": [
            {"seed", "relaxed", "hardened", "certified", "permutations", "others"}, ...]}, ...]}

``relaxed`` and ``hardened`` hold ``top1`` and ``loss``, ``others`` the same by network (see ``OTHERS``); a run that
failed holds ``seed`` and ``failed``, a message. ``others`` is missing where there are none, ``parameters`` and
``multiply_adds`` where they are not known, as in results of earlier versions.
"""

from __future__ import annotations

import math
import statistics
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shuffle_jax.analysis.records import Records

Results = Mapping[str, Any]

KEPT = ("top1", "loss")
"""What is kept of each evaluation."""

COLUMNS = ("variant", "as trained", "hardened", "change by hardening", "certified")
"""The columns of every table."""

OTHERS = {
    "soft": "with soft factors",
    "repaired": "argmax repaired by assignment",
    "frozen": "frozen to one permutation for all images",
}
"""Further networks that a run may have evaluated, and their columns, which a table has if a run has them."""

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
        relaxed: top-1 accuracy as trained, in per cent; None if every run failed.
        hardened: the same with index vectors; None also for a network without learned permutations.
        change: hardened less relaxed of the same seed, in points.
        certified: learned permutations that are certified, over all seeds.
        permutations: learned permutations, over all seeds.
        failed: the message of each failed run by its seed.
        others: top-1 accuracy in per cent of the further networks that were evaluated, see ``OTHERS``.
        costs: parameters, and multiply-adds of one image, both after hardening; None if they are not known.
    """

    label: str
    relaxed: Spread | None
    hardened: Spread | None
    change: Spread | None
    certified: int
    permutations: int
    failed: dict[int, str]
    others: dict[str, Spread]
    costs: tuple[int, int] | None


def run_result(records: Records) -> dict[str, Any] | None:
    """What a finished run says in the end.

    Args:
        records: those of a run.

    Returns:
        ``relaxed``, ``hardened`` (None without learned permutations), ``certified`` and ``permutations``, and
        ``others`` if further networks were evaluated; or None if the run is not finished: a result is missing, or that
        of the hardened network or, with dynamic layers, of one of the others.
    """
    evaluated = {r["network"]: r for r in records if r["kind"] == "result"}
    if "relaxed" not in evaluated:
        return None
    step = evaluated["relaxed"]["step"]
    layers = [r["certified"] for r in records if r["kind"] == "permutation" and r["step"] == step]
    if layers and "hardened" not in evaluated:
        return None
    # With dynamic layers the others are evaluated after it, and a run may be killed between.
    if any(r["kind"] == "dynamic" for r in records) and not evaluated.keys() >= OTHERS.keys():
        return None
    numbers = {network: {key: _plain(record[key]) for key in KEPT} for network, record in evaluated.items()}
    hardened = numbers.get("hardened")
    found: dict[str, Any] = {"relaxed": numbers["relaxed"], "hardened": hardened}
    found |= {"certified": sum(layers), "permutations": len(layers)}
    others = {network: numbers[network] for network in OTHERS if network in numbers}
    return {**found, "others": others} if others else found


def rows(results: Results) -> list[Row]:
    """One row for each variant, in their order."""
    found = []
    for variant in results["variants"]:
        done = [run for run in variant["runs"] if "failed" not in run]
        hardened = [run for run in done if run["hardened"] is not None]
        others = {name: [run["others"][name] for run in done if name in run.get("others", {})] for name in OTHERS}
        found.append(
            Row(
                label=variant["label"],
                relaxed=_spread([_percent(run["relaxed"]) for run in done]),
                hardened=_spread([_percent(run["hardened"]) for run in hardened]),
                change=_spread([_percent(run["hardened"]) - _percent(run["relaxed"]) for run in hardened]),
                certified=sum(run["certified"] for run in done),
                permutations=sum(run["permutations"] for run in done),
                failed={run["seed"]: run["failed"] for run in variant["runs"] if "failed" in run},
                others={name: Spread(tuple(map(_percent, each))) for name, each in others.items() if each},
                costs=_costs(variant),
            )
        )
    return found


def table(results: Results) -> str:
    """The comparison in Markdown, one row a variant.

    Accuracies are in per cent, as mean and sample standard deviation with minimum and maximum over the seeds; the
    change by hardening is in points, seed by seed. Failed runs are left out of the numbers and named below. The
    columns of ``OTHERS`` are those for which there are numbers; those of ``COSTS`` are there if every variant has both.

    Args:
        results: see above.

    Returns:
        Lines of as many cells as there are columns, and one for each failed run.
    """
    found = rows(results)
    others, costs = _more(found)
    columns = [*COLUMNS, *(OTHERS[name] for name in others), *(COSTS if costs else ())]
    lines = [_cells(columns), _cells(["---"] * len(columns))]
    failures = []
    for row in found:
        done = len(row.relaxed.values) if row.relaxed else 0
        label = row.label if not row.failed else f"{row.label} ({done} of {done + len(row.failed)} seeds)"
        certified = f"{row.certified} of {row.permutations}" if row.permutations else ""
        trained = _accuracy(row.relaxed) if row.relaxed else "failed"
        cells = [label, trained, _accuracy(row.hardened), _change(row.change), certified]
        cells += [_accuracy(row.others.get(name)) for name in others]
        if costs and row.costs:
            cells += [f"{row.costs[0]:,}", _millions(row.costs[1])]
        lines.append(_cells(cells))
        failures += [f"Failed: {row.label}, seed {seed}: {message}" for seed, message in row.failed.items()]
    return "\n".join([*lines, *(line for failure in failures for line in ("", failure))]) + "\n"


def block(results: Results) -> str:
    """The comparison as a part of a document: the text, the table, and how to repeat it.

    Args:
        results: see above.

    Returns:
        Markdown without a heading, ending with a newline.
    """
    seeds = ", ".join(map(str, results["seeds"]))
    versions = ", ".join(f"{name} {text}" for name, text in results["versions"].items())
    legend = (
        f"Test accuracy in per cent: mean ± sample standard deviation (minimum to maximum) over seeds {seeds}; the "
        "change by hardening in points, seed by seed: mean (minimum to maximum)."
    )
    others, costs = _more(rows(results))
    if others:
        named = "; ".join(OTHERS[name] for name in others)
        legend += f" Further columns are test accuracies of the same networks in other forms: {named}."
    if costs:
        legend += " Parameters, and multiply-adds of one image, are those after hardening."
    variants = [f"- {v['label']}: `{v['command']}`" for v in results["variants"]]
    made = f"Each variant is `python -m experiments.train` with `{results['each_seed']}` and"
    where = f"{results['date']}; {'; '.join(results['devices'])}; {versions}."
    parts = [
        results["text"],
        textwrap.fill(legend, 120),
        table(results),
        f"    {results['command']}",
        made,
        "\n".join(variants),
        where,
    ]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def _more(found: Sequence[Row]) -> tuple[list[str], bool]:
    """Those of ``OTHERS`` for which there are numbers, and whether the costs of all are known."""
    return [name for name in OTHERS if any(name in row.others for row in found)], all(row.costs for row in found)


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


def _change(spread: Spread | None) -> str:
    if spread is None:
        return ""
    # Adding 0 turns the -0.0 of a rounding into 0.0.
    mean, low, high = (round(x, 2) + 0.0 for x in (spread.mean, min(spread.values), max(spread.values)))
    return f"{mean:.2f} ({low:.2f} to {high:.2f})"


def _millions(number: int) -> str:
    """Such as 12.3M; a number of which that would leave nothing is written out."""
    return f"{number / 1e6:.1f}M" if number >= 100_000 else f"{number:,}"


def _cells(cells: Sequence[str]) -> str:
    return "|" + "|".join(f" {cell} " if cell != "---" else cell for cell in cells) + "|"


def _plain(value: float) -> float | str:
    """A number as JSON can hold it: one that is not finite is spelt out."""
    return value if math.isfinite(value) else str(value)
