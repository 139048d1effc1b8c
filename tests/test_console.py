from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from rich.console import Console as RichConsole

from shuffle_jax.console import Console

TRAIN = {
    "kind": "train",
    "step": 135,
    "epoch": 3.0,
    "loss": 0.412,
    "accuracy": 0.894,
    "images_per_second": 812.3,
}


def permutation(layer: str, penalty: float) -> dict[str, Any]:
    return {"kind": "permutation", "step": 135, "layer": layer, "penalty": penalty}


def terminal(width: int = 120) -> tuple[RichConsole, io.StringIO]:
    file = io.StringIO()
    return RichConsole(force_terminal=True, color_system=None, file=file, width=width), file


def test_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(total_steps=13500, steps_per_epoch=45)
    console.write(TRAIN)
    console.write(permutation("a/mixer", 0.42))
    console.write(permutation("b/mixer", 0.90))
    console.write(permutation("b/mixer", 0.20))  # The later one counts.
    console.write({"kind": "test", "step": 135, "epoch": 3.0, "loss": 0.52, "top1": 0.871, "top5": 0.99})
    console.write({"kind": "test", "step": 180, "loss": 0.52, "top1": 0.871})  # Those of step 135 are not its own.
    console.write({"kind": "result", "step": 13500, "network": "hardened", "loss": np.float32(0.5), "top1": 0.87})
    console.close()
    assert capsys.readouterr().out.splitlines() == [
        "epoch   3  step   135  loss 0.412  accuracy 0.894  img/s 812",
        "epoch   3  step   135  test  loss 0.520  top-1 0.871  top-5 0.990  P/Pmax 0.31",
        "epoch   4  step   180  test  loss 0.520  top-1 0.871",
        "epoch 300  step 13500  hardened  loss 0.500  top-1 0.870",
    ]


def test_plain_lines_come_every_ten_seconds_and_with_what_follows(capsys: pytest.CaptureFixture[str]) -> None:
    time = [0.0]
    console = Console(total_steps=1350, steps_per_epoch=45, now=lambda: time[0])
    for step in range(1, 46):  # two a second
        time[0] += 0.5
        console.write({"kind": "train", "step": step, "loss": float("nan"), "accuracy": 0.1})
    console.write({"kind": "test", "step": 45, "loss": 0.5})
    assert capsys.readouterr().out.splitlines() == [
        "epoch  0  step    1  loss   nan  accuracy 0.100",
        "epoch  0  step   21  loss   nan  accuracy 0.100  11 min 4 s left",
        "epoch  0  step   41  loss   nan  accuracy 0.100  10 min 54 s left",
        "epoch  1  step   45  loss   nan  accuracy 0.100  10 min 52 s left",
        "epoch  1  step   45  test  loss 0.500",
    ]
    console.write({"kind": "train", "step": 46, "loss": 0.25})
    console.close()
    assert capsys.readouterr().out.startswith("epoch  1  step   46  loss 0.250")


def test_dynamic_layers_are_followed_by_how_many_permutations_they_make(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(total_steps=1350, steps_per_epoch=45)
    for layer, made in (("a/mixer", 90), ("a/mixer", 1), ("b/mixer", 12), ("c/mixer", 2)):  # The later one counts.
        console.write({"kind": "dynamic", "step": 45, "layer": layer, "permutations": made, "invalid": 1.0})
    console.write({"kind": "dynamic", "step": 45, "layer": "learned once", "invalid": 1.0})
    console.write(permutation("d/mixer", 0.4) | {"step": 45})
    console.write({"kind": "test", "step": 45, "loss": 0.5})
    for layer in "ab":
        console.write({"kind": "dynamic", "step": 90, "layer": f"{layer}/mixer", "permutations": 1})
    console.write({"kind": "test", "step": 90, "loss": 0.5})
    assert capsys.readouterr().out.splitlines() == [
        "epoch  1  step   45  test  loss 0.500  P/Pmax 0.40  permutations 1 to 12",
        "epoch  2  step   90  test  loss 0.500  permutations 1",
    ]


def test_plain_table_is_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(10, 10)
    console.table("Accuracy", ["network", "top-1", "images"], [["relaxed", 0.91234, 360], ["hard", np.float32(1), 7]])
    assert capsys.readouterr().out.splitlines() == [
        "Accuracy",
        "network   top-1  images",
        "relaxed  0.9123     360",
        "hard     1.0000       7",
    ]


@pytest.mark.parametrize("width", [40, 80, 120])
def test_a_terminal_shows_a_bar_with_all_numbers_that_fit(width: int) -> None:
    rich_console, file = terminal(width)
    console = Console(1350, 45, console=rich_console)
    console.write(TRAIN)
    console.close()
    console.close()
    last = file.getvalue().rsplit("epoch", 1)[-1]
    for part in (" 3 ", "135/1350", "loss 0.412", *(("accuracy 0.894", "img/s 812", "--:--") if width > 40 else ())):
        assert part in last
    assert max(map(len, file.getvalue().replace("\r", "\n").splitlines())) < width + 20  # codes of the terminal
    assert file.getvalue().endswith("\x1b[?25h")  # The cursor is back.


def test_a_terminal_shows_test_lines_messages_and_the_table() -> None:
    rich_console, file = terminal()
    console = Console(1350, 45, resumed_at=90, console=rich_console)
    console.write({"kind": "test", "step": 135, "loss": 0.52, "top1": 0.871})
    console.message("hardened [16 of 16 certified]")
    console.table("Accuracy", ["network", "top-1"], [["relaxed", 0.91234]])
    text = file.getvalue()
    for part in (
        "epoch 2",
        "90/1350",
        "test  loss 0.520  top-1 0.871",
        "hardened [16 of 16 certified]",
        "0.9123",
    ):
        assert part in text
    assert text.index("\x1b[?25h") < text.index("relaxed")  # The bar has ended where the table begins.
