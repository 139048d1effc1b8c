"""The step learns, is one step whatever the devices and parts, and its loss is what it says."""

from __future__ import annotations

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from shuffle_jax.data import AugmentConfig, Batch, normalize
from shuffle_jax.data.sampler import epoch_order
from shuffle_jax.nn.collections import PENALTIES, relaxed_permutations
from shuffle_jax.ops.penalty import l1_minus_l2
from shuffle_jax.sharding import batch_sharding, data_mesh, replicated
from shuffle_jax.train.config import OptimizerConfig, PenaltyConfig, TrainConfig, data_seed
from shuffle_jax.train.optimizer import learning_rate, make_optimizer, moving_average
from shuffle_jax.train.state import init_state
from shuffle_jax.train.step import evaluate, make_eval_step, make_train_step, split_batch

CLASSES, SIZE = 4, 16
MEAN_STD = ((0.5,), (0.25,))
LAYERS = 2
AUGMENT = AugmentConfig(crop_padding=1, flip=True, cutout=2)
SMOOTHING = 0.1
EPOCHS = 1000


def make_batch(mesh, seed=0, size=SIZE):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (size, 8, 8, 1), dtype=np.uint8)
    labels = np.arange(size, dtype=np.int32) % CLASSES
    return jax.device_put(Batch(images, labels, np.ones(size, np.float32)), batch_sharding(mesh))


def make(mesh, network, weight=1e-2, rate=0.05, steps_per_epoch=1, **fields):
    """The step at a constant rate, and from step 1 on at a constant weight of the penalties."""
    optimizer = OptimizerConfig(learning_rate=rate, schedule="step", step_boundaries=(), warmup_epochs=0.0)
    penalty = PenaltyConfig(weight, for_steps=0, end=1 / EPOCHS / steps_per_epoch)
    config = TrainConfig(optimizer=optimizer, penalty=penalty, epochs=EPOCHS, batch_size=SIZE, **fields)
    step = make_train_step(network, config, mesh, steps_per_epoch=steps_per_epoch, classes=CLASSES, mean_std=MEAN_STD)
    chain = make_optimizer(optimizer, optax.constant_schedule(rate))
    state = jax.jit(
        lambda: init_state(jax.random.key(0), network, jnp.zeros((1, 8, 8, 1)), chain, config.average_decay > 0),
        out_shardings=replicated(mesh),
    )()
    return step, state


def copied(state):
    """Steps donate their state."""
    return jax.tree.map(jnp.copy, state)


def at(state, number):
    """The state at another step, where it lay, so that nothing is compiled anew."""
    return state.replace(step=jax.device_put(np.int32(number), state.step.sharding))


@pytest.fixture(scope="module")
def network(networks):
    return networks.Small(CLASSES)


@pytest.fixture(scope="module")
def one_device():
    return data_mesh(jax.devices()[:1])


@pytest.fixture(scope="module")
def plain(one_device, network):
    """Without augmentation, with smoothed labels."""
    return make(one_device, network, label_smoothing=SMOOTHING)


@pytest.fixture(scope="module")
def augmented(one_device, network):
    """With augmentation and a moving average."""
    return make(one_device, network, augment=AUGMENT, average_decay=0.75)


@pytest.fixture(scope="module")
def on_two(network):
    """The same on two devices."""
    return make(data_mesh(jax.devices()[:2]), network, augment=AUGMENT, average_decay=0.75)


def test_overfits_one_batch(one_device, plain):
    step, state = plain[0], copied(plain[1])
    batch = make_batch(one_device)
    losses = []
    for _ in range(250):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    share = np.array([1 - SMOOTHING + SMOOTHING / CLASSES, *[SMOOTHING / CLASSES] * (CLASSES - 1)])
    least = -(share * np.log(share)).sum()  # of a loss against smoothed labels
    assert losses[-1] < least + 0.1 < losses[0]
    assert float(metrics["accuracy"]) == 1.0
    assert int(state.step) == 250


def test_the_loss_is_cross_entropy_plus_weighted_penalties_and_the_gradient_theirs(one_device, network, plain):
    step, state = plain[0], at(copied(plain[1]), 1)
    batch = make_batch(one_device)

    def loss(params):
        images = normalize(batch.images, *MEAN_STD)
        variables = {"params": params, **state.collections}
        logits, _ = network.apply(variables, images, train=True, mutable=[*state.collections, PENALTIES])
        targets = jax.nn.one_hot(batch.labels, CLASSES) * (1 - SMOOTHING) + SMOOTHING / CLASSES
        cross_entropy = -(targets * jax.nn.log_softmax(logits)).sum(-1).mean()
        matrices = relaxed_permutations(params).values()
        assert len(matrices) == LAYERS
        return cross_entropy + 1e-2 * sum(map(l1_minus_l2, matrices)), cross_entropy

    (total, cross_entropy), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(state.params)
    norm = np.sqrt(sum(np.square(np.asarray(g, np.float64)).sum() for g in jax.tree.leaves(gradient)))
    _, metrics = step(state, batch)
    np.testing.assert_allclose(metrics["loss"], cross_entropy, rtol=1e-4)
    np.testing.assert_allclose(metrics["penalty"], total - cross_entropy, rtol=1e-4)
    np.testing.assert_allclose(metrics["gradient_norm"], norm, rtol=1e-3)


def test_two_devices_equal_one(augmented, on_two, one_device):
    # Sums differ in their order alone.
    results = []
    for mesh, (step, start) in ((one_device, augmented), (data_mesh(jax.devices()[:2]), on_two)):
        state = copied(start)
        for seed in range(2):
            state, metrics = step(state, make_batch(mesh, seed))
        results.append((jax.device_get(metrics), jax.device_get((state.params, state.collections, state.average))))
    (one, one_state), (two, two_state) = results
    for name in one:
        np.testing.assert_allclose(two[name], one[name], rtol=1e-4, err_msg=name)
    for a, b in zip(jax.tree.leaves(one_state), jax.tree.leaves(two_state), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-5)


def test_the_compiled_step_reduces_over_devices_and_never_gathers_the_batch(on_two):
    step, state = on_two
    text = step.lower(state, make_batch(data_mesh(jax.devices()[:2]))).compile().as_text()
    reduced = reductions(text)
    # Every gradient, and mean and variance of every batch norm, is summed over the devices, whatever its layout.
    for leaf in [*jax.tree.leaves(state.params), *jax.tree.leaves(state.collections)]:
        assert leaf.size in reduced, (leaf.shape, reduced)
    assert max(reduced) <= max(leaf.size for leaf in jax.tree.leaves(state.params))  # no image and no activation
    assert re.findall("all-gather|all-to-all|collective-permute|collective-broadcast", text) == []


def reductions(text):
    """How many numbers each array has that a compiled program sums over its devices."""
    types = re.findall(r"= (.+?) all-reduce(?:-start)?\(", text)
    shapes = re.findall(r"\w+\[([\d,]*)\]", " ".join(types))
    return {int(np.prod([int(n) for n in shape.split(",") if n])) for shape in shapes}


@pytest.mark.slow
def test_accumulation_averages_the_gradients_of_the_parts(one_device, network, plain):
    # Two equal halves: every part has the statistics of the whole batch, so both ways agree.
    half = make_batch(one_device, size=SIZE // 2)
    twice = Batch(*(jnp.repeat(array, 2, axis=0) for array in half))
    after, metrics = plain[0](copied(plain[1]), twice)
    parts, state = make(one_device, network, label_smoothing=SMOOTHING, accumulate=2)
    after_parts, metrics_parts = parts(state, twice)
    for name in metrics:
        np.testing.assert_allclose(metrics_parts[name], metrics[name], rtol=1e-3)
    for a, b in zip(jax.tree.leaves(after.params), jax.tree.leaves(after_parts.params), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-5)
    assert int(after_parts.step) == 1


def test_what_is_computed_again_changes_nothing(one_device, network, plain):
    batch = make_batch(one_device)
    after, metrics = plain[0](copied(plain[1]), batch)
    again, state = make(one_device, network, label_smoothing=SMOOTHING, remat=True)
    after_again, metrics_again = again(state, batch)
    for name in metrics:
        np.testing.assert_allclose(metrics_again[name], metrics[name], rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-6), after.params, after_again.params)


def test_parts_are_interleaved_so_that_each_lies_on_all_devices():
    np.testing.assert_array_equal(split_batch(jnp.arange(6), 2), [[0, 2, 4], [1, 3, 5]])


def test_the_moving_average_follows_and_is_what_is_evaluated(one_device, augmented):
    step, state = augmented[0], copied(augmented[1])
    before = jax.device_get(state.params)
    state, _ = step(state, make_batch(one_device))
    expected = jax.tree.map(lambda b, p: 0.1 * b + 0.9 * p, before, jax.device_get(state.params))
    for a, b in zip(jax.tree.leaves(state.average), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    variables = state.variables()
    assert variables["params"] is state.average and variables["batch_stats"] is state.average_stats
    assert jax.tree.structure(state.average_stats) == jax.tree.structure(state.collections["batch_stats"])


@pytest.mark.parametrize("ramp", [True, False])
def test_the_decay_of_the_average_rises_to_its_value(ramp):
    config = TrainConfig(average_decay=0.75, average_ramp=ramp)
    rng = np.random.default_rng(0)
    expected = rng.normal(size=3)
    average = {"kernel": jnp.asarray(expected, jnp.float32)}
    follow = jax.jit(lambda *given: moving_average(*given, config))
    for n in range(40):
        new = rng.normal(size=3)
        decay = min(0.75, (1 + n) / (10 + n)) if ramp else 0.75
        expected = decay * expected + (1 - decay) * new
        average = follow(average, {"kernel": jnp.asarray(new, jnp.float32)}, n)
        np.testing.assert_allclose(average["kernel"], expected, rtol=1e-5, atol=1e-6)


def test_equal_keys_and_steps_give_equal_results_and_other_steps_other_augmentation(one_device, augmented):
    step, batch = augmented[0], make_batch(one_device)
    first, repeated, second = (float(step(at(copied(augmented[1]), number), batch)[1]["loss"]) for number in (3, 3, 4))
    assert first == repeated != second


def test_a_module_from_outside_keeps_its_collections_and_drops_out_by_the_step(one_device, networks):
    step, state = make(one_device, networks.Plain(CLASSES), rate=0.0, accumulate=2)
    assert set(state.collections) == {"memory"}  # and not what it only tells
    batch, losses = make_batch(one_device), []
    for number in (0, 0, 1):
        state, metrics = step(at(state, number), batch)
        losses.append(float(metrics["loss"]))
    assert losses[0] == losses[1] != losses[2]
    assert int(state.collections["memory"]["seen"]) == 3 * 2  # once for each part
    assert set(state.variables()) == {"params", "memory"}


def test_augmentation_is_told_the_epochs_that_are_done(one_device, monkeypatch):
    def told(key, images, targets, config, mean, std, epoch):
        assert (config, (mean, std)) == (AUGMENT, MEAN_STD)
        rise = jnp.arange(8.0, dtype=jnp.float32)[None, None, :, None]  # the logits of a sample are 0, e, 2 e, 3 e
        return epoch * jnp.broadcast_to(rise, images.shape), targets

    monkeypatch.setattr("shuffle_jax.train.step.augment", told)
    step, state = make(one_device, Pixels(), rate=0.0, steps_per_epoch=6, augment=AUGMENT)
    state = state.replace(params=jax.tree.map(jnp.ones_like, state.params))
    for number in (0, 3, 12, 40):
        state, metrics = step(at(state, number), make_batch(one_device))
        logits = number / 6 * np.arange(CLASSES)
        expected = np.log(np.exp(logits).sum()) - logits.mean()  # each class is a quarter of the batch
        np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5)


@pytest.mark.parametrize("separate", [True, False])
def test_each_purpose_has_a_stream_of_its_own_but_in_runs_of_earlier_versions(one_device, monkeypatch, separate):
    network = Pixels()
    config = TrainConfig(epochs=9, batch_size=SIZE, seed=5, separate_streams=separate)
    root, number = jax.random.key(5), 3
    if separate:
        start, augmentation = (jax.random.fold_in(root, 2**32 - purpose) for purpose in (4, 2))
    else:  # as they were: the key of the start is also that of the order of epoch 0
        start, augmentation = jax.random.split(root)
        np.testing.assert_array_equal(*map(jax.random.key_data, (start, jax.random.fold_in(root, 0))))
        np.testing.assert_array_equal(epoch_order(data_seed(config), 7, 50), epoch_order(5, 7, 50))
    chain = make_optimizer(config.optimizer, optax.constant_schedule(0.0))
    state = init_state(root, network, jnp.zeros((1, 8, 8, 1)), chain, separate_streams=separate)
    state = jax.device_put(state, replicated(one_device))
    np.testing.assert_array_equal(state.params["level"], jax.random.normal(start, (1, CLASSES)))

    monkeypatch.setattr(
        "shuffle_jax.train.step.augment",
        lambda key, images, targets, *_: (jax.random.normal(key, images.shape), targets),
    )
    step = make_train_step(network, config, one_device, steps_per_epoch=1, classes=CLASSES, mean_std=MEAN_STD)
    _, metrics = step(at(state, number), make_batch(one_device))
    noise = jax.random.normal(jax.random.fold_in(augmentation, number), (SIZE, 8, 8, 1))
    logits = np.asarray(noise)[:, 0, :CLASSES, 0] * np.asarray(jax.random.normal(start, (1, CLASSES)))
    expected = np.log(np.exp(logits).sum(-1)).mean() - logits[np.arange(SIZE), np.arange(SIZE) % CLASSES].mean()
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5)


@dataclasses.dataclass
class Pixels:
    """Four pixels of the first row, times its parameters."""

    def init(self, key, images, train):
        return {"params": {"level": jax.random.normal(key, (1, CLASSES))}}

    def apply(self, variables, images, train, mutable, rngs):
        return images[:, 0, :CLASSES, 0] * variables["params"]["level"], {}


@pytest.mark.slow
def test_half_precision_keeps_parameters_statistics_and_metrics_in_float32(one_device, network):
    step, state = make(one_device, network.clone(dtype=jnp.bfloat16))
    state, metrics = step(state, make_batch(one_device))
    for leaf in jax.tree.leaves((state.params, state.collections, metrics)):
        assert leaf.dtype == jnp.float32
        assert bool(jnp.all(jnp.isfinite(leaf)))


def test_evaluation_counts_ranks_and_ignores_padding(one_device, network):
    logits = jnp.array([[3.0, 1, 2, 0], [3, 1, 2, 0], [0, 0, 0, 0], [9, 1, 2, 0]])
    labels = np.array([0, 2, 1, 3], np.int32)

    @dataclasses.dataclass
    class Fixed:
        def apply(self, variables, images, train):
            assert not train
            return logits

    images = np.zeros((4, 8, 8, 1), np.uint8)
    step = make_eval_step(Fixed(), one_device, mean_std=MEAN_STD, top=2)
    batch = Batch(images, labels, np.array([1, 1, 1, 0], np.float32))
    sums = step({}, batch)
    # Right; second; all tied, which counts as last; padding.
    assert {k: float(sums[k]) for k in ("count", "top1", "top2")} == {"count": 3, "top1": 1, "top2": 2}
    expected = -sum(float(jax.nn.log_softmax(logits[i])[labels[i]]) for i in range(3)) / 3
    result = evaluate(step, {}, [batch, batch])
    np.testing.assert_allclose([result["loss"], result["top1"]], [expected, 1 / 3], rtol=1e-5)
    with pytest.raises(ValueError, match="the test split is empty"):
        evaluate(step, {}, [])


def test_logits_that_are_not_numbers_count_as_wrong(one_device, network):
    @dataclasses.dataclass
    class Broken:
        def apply(self, variables, images, train):
            return jnp.full((2, 3), jnp.nan)

    step = make_eval_step(Broken(), one_device, mean_std=MEAN_STD)
    sums = step({}, Batch(np.zeros((2, 8, 8, 1), np.uint8), np.zeros(2, np.int32), np.ones(2, np.float32)))
    assert float(sums["top1"]) == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "augment",
    [
        AugmentConfig(
            crop_padding=1, flip=True, cutout=2, mixup=0.2, mixup_epochs=1.0, random_operations=2, erasing=0.5
        ),
        AugmentConfig(resized_crop=0.1, jitter=0.4, cutmix=1.0),
    ],
)
def test_a_step_has_the_same_types_where_float64_is_the_default(one_device, network, augment):
    batch = make_batch(one_device)
    config = TrainConfig(epochs=2, batch_size=SIZE, augment=augment, average_decay=0.9, label_smoothing=0.1)

    def types():
        step = make_train_step(network, config, one_device, steps_per_epoch=3, classes=CLASSES, mean_std=MEAN_STD)
        chain = make_optimizer(config.optimizer, learning_rate(config.optimizer, 6, 3))
        images = jnp.zeros((1, 8, 8, 1), jnp.float32)
        state = jax.eval_shape(lambda: init_state(jax.random.key(0), network, images, chain, average=True))
        evaluation = make_eval_step(network, one_device, MEAN_STD)
        made = state, jax.eval_shape(step, state, batch), jax.eval_shape(evaluation, state.variables(), batch)
        return jax.tree.map(lambda leaf: leaf.dtype, made)

    narrow = types()
    with jax.enable_x64(True):
        assert types() == narrow
