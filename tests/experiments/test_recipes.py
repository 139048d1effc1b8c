"""The recipes of the presets, as numbers: rates, steps, mixup, and the networks they are for."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
from PIL import Image

from experiments import train
from experiments.presets import PRESETS, cifar100_auto, imagenet_auto, imagenet_mobilenet, imagenet_resnet
from shuffle_jax.data import DigitsConfig, Preprocessing
from shuffle_jax.data.augment import mixup_alpha
from shuffle_jax.run import Run
from shuffle_jax.train.begin import check_config
from shuffle_jax.train.config import read_config, to_json
from shuffle_jax.train.optimizer import learning_rate

IMAGENET = 1_281_167
"""Training images."""


def schedule(config, images=IMAGENET):
    """Steps of an epoch and of the training, and the rate of each step."""
    per_epoch = images // config.batch_size
    steps = config.epochs * per_epoch
    return per_epoch, steps, learning_rate(config.optimizer, steps, per_epoch)


def test_the_rate_of_the_released_resnet_falls_at_30_60_and_90_epochs():
    per_epoch, steps, rate = schedule(imagenet_resnet())
    assert (per_epoch, steps) == (5004, 600_480)
    found = {epoch: float(rate(epoch * per_epoch)) for epoch in (0, 29, 30, 31, 59, 60, 61, 89, 90, 91, 119)}
    expected = {0: 0.1, 29: 0.1, 30: 0.01, 31: 0.01, 59: 0.01, 60: 1e-3, 61: 1e-3, 89: 1e-3, 90: 1e-4, 91: 1e-4}
    assert found == pytest.approx(expected | {119: 1e-4}, rel=1e-6)
    before = [float(rate(epoch * per_epoch - 1)) for epoch in (30, 60, 90)]  # the last step of the epoch before
    np.testing.assert_allclose(before, [0.1, 0.01, 1e-3], rtol=1e-6)
    assert float(rate(steps - 1)) == pytest.approx(1e-4, rel=1e-6)


def test_the_rate_of_the_released_mobilenet_is_a_cosine_of_the_step():
    per_epoch, steps, rate = schedule(imagenet_mobilenet())
    assert (per_epoch, steps) == (2502, 750_600)
    assert float(rate(0)) == pytest.approx(0.1, rel=1e-7)
    for step in (1, per_epoch // 2, 77 * per_epoch + 1, steps // 2, 250 * per_epoch):
        assert float(rate(step)) == pytest.approx(0.05 * (1 + math.cos(math.pi * step / steps)), rel=1e-5), step
    assert float(rate(steps // 2)) == pytest.approx(0.05, rel=1e-6)
    assert float(rate(150 * per_epoch + 9)) < float(rate(150 * per_epoch + 1))  # also within an epoch
    assert 0 <= float(rate(steps - 1)) < 1e-10


@pytest.mark.parametrize("preset", [imagenet_mobilenet, imagenet_resnet])
def test_what_both_released_recipes_have_in_common(preset):
    config = preset()
    optimizer = config.optimizer
    assert (optimizer.kind, optimizer.momentum, optimizer.nesterov) == ("sgd", 0.9, False)
    assert (optimizer.clip_norm, config.accumulate, config.average_decay) == (0, 1, 0)
    assert config.label_smoothing == 0.1 and config.augment.flip and config.augment.resized_crop == 0.08
    assert not config.augment.cutout
    alphas = [float(mixup_alpha(config.augment, epoch)) for epoch in (0.0, 1.0, 50.0, 99.0, 100.0, 119.0)]
    np.testing.assert_allclose(alphas, [0, 0.002, 0.1, 0.198, 0.2, 0.2], rtol=1e-6)
    assert (config.data.image_size, config.data.crop) == (224, 0.875)


def test_what_the_released_recipes_differ_in():
    mobilenet, resnet = imagenet_mobilenet(), imagenet_resnet()
    assert (mobilenet.optimizer.weight_decay, resnet.optimizer.weight_decay) == (2e-5, 1e-4)
    assert (mobilenet.network.dropout, resnet.network.dropout) == (0.2, 0.1)


def test_the_rate_of_shufflenet_v2_falls_in_a_line_over_300_thousand_steps():
    per_epoch, steps, rate = schedule(imagenet_auto())
    assert (per_epoch, steps) == (1251, 300_240) and abs(steps - 300_000) < per_epoch / 2
    for step in (0, 1, 1000, 150_120, steps - 1):
        assert float(rate(step)) == pytest.approx(0.5 * (1 - step / steps), abs=1e-7), step


@pytest.mark.parametrize("name", ["auto", "auto-v1", "dynamic", "static-dynamic", "addressnet"])
def test_the_recipe_of_shufflenet_v2_is_that_of_its_authors(name):
    config = PRESETS[f"imagenet-{name}"]()
    optimizer = config.optimizer
    assert (optimizer.kind, optimizer.momentum, optimizer.nesterov) == ("sgd", 0.9, False)
    assert (optimizer.weight_decay, optimizer.clip_norm, optimizer.warmup_epochs) == (4e-5, 0, 0)
    assert (config.batch_size, config.label_smoothing, config.augment.mixup) == (1024, 0.1, 0)
    assert (config.data.image_size, config.data.crop, config.augment.resized_crop) == (224, 0.875, 0.08)


def test_the_rate_of_the_reference_runs_falls_to_a_fifth_at_60_120_and_160_of_200_epochs():
    per_epoch, steps, rate = schedule(cifar100_auto(), 50_000)
    assert (per_epoch, steps) == (390, 78_000)
    epochs = [0, 59, 60, 119, 120, 159, 160, 199]
    first = [float(rate(epoch * per_epoch)) for epoch in epochs]
    last = [float(rate((epoch + 1) * per_epoch - 1)) for epoch in epochs]
    expected = [0.1, 0.1, 0.02, 0.02, 0.004, 0.004, 0.0008, 0.0008]
    np.testing.assert_allclose(first, expected, rtol=1e-5)
    np.testing.assert_allclose(last, expected, rtol=1e-5)


@pytest.mark.parametrize("name", ["auto", "auto-v1", "dynamic", "static-dynamic", "mobilenet", "resnet"])
def test_the_recipe_of_the_reference_runs(name):
    config = PRESETS[f"cifar100-{name}"]()
    optimizer = config.optimizer
    assert (optimizer.kind, optimizer.momentum, optimizer.nesterov) == ("sgd", 0.9, True)
    assert (optimizer.weight_decay, optimizer.clip_norm, optimizer.warmup_epochs) == (5e-4, 0, 0)
    assert (config.batch_size, config.label_smoothing, config.augment.crop_padding) == (128, 0, 4)


@pytest.mark.parametrize("name", ["addressnet", "shift-resnet"])
@pytest.mark.parametrize("data", ["cifar10", "cifar100"])
def test_the_rate_of_shift_resnet_falls_at_81_and_122_of_164_epochs(data, name):
    config = PRESETS[f"{data}-{name}"]()
    per_epoch, _, rate = schedule(config, 50_000)
    found = [float(rate(step)) for epoch in (81, 122) for step in (epoch * per_epoch - 1, epoch * per_epoch)]
    np.testing.assert_allclose(found, [0.1, 0.01, 0.01, 0.001], rtol=1e-5)
    assert (config.optimizer.weight_decay, config.batch_size, config.augment.crop_padding) == (5e-4, 128, 4)


@pytest.mark.slow
def test_a_released_recipe_trains_with_its_ramp_and_its_crops(tmp_path):
    root = tmp_path / "pictures"
    for split, number in (("train", 24), ("val", 4)):
        for level, label in ((40, "dark"), (200, "bright")):
            (root / split / label).mkdir(parents=True)
            for i in range(number):
                pixels = np.random.default_rng(i).integers(level, level + 40, (9, 9, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / label / f"{i}.png")
    family = "--network.family tests.experiments.outside:Linear --network.pointwise plain --network.head plain"
    other = "--network.dropout 0 --network.stem small --network.depth None"
    few = "--data.image-size 8 --epochs 8 --batch-size 16 --augment.mixup-epochs 2 --devices 1 --evaluate-every 4"
    path = tmp_path / "run"
    train.run(["imagenet-resnet", "--data.root", str(root), "--run", str(path), *f"{family} {other} {few}".split()])
    records = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    (result,) = [record for record in records if record["kind"] == "result"]
    assert result["top1"] == 1.0
    rates = [record["learning_rate"] for record in records if record["kind"] == "train"]
    np.testing.assert_allclose(rates, [0.01, 1e-4], rtol=1e-6)  # of the last step of epochs 4 and 8, of 8


def test_a_run_of_before_the_recipes_reads_as_it_was_meant(tmp_path):
    config = dataclasses.replace(PRESETS["digits-resnet"](), data=DigitsConfig())
    run = Run(tmp_path / "run")
    run.start(to_json(config), ["a"], Preprocessing(8, 1, (0.3,), (0.4,)))
    file = run.path / "config.json"
    about = json.loads(file.read_text())
    newer = ("mixup_epochs", "resized_crop", "jitter", "random_operations", "random_magnitude", "erasing", "cutmix")
    for part, name in (*(("augment", name) for name in newer), ("optimizer", "nesterov")):
        del about["config"][part][name]
    file.write_text(json.dumps(about))
    assert read_config(run) == config and read_config(run).optimizer.nesterov
    check_config(run, config)
    other = dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, nesterov=False))
    with pytest.raises(ValueError, match=r"\(--optimizer.nesterov: True -> False\)"):
        check_config(run, other)
