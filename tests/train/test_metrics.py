from __future__ import annotations

import io
import json
import math
import struct
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto.event_pb2 import Event, SessionLog

from shuffle_jax.records import IMAGE_SIDE, JsonLines, TensorBoard, grey_image, read_records, truncate_after
from shuffle_jax.run import Run
from shuffle_jax.train.metrics import MetricWriter

TRAIN = {
    "kind": "train",
    "step": 135,
    "epoch": 3.0,
    "loss": 0.412,
    "accuracy": 0.894,
    "images_per_second": 812.3,
}


def permutation(step: int, penalty: float = 0.25) -> dict[str, Any]:
    return {
        "kind": "permutation",
        "step": step,
        "layer": "stage2_0/mixer",
        "penalty": penalty,
        "certified": True,
    }


def read_events(folder: Path) -> list[Event]:
    """All events of a folder's files, in the order of their names: frames of length, crc, data, crc."""
    events = []
    for path in sorted(folder.glob("events.out.tfevents.*")):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            events.append(Event.FromString(data[12 : 12 + length]))
            data = data[16 + length :]
    return events


def scalars(events: list[Event]) -> list[tuple[int, str, float]]:
    return [(e.step, v.tag, v.simple_value) for e in events for v in e.summary.value if v.HasField("simple_value")]


# --- JSON lines


def test_scalars_of_every_library_become_plain_json(tmp_path: Path) -> None:
    path = tmp_path / "run" / "metrics.jsonl"
    lines = JsonLines(path)
    lines.write({
        "kind": "train", "none": None, "true": np.bool_(True), "step": np.int64(7), "size": jnp.int32(48),
        "python": 0.1, "float32": np.float32(0.1), "jax": jnp.float32(0.1), "half": jnp.bfloat16(0.1),
        "zero_d": np.array(2.5),
    })  # fmt: skip
    text = path.read_text()  # Before it is closed: a line is on disk when write returns.
    lines.close()
    assert text.count("\n") == 1 and text.endswith("\n")
    assert json.loads(text) == {
        "kind": "train", "none": None, "true": True, "step": 7, "size": 48,
        "python": 0.1, "float32": 13421773 / 2**27, "jax": 13421773 / 2**27, "half": 205 / 2**11,
        "zero_d": 2.5,
    }  # fmt: skip


def test_non_finite_floats_stay_valid_json_and_come_back(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = JsonLines(path)
    lines.write({"a": math.nan, "b": np.float32("inf"), "c": -jnp.inf, "d": jnp.float32("nan")})
    lines.close()

    def reject(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    assert json.loads(path.read_text(), parse_constant=reject) == {
        "a": "nan",
        "b": "inf",
        "c": "-inf",
        "d": "nan",
    }
    (record,) = read_records(path)
    assert math.isnan(record["a"]) and math.isnan(record["d"])
    assert (record["b"], record["c"]) == (math.inf, -math.inf)


@pytest.mark.parametrize("value", [np.zeros(2), [1, 2], {"a": 1}, jnp.zeros((1,)), object(), 1j, b"x"])
def test_what_is_no_scalar_is_refused_by_name_and_nothing_is_written(tmp_path: Path, value: Any) -> None:
    lines = JsonLines(tmp_path / "metrics.jsonl")
    with pytest.raises(ValueError, match="record value 'loss' is of type"):
        lines.write({"step": 1, "loss": value})
    lines.close()
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_reopening_appends_and_removes_a_torn_line_first(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    for step in (1, 2):
        lines = JsonLines(path)
        lines.write({"step": step})
        lines.close()
        with path.open("a") as file:
            file.write('{"step": 99, "lo')
    lines = JsonLines(path)
    lines.close()
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_truncation_keeps_exactly_the_steps_up_to_the_given_one(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = JsonLines(path)
    for step in range(6):
        lines.write({"kind": "train", "step": step, "loss": np.float32(1 / (step + 3))})
        lines.write({"kind": "test", "step": step, "loss": math.inf})
    lines.close()
    before = path.read_text().splitlines(keepends=True)
    truncate_after(path, 5)
    assert path.read_text().splitlines(keepends=True) == before
    truncate_after(path, 3)
    assert path.read_text().splitlines(keepends=True) == before[:8]  # To the letter, floats included.
    truncate_after(path, -1)
    assert path.read_text() == ""
    assert list(tmp_path.iterdir()) == [path]  # No temporary file stays behind.


def test_truncating_a_missing_file_makes_none(tmp_path: Path) -> None:
    truncate_after(tmp_path / "metrics.jsonl", 3)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_truncation_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n')

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("shuffle_jax.files.os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        truncate_after(path, 1)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


# --- TensorBoard


def test_curves_have_the_names_steps_and_values_of_the_records(tmp_path: Path) -> None:
    board = TensorBoard(tmp_path)
    board.write({"kind": "train", "step": 5, "epoch": 0.5, "loss": jnp.float32(0.5), "gradient_norm": math.nan})
    board.write({"kind": "test", "step": 10, "epoch": 1.0, "top1": 0.75})
    board.write(permutation(10))
    board.write({"kind": "result", "step": 10, "network": "hardened", "top1": 0.625})
    board.close()
    found = scalars(read_events(tmp_path))
    (diverged,) = [value for _, tag, value in found if tag == "train/gradient_norm"]
    assert math.isnan(diverged)
    assert [entry for entry in found if entry[1] != "train/gradient_norm"] == [
        (5, "train/loss", 0.5),
        (10, "test/top1", 0.75),
        (10, "permutation/stage2_0/mixer/penalty", 0.25),
        (10, "permutation/stage2_0/mixer/certified", 1.0),
        (10, "result/hardened/top1", 0.625),
    ]


def test_matrices_become_enlarged_grey_images(tmp_path: Path) -> None:
    board = TensorBoard(tmp_path)
    matrix = np.array([[0.0, 0.5], [0.25, 0.0]], np.float32)
    board.matrices(3, {"stage2_0/mixer": matrix})
    board.close()
    ((step, value),) = [(event.step, v) for event in read_events(tmp_path) for v in event.summary.value]
    assert (step, value.tag) == (3, "permutation/stage2_0/mixer/matrix")
    pixels = np.asarray(Image.open(io.BytesIO(value.image.encoded_image_string)).convert("L"))
    half = IMAGE_SIDE // 2
    assert pixels.shape == (IMAGE_SIDE, IMAGE_SIDE)
    expected = np.kron(np.array([[0, 255], [128, 0]]), np.ones((half, half)))
    np.testing.assert_array_equal(pixels, expected)


@pytest.mark.parametrize("size", [1, 48, 100, 256, 300])
def test_grey_images_are_whole_multiples_and_reach_white(size: int) -> None:
    image = grey_image(np.full((size, size), 1 / size, np.float32))
    assert image.dtype == np.uint8 and image.min() == 255
    factor, rest = divmod(len(image), size)
    assert rest == 0 and (factor - 1) * size < IMAGE_SIDE <= factor * size


def test_grey_image_of_zeros_and_of_what_is_no_number() -> None:
    assert grey_image(np.zeros((2, 2))).max() == 0
    assert set(np.unique(grey_image(np.array([[np.nan, np.inf], [-1.0, 2.0]])))) == {0, 255}


def test_a_resumed_run_keeps_the_first_file_and_purges_from_its_first_step(tmp_path: Path) -> None:
    for first_step in (0, 11):
        board = TensorBoard(tmp_path, first_step)
        board.write({"kind": "train", "step": first_step + 9, "loss": 1.0})
        board.close()
    assert len(list(tmp_path.iterdir())) == 2  # Within one second: the names must differ all the same.
    events = read_events(tmp_path)
    assert [e.step for e in events if e.session_log.status == SessionLog.START] == [0, 11]
    assert [step for step, _, _ in scalars(events)] == [9, 20]


# --- all together


def test_a_record_reaches_all_three(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with MetricWriter(Run(tmp_path), total_steps=1350, steps_per_epoch=45) as metrics:
        metrics.write(TRAIN)
        metrics.matrices(135, {"stage2_0/mixer": np.eye(3, dtype=np.float32)})
    (record,) = read_records(tmp_path / "metrics.jsonl")
    assert 0.0 <= record.pop("seconds") < 60.0 and record == TRAIN
    tags = [v.tag for event in read_events(tmp_path / "tensorboard") for v in event.summary.value]
    assert tags == [
        "train/loss",
        "train/accuracy",
        "train/images_per_second",
        "permutation/stage2_0/mixer/matrix",
    ]
    assert "loss 0.412" in capsys.readouterr().out


def test_everything_is_closed_when_training_fails(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="training"), MetricWriter(Run(tmp_path), 1350, 45) as metrics:
        metrics.write(TRAIN)
        raise KeyError("training")
    assert next(tag for _, tag, _ in scalars(read_events(tmp_path / "tensorboard"))) == "train/loss"
    with pytest.raises(ValueError, match="closed file"):
        metrics.write(TRAIN)
    metrics.close()  # A second time does nothing.


def test_resuming_drops_what_came_after_the_checkpoint(tmp_path: Path) -> None:
    def run(resumed_at: int, steps: range) -> None:
        with MetricWriter(Run(tmp_path), 40, 10, resumed_at) as metrics:
            for step in steps:
                metrics.write({"kind": "train", "step": step, "loss": 1 / (1 + step)})

    run(0, range(0, 31, 10))
    run(20, range(30, 41, 10))
    assert [record["step"] for record in read_records(tmp_path / "metrics.jsonl")] == [0, 10, 20, 30, 40]
    events = read_events(tmp_path / "tensorboard")
    assert [e.step for e in events if e.session_log.status == SessionLog.START] == [0, 21]
    run(0, range(0, 1))  # A run that starts anew writes step 0 again: it must not be there twice.
    assert [record["step"] for record in read_records(tmp_path / "metrics.jsonl")] == [0]


def test_the_time_of_a_run_counts_all_of_its_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])

    def run(resumed_at: int, took: dict[int, float]) -> tuple[float, float]:
        with MetricWriter(Run(tmp_path), 40, 10, resumed_at) as metrics:
            for step, seconds in took.items():
                now[0] += seconds
                metrics.write({"kind": "train", "step": step, "loss": 1.0})
                metrics.write(permutation(step))
            now[0] += 0.5
            return metrics.seconds, metrics.seconds_here

    assert run(0, {10: 5.0, 20: 2.0, 30: 2.0}) == (
        9.5,
        9.5,
    )  # killed: the steps after the checkpoint at 20 took time, too
    now[0] += 3600.0
    assert run(20, {30: 4.0, 40: 2.0}) == (15.5, 6.5)
    records = read_records(tmp_path / "metrics.jsonl")
    assert [r["seconds"] for r in records if r["kind"] == "train"] == [5.0, 7.0, 13.0, 15.0]
    assert not any("seconds" in r for r in records if r["kind"] == "permutation")
    assert run(0, {10: 1.0}) == (1.5, 1.5)  # a run that starts anew
