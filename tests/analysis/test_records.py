from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from shuffle_jax.records import read_records


def test_reads_objects_in_order_and_skips_empty_lines(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"kind": "train", "step": 1}\n\n{"kind": "test", "step": 2, "certified": true}\n')
    assert read_records(path) == [
        {"kind": "train", "step": 1},
        {"kind": "test", "step": 2, "certified": True},
    ]


def test_spelt_out_floats_come_back_and_other_strings_stay(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"a": "nan", "b": "inf", "c": "-inf", "layer": "stage2_0/mixer"}\n')
    (record,) = read_records(path)
    assert math.isnan(record["a"])
    assert (record["b"], record["c"], record["layer"]) == (math.inf, -math.inf, "stage2_0/mixer")


def test_every_torn_last_line_is_ignored(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    whole = json.dumps({"step": 1, "layer": "é"}, ensure_ascii=False).encode()
    for length in range(len(whole)):
        path.write_bytes(b'{"step": 0}\n' + whole[:length])
        assert read_records(path) == [{"step": 0}]
    path.write_bytes(b'{"step": 0}\n' + whole)  # Only the newline is missing: nothing is lost.
    assert read_records(path) == [{"step": 0}, {"step": 1, "layer": "é"}]


@pytest.mark.parametrize("broken", ['{"step": 1', "[1, 2]", "3"])
def test_a_broken_line_that_was_written_whole_is_an_error_with_its_number(tmp_path: Path, broken: str) -> None:
    path = tmp_path / "metrics.jsonl"
    for text in (f'{{"step": 0}}\n{broken}\n{{"step": 2}}\n', f'{{"step": 0}}\n{broken}\n'):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2: .*remove the line"):
            read_records(path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_records(tmp_path / "metrics.jsonl")
