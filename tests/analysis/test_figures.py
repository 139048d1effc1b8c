from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image

from shuffle_jax.analysis.drawing import by_depth, short_names
from shuffle_jax.analysis.figures import (
    MAX_CELLS,
    MAX_ROWS,
    ROUNDING,
    learning_curves,
    matrices,
    penalty_curves,
    permutations,
)
from shuffle_jax.analysis.run_figures import save_run_figures

LAYERS = ["stage2_0/mixer", "stage2_9/mixer", "stage2_10/mixer"]


def curve_records() -> list[dict[str, Any]]:
    """Two epochs of ten steps."""
    records: list[dict[str, Any]] = []
    for step in range(5, 21, 5):
        record = {"kind": "train", "step": step, "epoch": step / 10, "loss": 2 / step, "accuracy": step / 20}
        records.append(record | {"penalty_weight": 1e-3 * step})
    records += [
        {"kind": "test", "step": 10, "epoch": 1.0, "loss": 0.5, "top1": 0.25},
        {"kind": "test", "step": 20, "epoch": 2.0, "loss": 0.4, "top1": 0.75},
        {"kind": "result", "step": 20, "network": "relaxed", "loss": 0.4, "top1": 0.75},
        {"kind": "result", "step": 20, "network": "hardened", "loss": 0.3, "top1": 0.625},
    ]
    return records


def permutation_records(certified: list[bool], layers: list[str] = LAYERS) -> list[dict[str, Any]]:
    return [
        {"kind": "permutation", "step": 10 * k, "layer": layer, "size": 8, "certified": yes}
        | {"penalty": 1 / (1 + k + i), "residual": 0.0 if k else 1e-2}
        for k, yes in enumerate(certified)
        for i, layer in enumerate(layers)
    ]


def pixels(figure: Figure) -> np.ndarray:
    file = io.BytesIO()
    figure.savefig(file)
    return np.asarray(Image.open(file).convert("RGB"))


def uncut(image: np.ndarray) -> bool:
    """Nothing but white at the edges, where a text too long would be cut off."""
    return all((edge == 255).all() for edge in (image[0], image[-1], image[:, 0], image[:, -1]))


def points(line: Any) -> list[tuple[float, float]]:
    return [tuple(point) for point in np.asarray(line.get_xydata())]


def lines(axes: Any, label: str) -> list[Any]:
    return [line for line in axes.lines if line.get_label().startswith(label)]


def test_layers_are_sorted_by_depth_and_shortened_by_what_they_share() -> None:
    assert by_depth(reversed(LAYERS)) == LAYERS
    assert by_depth(["stage10", "head", "stage9", "stage9_1"]) == ["head", "stage9", "stage9_1", "stage10"]
    assert short_names(LAYERS) == ["stage2_0", "stage2_9", "stage2_10"]
    assert short_names(["a/mixer", "b/other"]) == ["a/mixer", "b/other"]
    assert short_names(["mixer"]) == ["mixer"]


def test_learning_curves_draw_the_records_over_epochs() -> None:
    loss, accuracy = learning_curves(curve_records()).axes
    assert points(lines(loss, "training")[0]) == [(0.5, 0.4), (1.0, 0.2), (1.5, 2 / 15), (2.0, 0.1)]
    assert points(lines(loss, "test images, last 0.4")[0]) == [(1.0, 0.5), (2.0, 0.4)]
    assert points(lines(accuracy, "training")[0]) == [(0.5, 25), (1.0, 50), (1.5, 75), (2.0, 100)]
    assert points(lines(accuracy, "test images, last 75.0 %")[0]) == [(1.0, 25), (2.0, 75)]
    assert points(lines(accuracy, "test images, hardened network 62.5 %")[0]) == [(2.0, 62.5)]
    assert (loss.get_xlabel(), accuracy.get_ylabel()) == ("epoch", "top-1 accuracy (%)")


@pytest.mark.parametrize(("smallest", "scale"), [(0.2, "linear"), (0.01, "log"), (1e-9, "log"), (0.0, "linear")])
def test_loss_is_logarithmic_where_it_spans_much_and_stays_positive(smallest: float, scale: str) -> None:
    records = [{"kind": "test", "step": k, "loss": loss, "top1": 0.5} for k, loss in enumerate([1.0, smallest])]
    loss, _ = learning_curves(records).axes
    assert loss.get_yscale() == scale
    low, high = loss.get_ylim()
    assert 3 <= sum(low <= tick <= high for tick in loss.get_yticks()) <= 11
    assert loss.get_xlabel() == "step"  # No record tells an epoch.


def test_penalties_have_one_line_a_layer_coloured_by_depth() -> None:
    records = curve_records() + permutation_records([False, False, True], LAYERS[::-1])
    penalty, _, residual, bar = penalty_curves(records).axes
    curves = [line for line in penalty.lines if line.get_marker() == "None"]
    assert [points(line)[0] for line in curves] == [(0, 1 / 3), (0, 1 / 2), (0, 1)]  # The deepest was first.
    assert [x for x, _ in points(curves[0])] == [0, 1, 2]  # Epochs, though the records tell steps only.
    assert [text.get_text() for text in bar.get_yticklabels()] == ["stage2_0", "stage2_9", "stage2_10"]
    darkness = [sum(int(to_hex(line.get_color())[k : k + 2], 16) for k in (1, 3, 5)) for line in curves]
    assert darkness == sorted(darkness) and len(set(darkness)) == 3
    assert [y for _, y in points(residual.lines[0])] == [
        1e-2,
        ROUNDING,
        ROUNDING,
    ]  # 0 has no place on a log axis.


@pytest.mark.parametrize(
    ("certified", "start"),
    [
        ([True, True, True], 0),
        ([False, True, True], 1),
        ([True, False, True], 2),
        ([True, True, False], None),
    ],
)
def test_dots_mark_from_where_on_a_layer_stays_certified(certified: list[bool], start: int | None) -> None:
    penalty = penalty_curves(curve_records() + permutation_records(certified, LAYERS[:1])).axes[0]
    dots = [points(line) for line in penalty.lines if line.get_marker() == "o"]
    assert dots == ([] if start is None else [[(start, 1 / (1 + start))]])
    assert f"{len(dots)} of 1 certified" in penalty.get_title(loc="left")


def test_matrices_show_entries_moments_and_a_choice_of_layers() -> None:
    rng = np.random.default_rng(0)
    names = [f"stage{k}/mixer" for k in range(16)]
    snapshots: list[tuple[int | str, dict[str, np.ndarray]]] = [
        (moment, {name: rng.uniform(size=(4, 4)).astype(np.float32) for name in names}) for moment in (0, "end")
    ]
    figure = matrices(snapshots)
    shown = [f"stage{k}" for k in (0, 3, 6, 9, 12, 15)]
    assert len(shown) == MAX_ROWS
    panels = [axes for axes in figure.axes if axes.images]
    assert [axes.get_ylabel().split("\n")[0] for axes in panels[::2]] == shown
    assert [axes.get_title() for axes in panels[:2]] == ["step 0", "end"]
    assert "6 of 16 layers" in figure.get_suptitle()
    for axes, name in zip(panels[1::2], shown, strict=True):
        matrix = snapshots[1][1][f"{name}/mixer"]
        np.testing.assert_array_equal(axes.images[0].get_array(), matrix)
        assert f"{matrix.max(axis=1).mean():.2g}" in axes.get_xlabel()


def test_colours_tell_a_uniform_matrix_from_zero_and_one() -> None:
    size = 192
    image = next(axes for axes in matrices([(0, {"a": np.eye(size)})]).axes if axes.images).images[0]
    zero, uniform, one = (np.array(image.cmap(image.norm(value))[:3]) for value in (0.0, 1 / size, 1.0))
    assert zero.min() > 0.95  # As good as white.
    assert np.abs(uniform - zero).max() > 0.1 and np.abs(uniform - one).max() > 0.5


@pytest.mark.parametrize("size", [MAX_CELLS, MAX_CELLS + 1, 3 * MAX_CELLS])
def test_no_entry_of_a_large_permutation_is_lost(size: int) -> None:
    p = np.random.default_rng(size).permutation(size)
    axes = next(axes for axes in matrices([(0, {"a": np.eye(size)[p]})]).axes if axes.images)
    cells = np.asarray(axes.images[0].get_array())
    block = -(-size // MAX_CELLS)
    expected = np.zeros((-(-size // block), -(-size // block)))
    expected[np.arange(size) // block, p // block] = 1
    np.testing.assert_array_equal(cells, expected)
    side = block * len(cells)
    assert axes.images[0].get_extent() == [0, side, side, 0]  # A cell lies where its entries lie.
    assert axes.get_xlim() == (0, size) and axes.get_ylim() == (size, 0)


def test_permutations_are_drawn_with_the_fixed_shuffle_behind() -> None:
    p = np.random.default_rng(1).permutation(12).astype(np.int32)
    (axes,) = permutations({"stage2_0/mixer": p}).axes
    drawn = sorted(point for line in lines(axes, "taken") for point in points(line))
    assert drawn == [(i, p[i]) for i in range(12)]
    assert all(y < 6 for _, y in points(lines(axes, "taken from the first half")[0]))
    behind = sorted(point for line in lines(axes, "fixed") for point in points(line))
    assert behind == list(enumerate(np.arange(12).reshape(2, 6).T.ravel()))  # Groups to the back, as in ShuffleNet.
    crossing = sum((i < 6) != (p[i] < 6) for i in range(12)) / 12
    assert axes.get_title() == f"stage2_0: {crossing:.0%} change halves"


def test_permutations_of_many_layers_and_of_odd_or_single_channels() -> None:
    vectors = {f"layer{k}/mixer": np.arange(k)[::-1] for k in range(1, 12)}
    figure = permutations(vectors)
    assert [axes.get_title().split(":")[0] for axes in figure.axes] == [f"layer{k}" for k in range(1, 12)]
    assert [len(lines(axes, "fixed")) for axes in figure.axes] == [0, 2] * 5 + [0]
    assert sum(bool(axes.get_xlabel()) for axes in figure.axes) == 4  # Below every column.
    assert uncut(pixels(figure))
    assert uncut(pixels(permutations({"mixer": np.arange(8)})))


def test_what_cannot_be_drawn_is_said() -> None:
    with pytest.raises(ValueError, match="none of the records is of the kind 'permutation'"):
        penalty_curves(curve_records())
    with pytest.raises(ValueError, match="no permutations to draw"):
        permutations({})
    for nothing in ([], [(0, {})], [(0, {"a": np.eye(2)}), (1, {"b": np.eye(2)})]):
        with pytest.raises(ValueError, match="no matrices to draw"):
            matrices(nothing)  # type: ignore[arg-type]


def test_a_run_that_diverged_is_drawn_all_the_same() -> None:
    lost = float("nan")
    records = [
        {"kind": "train", "step": 10, "epoch": 1.0, "loss": lost, "accuracy": 0.1, "penalty_weight": lost},
        {"kind": "test", "step": 10, "epoch": 1.0, "loss": float("inf"), "top1": 0.1},
        permutation_records([False])[0] | {"penalty": lost, "residual": lost},
    ]
    for figure in (
        learning_curves(records),
        penalty_curves(records),
        matrices([(0, {"a": np.full((2, 2), lost)})]),
    ):
        assert uncut(pixels(figure))  # And drawn without a warning.


def write_run(run: Path, steps: list[int]) -> None:
    records = curve_records() + permutation_records([False, True])
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (run / "snapshots").mkdir()
    for step in steps:
        np.savez(run / f"snapshots/{step:08d}.npz", **{name: np.eye(4, dtype=np.float32) for name in LAYERS})
    np.savez(run / "permutations.npz", **{name: np.arange(4, dtype=np.int32) for name in LAYERS})


@pytest.mark.slow
def test_a_whole_run_gets_four_figures_on_white(tmp_path: Path) -> None:
    write_run(tmp_path, [0, 20])
    written = save_run_figures(tmp_path)
    names = ["learning_curves", "penalty", "matrices", "permutations"]
    assert written == [tmp_path / "figures" / f"{name}.png" for name in names]
    for path in written:
        image = np.asarray(Image.open(path).convert("RGB"))
        assert image.shape[1] >= 700 and uncut(image)
    assert save_run_figures(tmp_path) == written  # A second time writes over them.


@pytest.mark.parametrize(
    ("steps", "titles"),
    [
        ([20], ["end (step 20)"]),
        ([0, 20], ["start (step 0)", "end (step 20)"]),
        ([0, 9, 14, 20], ["start (step 0)", "middle (step 9)", "end (step 20)"]),
        ([5, 90000000, 100000000], ["start (step 5)", "middle (step 90000000)", "end (step 100000000)"]),
    ],
)
def test_the_moments_of_the_matrices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: list[int], titles: list[str]
) -> None:
    seen: list[str] = []

    def record(snapshots: list[tuple[str, dict[str, np.ndarray]]]) -> Figure:
        seen.extend(title for title, _ in snapshots)
        return Figure()

    write_run(tmp_path, steps)
    (tmp_path / "metrics.jsonl").unlink()
    (tmp_path / "permutations.npz").unlink()
    monkeypatch.setattr("shuffle_jax.analysis.run_figures.matrices", record)
    assert save_run_figures(tmp_path) == [tmp_path / "figures" / "matrices.png"]
    assert seen == titles


def test_a_run_with_a_fixed_shuffle_has_its_learning_curves_only(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in curve_records()))
    assert save_run_figures(tmp_path) == [tmp_path / "figures" / "learning_curves.png"]


def test_an_empty_run_has_none(tmp_path: Path) -> None:
    assert save_run_figures(tmp_path) == []
    assert list(tmp_path.iterdir()) == []
