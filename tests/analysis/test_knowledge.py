"""What a kernel has learned: the authors' figures, and what does not change it."""

from __future__ import annotations

from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from hypothesis import given
from hypothesis import strategies as st

from shuffle_jax.analysis.convolutions import convolutions, known
from shuffle_jax.analysis.knowledge import Knowledge, Side, knowledge, signal
from shuffle_jax.models.resnet import ResNet

FIGURES = np.load(Path(__file__).parents[1] / "fixtures" / "conet.npz")
KERNELS = sorted(key.partition("/")[0] for key in FIGURES if key.endswith("/W"))
NOTHING = Side(0.0, 0.0, 0.0)


def kernel(case):
    """HWIO."""
    return FIGURES[f"{case}/W"].transpose(2, 3, 1, 0)


@pytest.mark.parametrize("case", KERNELS)
def test_the_authors_figures(case):
    for name, side in zip(("in", "out", "k"), knowledge(kernel(case)), strict=True):
        rank, condition, gain = (float(FIGURES[f"{case}/{name}_{what}"]) for what in ("rank", "condition", "S"))
        found = NOTHING if side is None else side  # theirs of one row is 0 always
        assert found.rank == pytest.approx(rank, abs=1e-7)
        np.testing.assert_allclose(found[1:], (condition, gain), rtol=1e-4, err_msg=name)


@given(seed=st.integers(0, 99), scale=st.sampled_from((1e-6, 1e-2, 37.0, 1e5)), rank=st.integers(0, 4))
def test_a_multiple_has_the_multiple_of_its_signal(seed, scale, rank):
    rng = np.random.default_rng(seed)
    matrix = 3 * rng.standard_normal((12, rank)) @ rng.standard_normal((rank, 30)) + rng.standard_normal((12, 30))
    one = signal(matrix)
    np.testing.assert_allclose(signal(scale * matrix), scale * one, rtol=1e-5)
    np.testing.assert_allclose(signal(matrix.T), one, rtol=1e-6)
    assert (np.diff(one) <= 0).all()
    assert (one > 0).all()


def test_the_signal_is_below_the_singular_values_and_as_many_as_were_put_in():
    rng = np.random.default_rng(3)
    left, right = (np.linalg.qr(rng.standard_normal((n, 5)))[0] for n in (40, 90))
    values = np.array([400.0, 300.0, 200.0, 120.0, 80.0])
    matrix = (left * values) @ right.T + rng.standard_normal((40, 90))
    found = signal(matrix)
    assert len(found) == 5
    assert (found < np.linalg.svd(matrix, compute_uv=False)[:5]).all()
    np.testing.assert_allclose(found, values, rtol=0.05)


@pytest.mark.parametrize("rank", [1, 3, 7])
def test_what_float32_rounds_is_no_signal(rank):
    left, right = (np.random.default_rng(rank).standard_normal((n, rank)).astype(np.float32) for n in (24, 90))
    assert len(signal(left @ right.T)) == rank


def test_noise_and_nothing_have_no_signal():
    noise = np.random.default_rng(0).standard_normal((3, 3, 20, 24))
    assert knowledge(noise) == knowledge(np.zeros((3, 3, 20, 24))) == Knowledge(NOTHING, NOTHING, NOTHING)
    assert knowledge(noise).gain == 0


def test_groups_are_kernels_of_their_own_and_sides_of_one_row_have_no_rank():
    cases = [kernel("out5_32x16_k3"), kernel("in4_16x24_k3")[:, :, :16], kernel("both4_24x20_k3")[:, :, :16, :16]]
    first, second = cases[0][..., :16], cases[1]
    both = knowledge(np.concatenate([first, second], axis=-1), groups=2)
    for side, *parts in zip(both, knowledge(first), knowledge(second), strict=True):
        np.testing.assert_allclose(side, np.mean(parts, axis=0), rtol=1e-12)
    depthwise, pointwise = knowledge(kernel("depthwise_24_k3")), knowledge(kernel("pw_wide_20x48_k1"))
    assert (depthwise.inputs, pointwise.window) == (None, None)
    assert depthwise.gain == depthwise.outputs.gain
    assert pointwise.gain == (pointwise.inputs.gain + pointwise.outputs.gain) / 2


def test_records_hold_it():
    found = knowledge(kernel("pw_wide_20x48_k1"))
    assert Knowledge.read({"kind": "knowledge", **found.numbers()}) == found


@pytest.mark.parametrize("wrong", [np.ones((3, 4, 4)), np.full((1, 1, 4, 4), np.nan)])
def test_what_is_no_kernel_is_refused(wrong):
    with pytest.raises(ValueError, match=r"must be HWIO|of finite numbers"):
        knowledge(wrong)
    with pytest.raises(ValueError, match="a multiple of 3 outputs"):
        knowledge(np.ones((1, 1, 4, 4)), groups=3)


class Two(nn.Module):
    """A convolution of flax, what follows it, and a depthwise one."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.BatchNorm(use_running_average=not train, name="before")(x)
        x = nn.Conv(8, (3, 3), feature_group_count=1, name="zz")(x)
        x = nn.LayerNorm(name="a")(x)
        x = nn.Conv(8, (3, 3), feature_group_count=8, name="b")(x)
        return nn.Dense(3, name="aa")(x.mean((1, 2)))


def test_parameters_follow_the_convolution_before_them_and_the_first_ones_the_first():
    found = convolutions(Two(), (8, 8, 3))
    assert found.groups == {"zz": 1, "b": 1}
    follows = {path.partition("/")[0]: layer for path, layer in found.followed.items()}
    assert follows == {"before": "zz", "zz": "zz", "a": "zz", "b": "b", "aa": "b"}


def test_every_parameter_of_a_network_follows_one():
    network = ResNet(5, 10, 0.125, "small", groups=2)
    found = convolutions(network, (8, 8, 3))
    shapes = jax.eval_shape(network.init, jax.random.key(0), np.zeros((1, 8, 8, 3), np.float32))["params"]
    assert set(found.followed) == set(flatten_dict(shapes, sep="/"))
    assert set(found.followed.values()) == set(found.groups)
    assert found.followed["stage1_0/norm1/scale"] == "stage1_0/conv1"
    assert found.groups["stage1_0/conv1"] == 2
    assert found.followed["head/kernel"] in ("stage4_0/conv2", "stage4_0/downsample")


def test_a_network_without_kernels_and_one_that_went_wrong_are_refused():
    class Dense(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            return nn.Dense(3)(x.mean((1, 2)))

    with pytest.raises(ValueError, match="Dense has no convolution"):
        convolutions(Dense(), (8, 8, 3))
    with pytest.raises(ValueError, match="the kernel of a/b is not finite"):
        known({"a": {"b": {"kernel": np.full((1, 1, 2, 2), np.inf)}}}, {"a/b": 1})
