"""What is said of dynamic layers in the end: how many are static in effect, invalid, and used."""

from __future__ import annotations

import pytest

from shuffle_jax.analysis.dynamic_use import DynamicUse, dynamic_use, recorded_use, static_in_effect


def layer(permutations: int | None, invalid: float = 0.0) -> dict[str, float]:
    counted = {} if permutations is None else {"permutations": permutations, "images": 512}
    return {"invalid": invalid, "entropy": 0.1, **counted}


def results(**top1: float) -> dict[str, dict[str, float]]:
    return {name: {"top1": value} for name, value in top1.items()}


def test_counts_are_those_of_the_layers_that_make_permutations() -> None:
    layers = {"a": layer(21), "b": layer(1), "c": layer(None, invalid=0.75), "d": layer(1)}
    assert [static_in_effect(numbers) for numbers in layers.values()] == [False, True, True, True]
    assert dynamic_use(layers) == DynamicUse(counts=(21, 1, 1), static=2, images=512, invalid=0.1875, learned=1)
    only = dynamic_use({"c": layers["c"]})
    assert only == DynamicUse((), 0, 0, invalid=0.75, learned=1)
    assert only.text(results(relaxed=0.5, frozen=0.4)) == (
        "learned factors: 1, each the same for all images; invalid 75.0%"
    )
    assert only.cells(results(relaxed=0.5, frozen=0.4)) == {"invalid": "75.0%"}


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        ((1,), "dynamic layers: 1, static in effect (one permutation for all 512 images)"),
        ((1, 1), "dynamic layers: 2, all static in effect (one permutation for all 512 images)"),
        ((1, 7, 1), "3, 2 of them static in effect (one permutation for all 512 images), the other with 7"),
        ((1, 21, 5), "3, 1 of them static in effect (one permutation for all 512 images), the others with 5 to 21"),
        ((21, 512), "dynamic layers: 2, none static in effect (21 to 512 permutations for 512 images)"),
    ],
)
def test_a_line_counts_the_layers_that_are_static_in_effect(counts: tuple[int, ...], said: str) -> None:
    use = dynamic_use({str(i): layer(count) for i, count in enumerate(counts)})
    assert said in use.text({}) and use.text({}).endswith("; invalid 0.0%")  # nothing was measured
    assert use.cells({}) == {"static in effect": f"{counts.count(1)}/{len(counts)}", "invalid": "0.0%"}


def test_used_is_what_freezing_loses_beside_its_standard_error() -> None:
    use = dynamic_use({"a": layer(3)})
    lost = use.text(results(relaxed=0.9, frozen=0.84), test_images=10_000)  # an error of 0.3 points
    assert lost.endswith("; used: 6.0 points of top-1 (as trained 90.0%, frozen 84.0%, standard error 0.3)")
    level = use.text(results(relaxed=0.9, frozen=0.9 + 0.0029), test_images=10_000)
    assert "used: -0.3 points of top-1, within the standard error of 0.3 (as trained 90.0%" in level
    assert use.text(results(relaxed=0.9, frozen=0.9)).endswith(
        "used: 0.0 points of top-1 (as trained 90.0%, frozen 90.0%)"
    )
    # With soft factors in evaluation it is the hard ones that are frozen; invalid ones are repaired by that.
    soft = dynamic_use({"a": layer(3, invalid=0.5)}).text(results(relaxed=0.9, hard=0.7, frozen=0.6))
    assert soft.endswith("invalid 50.0%; used: 10.0 points of top-1 (hard 70.0%, frozen and repaired 60.0%)")
    assert use.cells(results(relaxed=0.9, frozen=0.84))["used"] == "6.0 points"
    assert "within the standard error" in use.text(results(relaxed=1.0, frozen=1.0), test_images=10)


def test_records_say_the_same_unless_an_earlier_version_wrote_them() -> None:
    layers = {"a": layer(21), "b": layer(None, invalid=0.5)}
    records = [
        {"kind": "dynamic", "step": step, "layer": name, **numbers}
        for step in (10, 20)
        for name, numbers in (layers.items() if step == 20 else [("a", layer(1))])
    ]
    assert recorded_use(records, 20) == dynamic_use(layers)
    assert recorded_use(records, 10) == dynamic_use({"a": layer(1)})
    assert recorded_use(records, 15) is recorded_use([{"kind": "test", "step": 20}], 20) is None
    before = {"kind": "dynamic", "step": 20, "layer": "a", "invalid": 0.0, "distinct": 0.25}
    assert recorded_use([before], 20) is None
