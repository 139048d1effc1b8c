"""The command that moves the images of a run: what it counts, prints, writes and refuses."""

from __future__ import annotations

import json

import numpy as np
import pytest

from experiments import consistency, train
from shuffle_jax.analysis.shift_consistency import circular, crops
from shuffle_jax.analysis.shift_consistency import consistency as compared


def test_shares_are_of_images_that_keep_their_class_everywhere_and_of_all_pairs():
    true = np.float32([[2, 0], [0, 1], [0, 4]])
    moved = np.stack([true, [[1, 0], [1, 0], [0, 3]], [[3, 0], [0, 1], [1, 0]]]).astype(np.float32)
    found = compared(true, moved)
    assert (found.survived, found.kept, found.changed) == pytest.approx((1 / 3, 7 / 9, 1.0))


def test_places_show_every_shift_once_around_the_circle_and_up_to_the_border():
    image = np.arange(12).reshape(3, 4)
    around = [image[rows][:, columns] for rows, columns in circular((3, 4), range(3))]
    assert len(around) == 9 and all(
        np.array_equal(one, np.roll(image, (k // 3, k % 3), (0, 1))) for k, one in enumerate(around)
    )
    padded = np.pad(image, 1, mode="edge")
    cut = [image[rows][:, columns] for rows, columns in crops((3, 4), range(-1, 2))]
    assert all(
        np.array_equal(one, padded[1 - a : 4 - a, 1 - b : 5 - b])
        for one, (a, b) in zip(cut, [(a, b) for a in (-1, 0, 1) for b in (-1, 0, 1)], strict=True)
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "--images", "0"], "--images must be at least 1, got 0"),
        (["run", "--shifts", "0"], "--shifts must be at least 1, got 0"),
        (["run", "--crops", "-1"], "--crops must be at least 0, got -1"),
    ],
)
def test_numbers_out_of_range_are_refused(words, message):
    with pytest.raises(ValueError, match=message):
        consistency.run(words)


@pytest.mark.slow
def test_a_run_with_learned_shuffles_survives_before_and_after_its_training_and_hardened(tmp_path, capsys):
    words = (
        "digits-resnet --network.width 0.0625 --network.groups 2 --data.test-fraction 0.9 --batch-size 60 --epochs 1"
    )
    words += " --evaluate-every 1 --optimizer.warmup-epochs 0 --network.mixer auto --network.sampling aps"
    train.run([*words.split(), "--run", str(tmp_path / "run")])
    capsys.readouterr()
    found = tmp_path / "found.json"
    shifts = "--images 20 --shifts 3 --crops 0 --untrained --json"
    consistency.run([str(tmp_path / "run"), *shifts.split(), str(found)])
    told = capsys.readouterr().out
    assert "100.0%" in told and "crops" not in told and "does not follow" not in told
    rows = json.loads(found.read_text())
    assert [row["network"] for row in rows] == ["untrained", "as trained", "hardened"]
    assert all(row["survived"] == row["kept"] == 1 and row["changed"] < 1e-5 for row in rows)
