from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Text

from shuffle_jax.analysis.dynamic_figures import (
    ALIKE,
    MAX_COLUMNS,
    MAX_NAMES,
    class_distances,
    class_permutations,
    factor_means,
)
from shuffle_jax.analysis.dynamic_numbers import (
    between_classes,
    frequency,
    from_the_rest,
    pair_distances,
    within_and_between,
)
from shuffle_jax.analysis.figures import MAX_ROWS
from shuffle_jax.analysis.run_figures import save_run_figures
from shuffle_jax.analysis.sharpening_figure import sharpening

Layers = dict[str, tuple[int, int]]
ANIMALS = ["ant", "bee", "cat", "dog"]


def random_permutations(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.permuted(np.broadcast_to(np.arange(shape[-1], dtype=np.int16), shape), axis=-1)


def snapshot(labels: list[int], layers: Layers, groups: int = 1, seed: int = 0) -> dict[str, np.ndarray]:
    """Random permutations for every image."""
    rng, n = np.random.default_rng(seed), len(labels)
    arrays = {"labels": np.array(labels, np.int32)}
    for (layer, sizes), k in itertools.product(layers.items(), range(2)):
        key = f"{layer}/{('outer', 'inner')[k]}"
        arrays[key] = random_permutations(rng, n, groups, sizes[k])
        arrays[f"{key}_mean"] = rng.uniform(size=(groups, sizes[k], sizes[k])).astype(np.float32)
    return arrays


def by_class(labels: list[int], layers: Layers, groups: int = 1) -> dict[str, np.ndarray]:
    """One cyclic shift for each class: two images of a class agree everywhere, of two classes nowhere."""
    arrays = snapshot(labels, layers, groups)
    for layer, (p, q) in layers.items():
        arrays[f"{layer}/outer"][:] = np.arange(p)
        arrays[f"{layer}/inner"][:] = (np.arange(q) + arrays["labels"][:, None, None]) % q
    return arrays


def heat_maps(figure: Figure) -> list[Any]:
    return [axes for axes in figure.axes if axes.images and axes.get_label() != "<colorbar>"]


def drawn(axes: Any) -> np.ndarray:
    return np.ma.getdata(axes.images[0].get_array())


def labels_of(axis: Any) -> list[str]:
    return [text.get_text() for text in axis.get_ticklabels() if text.get_text()]


def untidy(figure: Figure) -> list[tuple[str, ...]]:
    """Titles and labels that reach out of the figure, and pairs of them that overlap."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw_without_rendering()
    ticks = {text for axes in figure.axes for axis in (axes.xaxis, axes.yaxis) for text in axis.get_ticklabels()}
    texts = [
        text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip() and text not in ticks
    ]
    boxes = [(text.get_text(), text.get_window_extent(renderer)) for text in texts]
    width, height = figure.bbox.size
    out = [(t,) for t, box in boxes if min(box.x0, box.y0, width - box.x1, height - box.y1) < 0]
    return out + [
        (s, t)
        for (s, a), (t, b) in itertools.combinations(boxes, 2)
        if min(a.x1, b.x1) - max(a.x0, b.x0) > 1 and min(a.y1, b.y1) - max(a.y0, b.y0) > 1
    ]


def test_class_permutations_show_the_layer_whose_classes_differ_most() -> None:
    labels = [0, 0, 1, 1, 1, 2, 2]
    arrays = snapshot(labels, {"stage2_9/mixer": (2, 3), "stage2_10/mixer": (2, 3)})
    arrays |= {key: array for key, array in by_class(labels, {"stage2_9/mixer": (2, 3)}).items() if "9" in key}
    figure = class_permutations(arrays, ANIMALS)
    assert "channels from: stage2_9\n" in figure.get_suptitle()
    assert figure.get_suptitle().endswith("1 between classes, 0 within, 1 apart")
    panels = heat_maps(figure)
    titles = [axes.get_title().split("\n") for axes in panels]
    assert titles[0] == ["all images", "7 images"] and titles[4:] == [[""]] * 4
    assert {title[0]: title[1] for title in titles[1:4]} == {"ant": "2 images", "bee": "3 images", "cat": "2 images"}
    chosen = [np.full(7, True)] + [arrays["labels"] == ANIMALS.index(title[0]) for title in titles[1:4]]
    for k, factor in enumerate(("outer", "inner")):
        for axes, these in zip(panels[4 * k :], chosen, strict=False):
            vectors = arrays[f"stage2_9/mixer/{factor}"][these, 0]
            np.testing.assert_allclose(drawn(axes), np.mean([np.eye(2 + k)[p] for p in vectors], axis=0))
    assert [axes.get_ylabel() for axes in panels[::4]] == ["output block", "output channel within a block"]
    assert [axes.get_xlabel() for axes in panels[::4]] == ["input block", "input channel within a block"]
    assert [labels_of(panels[4].xaxis), labels_of(panels[4].yaxis)] == [["0", "1", "2"]] * 2
    assert "share of the images" in figure.axes[-1].get_ylabel()
    two = class_permutations(by_class([0, 0, 1, 1], {"stage4_3/mixer": (4, 29)}, groups=2), ANIMALS)
    assert untidy(figure) == untidy(two) == []


def test_the_farthest_classes_come_first_and_single_images_last() -> None:
    labels = [0] * 8 + [1] * 6 + [2] * 6 + [3]
    arrays = by_class([0] * len(labels), {"a": (1, 8)})
    arrays["labels"] = np.array(labels, np.int32)
    arrays["a/inner"][8:14, 0] = [0, 1, 2, 3, 7, 6, 5, 4]  # Half way between the other two,
    arrays["a/inner"][14:20, 0] = [3, 2, 1, 0, 7, 6, 5, 4]  # of which this one is the smaller.
    arrays["a/inner"][20, 0] = [7, 0, 1, 2, 3, 4, 5, 6]
    titles = [axes.get_title().split("\n") for axes in heat_maps(class_permutations(arrays, ANIMALS))]
    assert [title[0] for title in titles] == ["all images", "cat", "ant", "bee", "dog"]
    assert titles[-1] == ["dog", "1 image"]
    far = [
        from_the_rest(pair_distances(arrays["a/outer"], arrays["a/inner"]), arrays["labels"] == k) for k in (2, 0, 1)
    ]
    assert [title[2] for title in titles[1:4]] == [f"{x:.2g} from the rest" for x in far]


@pytest.mark.parametrize(
    ("sizes", "rows"), [((1, 6), ["channel"]), ((6, 1), ["block"]), ((1, 1), ["block", "channel"])]
)
def test_a_factor_of_size_one_is_left_out_where_the_other_says_something(
    sizes: tuple[int, int], rows: list[str]
) -> None:
    panels = heat_maps(class_permutations(snapshot([0, 0, 1, 1], {"a": sizes}), ANIMALS))
    assert [axes.get_ylabel().split()[1] for axes in panels if axes.get_ylabel()] == rows
    assert [drawn(axes).shape[0] for axes in panels[::3]] == [max(sizes)] * len(rows)


def test_class_distances_show_the_means_and_name_the_classes_that_have_images() -> None:
    labels = [3, 0, 0, 3, 3, 1]
    arrays = snapshot(labels, {"stage2_0/mixer": (2, 3), "stage2_1/mixer": (3, 4)}, groups=2)
    figure = class_distances(arrays, ANIMALS)
    panels = heat_maps(figure)
    assert len(panels) == 2 and "2 of 2 layers" in figure.get_suptitle()
    present = np.searchsorted([0, 1, 3], labels)
    for k, axes in enumerate(panels):
        d = pair_distances(*(arrays[f"stage2_{k}/mixer/{factor}"] for factor in ("outer", "inner")))
        means = between_classes(d, present, 3)
        within, between = within_and_between(means)
        np.testing.assert_array_equal(drawn(axes)[np.isfinite(means)], means[np.isfinite(means)])
        assert np.argwhere(np.ma.getmaskarray(axes.images[0].get_array())).tolist() == [[1, 1]]
        assert axes.get_title() == f"stage2_{k}\nwithin {within:.3g}, between {between:.3g}"
        assert labels_of(axes.xaxis) == ["ant", "bee", "dog"]
        image = axes.images[0]
        assert to_hex(image.cmap(image.norm(np.ma.masked_invalid([np.nan])))[0]) == "#d4d4d4"
        assert image.get_clim() == (np.nanmin(means), np.nanmax(means))
    assert [labels_of(axes.yaxis) for axes in panels] == [["ant", "bee", "dog"], []]
    assert "6 images" in figure.get_supxlabel() and "Grey: the images make no such pair" in figure.get_supxlabel()
    assert [axes.get_ylabel() for axes in figure.axes if axes not in panels] == ["mean distance"] * 2


def test_if_every_image_receives_the_same_permutation_that_is_said() -> None:
    layers = {"a": (2, 3), "b": (3, 3)}
    arrays = by_class([0, 0, 0], layers)
    arrays["labels"][:] = [0, 1, 1]
    assert ALIKE == "every image receives the same permutation"
    distances, permutations = class_distances(arrays, ANIMALS), class_permutations(arrays, ANIMALS)
    assert distances.get_suptitle() == f"In every layer {ALIKE}"
    assert [axes.get_title().split("\n")[1] for axes in heat_maps(distances)] == ["within 0, between 0"] * 2
    assert permutations.get_suptitle().endswith(f"\n{ALIKE}")
    arrays["b/inner"][2] = [0, 2, 1]  # One channel pair of one image is enough.
    distances, permutations = class_distances(arrays, ANIMALS), class_permutations(arrays, ANIMALS)
    for figure in (distances, permutations):
        assert ALIKE not in figure.get_suptitle()
    assert [axes.get_title().split("\n")[0] for axes in heat_maps(distances)] == ["b"]
    assert "in 1 of the 1 layers where they differ (static in effect: 1 more)" in distances.get_suptitle()


def test_of_many_layers_some_are_shown_spread_over_the_depth() -> None:
    layers = {f"stage{k}/mixer": (3, 3) for k in range(16)}
    arrays = snapshot([0, 0, 1, 1], layers)
    figure = class_distances(arrays, ANIMALS)
    shown = [f"stage{k}" for k in (0, 3, 6, 9, 12, 15)]
    assert [axes.get_title().split("\n")[0] for axes in heat_maps(figure)] == shown and len(shown) == MAX_ROWS
    assert "6 of 16 layers" in figure.get_suptitle()
    means = factor_means([(0, arrays)])
    assert [axes.get_ylabel() for axes in heat_maps(means)[::2]] == [f"{name}\noutput" for name in shown]
    assert untidy(figure) == untidy(means) == []


@pytest.mark.slow
def test_two_hundred_classes_are_not_named_along_the_axes() -> None:
    labels = np.random.default_rng(0).integers(200, size=512).tolist()
    names = [f"class {k} with a name too long for any axis" for k in range(200)]
    arrays = snapshot(labels, {"a": (2, 5)})
    distances, permutations = class_distances(arrays, names), class_permutations(arrays, names)
    (panel,) = heat_maps(distances)
    present = len(set(labels))
    assert MAX_NAMES < present < 200 and drawn(panel).shape == (present, present)
    assert labels_of(panel.xaxis) == labels_of(panel.yaxis) == []
    assert panel.get_xlabel() == panel.get_ylabel() == f"{present} classes by label"
    assert len(heat_maps(permutations)) == 2 * (1 + MAX_COLUMNS)
    assert all(len(axes.get_title().split("\n")[0]) <= 18 for axes in heat_maps(permutations))
    assert untidy(distances) == untidy(permutations) == []


@pytest.mark.parametrize(
    ("labels", "said"), [([0] * 5, "one class, whose images take"), ([0, 1, 2], "one image a class"), ([2], ALIKE)]
)
def test_classes_without_pairs_are_drawn_all_the_same(labels: list[int], said: str) -> None:
    arrays = snapshot(labels, {"stage2_0/mixer": (2, 5)}, groups=3)
    permutations, distances = class_permutations(arrays, ANIMALS), class_distances(arrays, ANIMALS)
    assert said in permutations.get_suptitle() and "stage2_0, group 0 of 3" in permutations.get_suptitle()
    assert "(no pair)" in heat_maps(distances)[0].get_title()
    assert ALIKE not in distances.get_suptitle()  # One image alone is not like others.
    assert untidy(permutations) == untidy(distances) == []


def dynamic_records(layers: list[str], steps: int = 3) -> list[dict[str, Any]]:
    return [
        {"kind": "dynamic", "step": 10 * k, "epoch": k / 2, "layer": layer, "regulariser": 100.0 ** -(k + i)}
        | {"invalid": 0.5 / (1 + k), "distinct": 0.1 * (1 + i + k), "entropy": 1 / (1 + k + i)}
        for k in range(steps)
        for i, layer in enumerate(layers)
    ]


def points(line: Any) -> np.ndarray:
    return np.asarray(line.get_xydata())


def test_sharpening_draws_one_line_a_layer_coloured_by_depth() -> None:
    layers = ["stage2_9/mixer", "stage2_10/mixer"]
    figure = sharpening(dynamic_records(layers[::-1]))
    entropy, regulariser, invalid, distinct, bar = figure.axes
    assert labels_of(bar.yaxis) == ["stage2_9", "stage2_10"]
    times = [0, 0.5, 1]
    for axes, expected in (
        (entropy, [[1 / 2, 1 / 3, 1 / 4], [1, 1 / 2, 1 / 3]]),  # The deeper layer was recorded first.
        (regulariser, [[1e-2, 1e-4, 1e-6], [1, 1e-2, 1e-4]]),
        (invalid, [[50, 25, 50 / 3]] * 2),
        (distinct, [[20, 30, 40], [10, 20, 30]]),
    ):
        assert len(axes.lines) == 2
        for line, values in zip(axes.lines, expected, strict=True):
            np.testing.assert_allclose(points(line), np.stack([times, values], axis=1))
        colours = [to_hex(line.get_color()) for line in axes.lines]
        assert colours == [to_hex(line.get_color()) for line in entropy.lines] and len(set(colours)) == 2
    assert [axes.get_yscale() for axes in figure.axes[:4]] == ["linear", "log", "linear", "linear"]
    assert [axes.get_xlabel() for axes in figure.axes[:4]] == ["", "", "epoch", "epoch"]
    assert [axes.get_title(loc="left").split(": ")[1] for axes in figure.axes[:4]] == [
        f"{np.mean([1 / 3, 1 / 4]):.3g} at the end",
        f"{np.mean([1e-4, 1e-6]):.3g} at the end",
        "16.7 % at the end",
        "35 % at the end",
    ]
    assert invalid.get_ylabel() == distinct.get_ylabel() == "share of the images (%)"
    assert "0: hard, 1: uniform" in entropy.get_ylabel()
    assert untidy(figure) == []


def test_sharpening_counts_permutations_where_the_records_do() -> None:
    counted = [
        record | {"images": 50, "permutations": round(50 * record["distinct"])}
        for record in dynamic_records(["a/mixer", "b/mixer"])
    ]
    *_, distinct, _ = sharpening(counted).axes
    assert [points(line)[:, 1].round().tolist() for line in distinct.lines] == [[5, 10, 15], [10, 15, 20]]
    assert distinct.get_yscale() == "log" and distinct.get_ylabel() == "of 50 images (1: static in effect)"
    assert distinct.get_title(loc="left") == "Distinct permutations: 15 to 20 at the end"
    learned = [{key: value for key, value in r.items() if key != "distinct"} for r in dynamic_records(["a/mixer"])]
    *_, distinct, _ = sharpening(learned).axes
    assert distinct.get_title(loc="left") == "Learned once for all images"


def test_sharpening_of_one_record_is_seen_and_of_a_lost_run_drawn() -> None:
    first = dynamic_records(["a/mixer"], steps=1)
    assert all(axes.lines[0].get_marker() == "." for axes in sharpening(first).axes[:4])
    lost = {field: float("nan") for field in ("regulariser", "entropy", "distinct", "invalid")}
    for records in ([first[0] | lost], [*first, first[0] | lost | {"step": 10}]):
        assert untidy(sharpening(records)) == []  # And without a warning.


def test_factor_means_show_both_factors_of_each_moment() -> None:
    layers = {"stage2_0/mixer": (2, 3), "stage2_1/mixer": (1, 4)}
    snapshots: list[tuple[int | str, dict[str, np.ndarray]]] = [
        (moment, snapshot([0, 1, 0, 1], layers, groups=2, seed=seed)) for seed, moment in enumerate(("start", 5, "end"))
    ]
    figure = factor_means(snapshots)
    panels = heat_maps(figure)
    moments = ["start", "step 5", "end"]
    assert [axes.get_title() for axes in panels[:6]] == [f"{m}\n{f}" for m in moments for f in ("outer", "inner")]
    assert "2 of 2 layers, group 0 of 2, mean over 4 images" in figure.get_suptitle()
    cells = itertools.product(layers, snapshots, ("outer", "inner"))
    for axes, (layer, (_, arrays), factor) in zip(panels, cells, strict=True):
        mean, vectors = arrays[f"{layer}/{factor}_mean"][0], arrays[f"{layer}/{factor}"][:, 0]
        np.testing.assert_array_equal(drawn(axes), mean)
        hard = np.mean([np.eye(len(mean))[p] for p in vectors], axis=0).max(axis=1).mean()
        assert axes.get_xlabel().split("\n")[0] == f"soft {mean.max(axis=1).mean():.2g}, hard {hard:.2g}"
    assert [axes.get_xlabel().endswith("\ninput") for axes in panels] == [False] * 6 + [True] * 6
    assert untidy(figure) == untidy(factor_means(snapshots[:1])) == []


def test_factors_that_are_no_numbers_are_drawn_all_the_same() -> None:
    arrays = snapshot([0, 1], {"a": (2, 3)})
    arrays["a/inner_mean"][:] = np.nan
    assert "soft nan" in heat_maps(factor_means([(0, arrays)]))[1].get_xlabel()


def test_what_cannot_be_drawn_is_said() -> None:
    arrays = snapshot([0, 3], {"a": (2, 3)})
    with pytest.raises(ValueError, match="none of the records is of the kind 'dynamic'"):
        sharpening([{"kind": "train", "step": 1}])
    for draw in (class_permutations, class_distances):
        for nothing in ({}, snapshot([], {"a": (2, 3)}), {"labels": arrays["labels"]}):
            with pytest.raises(ValueError, match="no permutations to draw: the snapshot has"):
                draw(nothing, ANIMALS)
        with pytest.raises(ValueError, match="labels from 0 to 3 do not fit 3 classes"):
            draw(arrays, ANIMALS[:3])
    for snapshots in ([], [(0, {})], [(0, arrays), (1, snapshot([0], {"b": (2, 2)}))]):
        with pytest.raises(ValueError, match="no factors to draw"):
            factor_means(snapshots)


def write_run(run: Path, classes: list[str] | None, steps: tuple[int, ...] = (0, 10, 20)) -> None:
    records = dynamic_records(["stage2_0/mixer"])
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    if classes:
        (run / "config.json").write_text(json.dumps({"classes": classes}))
    (run / "dynamic").mkdir()
    for step in steps:
        np.savez(run / f"dynamic/{step:08d}.npz", **snapshot([0, 1, 1, 0], {"stage2_0/mixer": (2, 3)}, seed=step))


@pytest.mark.parametrize(("classes", "names"), [(["ant", "bee", "cat"], ["ant", "bee"]), (None, ["0", "1"])])
@pytest.mark.fast_cases(1)
def test_a_run_with_dynamic_shuffles_gets_their_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, classes: list[str] | None, names: list[str]
) -> None:
    kept: dict[Path, Figure] = {}
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, path: (kept.update({path: self}), save(self, path)))
    write_run(tmp_path, classes)
    written = save_run_figures(tmp_path)
    expected = ["sharpening", "class_permutations", "class_distances", "factor_means"]
    assert written == [tmp_path / "figures" / f"{name}.png" for name in expected] == list(kept)
    assert all(path.stat().st_size > 10_000 for path in written)
    _, permutations, distances, means = kept.values()
    assert labels_of(heat_maps(distances)[0].yaxis) == names
    last = snapshot([0, 1, 1, 0], {"stage2_0/mixer": (2, 3)}, seed=20)
    np.testing.assert_array_equal(drawn(heat_maps(permutations)[3]), frequency(last["stage2_0/mixer/inner"][:, 0]))
    titles = [axes.get_title().split("\n")[0] for axes in heat_maps(means)[::2]]
    assert titles == ["start (step 0)", "middle (step 10)", "end (step 20)"]


def test_a_damaged_configuration_is_named(tmp_path: Path) -> None:
    write_run(tmp_path, None)
    for text in ("{", "{}", "[]", '{"classes": 3}'):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(
            ValueError, match=r"config.json does not hold the configuration and the classes of a run \("
        ):
            save_run_figures(tmp_path)
