"""Results by setting, method and seed: kept in a file so that nothing is trained twice, and as a table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from experiments.aligning.training import Record, Setting

Results = dict[tuple[Setting, str], dict[int, list[Record]]]
"""By setting and method, of each seed its records."""

COLUMNS: tuple[str, ...] = ("method", "seeds", "solved", "distinct", "valid", "aligned", "accuracy")
SOLVED = 0.995
"""A seed is solved if as large a share of the test images is aligned, and valid: of 359 all but one."""


def read_results(path: Path) -> Results:
    """What a file of :func:`write_results` holds; nothing if there is no file.

    Raises:
        ValueError: it is no such file.
    """
    if not path.exists():
        return {}
    try:
        return {
            (Setting(**one["setting"]), one["method"]): {
                int(seed): [Record(*values) for values in records] for seed, records in one["seeds"].items()
            }
            for one in json.loads(path.read_text())
        }
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} holds no results of experiments.alignment: {error}; name another file") from error


def write_results(path: Path, results: Results) -> None:
    """Writes the file, whole or not at all, a line for each seed."""
    from shuffle_jax.files import replacing

    blocks = []
    for (setting, method), seeds in results.items():
        lines = [f"  {json.dumps(str(seed))}: {json.dumps(rounded(seeds[seed]))}" for seed in sorted(seeds)]
        head = f'{{"setting": {json.dumps(asdict(setting))}, "method": {json.dumps(method)}, "seeds": {{'
        blocks.append(head + "\n" + ",\n".join(lines) + "\n}}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text("[" + ",\n".join(blocks) + "]\n")


def rounded(records: Sequence[Record]) -> list[list[int | float]]:
    """The fields of records in a row, shares to four places."""
    return [[value if isinstance(value, int) else round(value, 4) for value in asdict(r).values()] for r in records]


def solved(record: Record) -> bool:
    """Whether the mixer does what the task asks for."""
    return min(record.valid, record.aligned) >= SOLVED


def row(method: str, seeds: Mapping[int, Sequence[Record]]) -> tuple[str | int, ...]:
    """One line of the table: over the seeds, at the end of their training."""
    last = [records[-1] for _, records in sorted(seeds.items())]
    return (
        method,
        len(last),
        sum(map(solved, last)),
        spread([float(one.distinct) for one in last], 0),
        *(spread([getattr(one, name) for one in last]) for name in ("valid", "aligned")),
        spread([one.accuracy for one in last], 3),
    )


def spread(values: Sequence[float], places: int = 2) -> str:
    """The mean, and in brackets the smallest and largest of values that differ.

    >>> spread([0.25, 1.0]), spread([1.0, 1.0])
    ('0.62 (0.25 to 1.00)', '1.00')
    """
    mean, least, most = (f"{value:.{places}f}" for value in (sum(values) / len(values), min(values), max(values)))
    return mean if least == most else f"{mean} ({least} to {most})"
