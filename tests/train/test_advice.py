"""What is said of a training that is short, and of hardening that costs something; nothing where all is well."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from shuffle_jax.analysis.dynamic_use import DynamicUse
from shuffle_jax.deploy.hardening import diagnose
from shuffle_jax.models import NetworkConfig
from shuffle_jax.train.advice import FEWEST, after, before, of_shifts
from shuffle_jax.train.config import OptimizerConfig, PenaltyConfig, TrainConfig

CONFIG = TrainConfig(
    optimizer=OptimizerConfig(warmup_epochs=2, constraint="balance"), penalty=PenaltyConfig(weight=0.1, for_steps=1100)
)


def test_a_short_training_is_told_what_it_changes():
    assert before(CONFIG, 1100, 22, permutations=16) == []
    warmup, weight = before(CONFIG, 110, 22, permutations=16)
    assert warmup.startswith("the warm-up takes 28 steps, 25% of the training, and not 44: --optimizer.warmup-share")
    assert weight.startswith("the penalty's weight is 10 in place of 0.1") and "--penalty.for-steps 0" in weight
    assert before(CONFIG, 110, 22, permutations=0) == [warmup]
    typed = dataclasses.replace(CONFIG, optimizer=dataclasses.replace(CONFIG.optimizer, warmup_share=1.0))
    assert before(typed, 22, 22, permutations=0) == []  # it is refused, not shortened
    assert before(CONFIG, 3, 3, permutations=0)[0].startswith("the warm-up takes 1 step, 25%")
    weight, few = before(CONFIG, FEWEST - 1, 3, permutations=16)[-2:]
    assert "permutations are reached sooner:" in weight
    assert few.startswith(f"{FEWEST - 1} steps are too few to learn permutations") and "more, --epochs 14, or" in few
    assert not any("too few" in line for line in before(CONFIG, FEWEST, 22, permutations=16))


SETTLED, LOOSE = (dict.fromkeys("abcdef", diagnose(m)) for m in (np.eye(4, dtype=np.float32), np.full((4, 4), 0.25)))


@pytest.mark.parametrize(
    ("diagnoses", "relaxed", "hard", "said"),
    [
        ({}, 0.9, 0.1, []),
        (SETTLED, 0.9, 0.895, []),
        (SETTLED, 0.9, 0.8, ["hardening loses 10.0 points of top-1 (90.0% to 80.0%): let the penalty rise sooner"]),
        (
            LOOSE,
            0.3,
            0.1,
            ["hardening loses 20.0 points of top-1 (30.0% to 10.0%) and 6 of 6 learned permutations are"],
        ),
        (LOOSE, None, None, ["6 of 6 learned permutations are not certified (a, b, c and 3 more): train longer"]),
        (SETTLED | {"g": LOOSE["a"]}, 0.5, 0.5, ["1 of 7 learned permutations are not certified (g): train longer"]),
    ],
)
def test_what_hardening_cost_is_one_line_with_the_layers_and_what_to_change(diagnoses, relaxed, hard, said):
    results = None if relaxed is None else {"relaxed": {"top1": relaxed}, "hardened": {"top1": hard}}
    found = after(CONFIG, diagnoses, results)
    assert [line[: len(start)] for line, start in zip(found, said, strict=True)] == said
    assert all("\n" not in line and "--" in line for line in found)
    heavier = after(dataclasses.replace(CONFIG, penalty=PenaltyConfig(weight=0.0)), LOOSE)
    assert heavier[0].endswith("--penalty.weight 0.1")
    assert after(TrainConfig(), LOOSE)[0].endswith("take --optimizer.constraint balance, or train longer (--epochs)")


def of(mixer, **dynamic):
    return dataclasses.replace(CONFIG, network=NetworkConfig(mixer=mixer, dynamic=dynamic))


def test_layers_that_are_soft_at_first_say_from_when_on_evaluations_count():
    (soft,) = before(of("dynamic", binarize_from=0.3), 1100, 22, permutations=0)
    assert soft.startswith("dynamic layers are soft in training until epoch 15 and hard in evaluation: until then")
    assert "epoch 40 and" in before(of("factors"), 1100, 22, permutations=0)[0]  # by its default
    for config in (CONFIG, of("dynamic_hard"), of("squeeze"), of("dynamic", evaluation="soft")):
        assert before(config, 1100, 22, permutations=0) == []


def test_dynamic_layers_are_told_what_to_change_where_images_have_no_permutation_or_all_the_same():
    good = DynamicUse((3, 1), 1, 512, invalid=0.01)
    assert after(of("dynamic"), {}, {}, good) == []
    results = {"relaxed": {"top1": 0.4}, "repaired": {"top1": 0.5}}
    (invalid,) = after(of("dynamic"), {}, results, dataclasses.replace(good, invalid=0.2))
    assert invalid.startswith("the row-argmax is no permutation for 20.0% of the images: train longer")
    assert invalid.endswith("0.3, or repair it, --network.dynamic.evaluation repaired (50.0% in place of 40.0%)")
    (invalid,) = after(of("dynamic"), {}, results | {"repaired": {"top1": 0.4}}, dataclasses.replace(good, invalid=0.2))
    assert invalid.endswith("the regulariser's weight, --penalty.weight 0.3")
    static = DynamicUse((1, 1), 2, 512, invalid=0.0)
    assert after(of("dynamic"), {}, {}, static) == ["every image has the same permutations: train longer (--epochs)"]
    (hard,) = after(of("dynamic_hard"), {}, {}, static)
    assert hard.endswith(": --network.mixer dynamic starts soft and lets them part")
    learned = DynamicUse((), 0, 0, invalid=0.0, learned=2)
    assert after(of("factors"), {}, {}, learned) == []


def test_layers_that_do_not_follow_shifts_are_named_in_a_line_and_without_them_nothing_is_said():
    assert of_shifts({}) == []
    assert of_shifts({"shifts zeros in": ["a", "b", "c", "d"]}) == [
        "not every circular shift of an image leaves the logits as they are (shifts zeros in: a, b, c and 1 more)"
    ]
