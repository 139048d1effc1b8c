"""Second derivatives of everything that has a derivative of its own: those that JAX takes of the plain form."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import shuffle_jax
from shuffle_jax.nn import BatchNorm
from shuffle_jax.ops import (
    convolution,
    kronecker,
    mixing,
    polyphase,
    pooling,
    reduction,
    relaxation,
    rounding,
    shifted_pointwise,
    two_layer,
)
from shuffle_jax.ops.depthwise_shifts import sum_of_shifts
from shuffle_jax.ops.normalization import normalize_by_batch
from shuffle_jax.ops.remat import recomputed
from shuffle_jax.ops.residual import relu_of_sum
from shuffle_jax.ops.shifted_pointwise_kernel import shift_and_convolve
from shuffle_jax.ops.wrap import wrap

compiled = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # Half the compilation.
PERMUTATION = np.array([2, 0, 3, 1])


def drawn(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def near(*permutations):
    """A matrix near each permutation."""
    return np.stack([0.7 * np.eye(len(p))[p] + 0.1 for p in map(list, permutations)])


def normalized(x, scale, bias, about):
    mean = x.mean((0, 1, 2), keepdims=True)
    deviation = jnp.sqrt(jnp.square(x - mean).mean((0, 1, 2), keepdims=True) + 1e-5)
    return (x - mean) / deviation * scale.reshape(1, 1, 1, -1) + bias.reshape(1, 1, 1, -1)


def mixed(x, outer, inner):
    n, h, w, _ = x.shape
    tables = x.reshape(n, h * w, 2, outer.shape[-1], inner.shape[-1])
    outer, inner = (jnp.broadcast_to(m, (n, *m.shape[-2:])) for m in (outer, inner))
    return jnp.einsum("nsgab,nia,njb->nsijg", tables, outer, inner).reshape(n, h, w, -1)


def mixed_straight_through(x, outer, inner):
    return mixed(x, *(rounding.straight_through(m, rounding.argmax(m)) for m in (outer, inner)))


def iterated(scores):
    def one_pass(scores, _):
        return jax.nn.log_softmax(jax.nn.log_softmax(scores, -2), -1), None

    return jnp.exp(jax.lax.scan(one_pass, scores, length=200)[0])


def arc_cosine(u, v):
    norms = jnp.linalg.norm(u, axis=-1)[:, None] * jnp.linalg.norm(v, axis=-1)[None]
    angle = jnp.arccos(u @ v.T / norms)
    return norms / (2 * np.pi) * (jnp.sin(angle) + (np.pi - angle) * jnp.cos(angle))


def native(stride, x, kernel):
    return convolution._native(stride, ((1, 1), (1, 1)), x.shape[-1], x, kernel)


TABLES = drawn(2, 3, 2, 12)
INVALID = drawn(2, 2, 2, seed=1), np.ones((2, 3, 3)) + drawn(2, 3, 3, seed=2) / 9 + np.array([3.0, 0, 0])
STEP = {"groups": 4, "rotation": 1}
CASES = {  # The op, its plain form, what it is of; in float64 where it can be.
    "norm": (lambda *a: normalize_by_batch(*a)[0], normalized, [drawn(3, 2, 2, 3), *drawn(3, 3, seed=1)]),
    "straight through": (
        partial(kronecker.straight_through, groups=2),
        mixed_straight_through,
        [TABLES, near((1, 0), (0, 1)), near((2, 0, 1), (0, 2, 1))],
    ),
    "relu of a sum": (relu_of_sum, lambda x, y: jax.nn.relu(x + y), [drawn(2, 3), drawn(2, 3, seed=1)]),
    "largest": (pooling.largest, pooling._largest_native, [drawn(1, 5, 4, 2)]),
    "sums": (lambda x: jnp.stack(reduction.sums([x, x * x])), lambda x: jnp.stack([x, x * x]).sum((1, 2, 3)), [TABLES]),
    "component": (
        lambda x: polyphase.component(x, np.array([1, 2])),
        lambda x: jnp.stack([x[0, 1::2, ::2], x[1, ::2, 1::2]]),
        [drawn(2, 2, 4, 2)],
    ),
    "wrap": (
        partial(wrap, pads=((1, 4), (2, 0))),
        lambda x: jnp.pad(x, ((0, 0), (1, 4), (2, 0), (0, 0)), mode="wrap"),
        [drawn(1, 2, 3, 2)],
    ),
    "permute": (partial(mixing.permute, permutation=PERMUTATION), lambda x: x[..., PERMUTATION], [drawn(2, 3, 4)]),
    "depthwise": (
        partial(sum_of_shifts, 1, ((1, 1), (1, 1))),
        partial(native, 1),
        [drawn(2, 4, 3, 2), drawn(3, 3, 1, 2)],
    ),
    "depthwise, strided": (
        partial(sum_of_shifts, 2, ((1, 1), (1, 1))),
        partial(native, 2),
        [drawn(1, 33, 4, 2), drawn(3, 3, 1, 2)],
    ),
    "mix": (partial(kronecker.mix, groups=2), mixed, [TABLES, drawn(2, 2, 2), drawn(2, 3, 3)]),
    "mix by one pair": (partial(kronecker.mix, groups=2), mixed, [TABLES, drawn(2, 2), drawn(3, 3)]),
    "straight through one pair": (
        partial(kronecker.straight_through, groups=2),
        mixed_straight_through,
        [TABLES, near((1, 0))[0], near((2, 0, 1))[0]],
    ),
    "straight through to no permutation": (
        partial(kronecker.straight_through, groups=2),
        mixed_straight_through,
        [TABLES, *INVALID],
    ),
    **{
        f"permute by {name}": (
            lambda x, a=a, b=b: kronecker.permute(x, a, b, 2),
            lambda x, a=a, b=b: mixed(x, np.eye(2)[a], np.eye(3)[b]),
            [TABLES],
        )
        for name, a, b in [
            ("permutations", np.array([[1, 0], [0, 1]]), np.array([2, 0, 1])),
            ("no permutation", np.array([1, 0]), np.array([[2, 0, 1], [0, 2, 0]])),
        ]
    },
    "fixed point": (partial(relaxation.converged_sinkhorn, tolerance=1e-13), iterated, [drawn(4, 4)]),
    "recomputed": (
        recomputed(lambda x, kernel: jnp.tanh(jnp.tanh(x @ kernel) @ kernel)),
        lambda x, kernel: jnp.tanh(jnp.tanh(x @ kernel) @ kernel),
        [drawn(3, 4), drawn(4, 4, seed=1)],
    ),
    "arc cosine": (two_layer.relu_kernel, arc_cosine, [drawn(3, 4), drawn(2, 4, seed=1)]),
    **{
        f"kernel, {boundary}": (
            partial(shift_and_convolve, **STEP, boundary=boundary, interpret=True),
            partial(shifted_pointwise.shifted_pointwise, **STEP, boundary=boundary, form="plain"),
            [drawn(2, 3, 3, 8).astype(np.float32), drawn(1, 1, 2, 8, seed=1).astype(np.float32)],
        )
        for boundary in ("zero", "pointer")
    },
    "step, pointer": (
        partial(shifted_pointwise.shifted_pointwise, **STEP, form="folded"),
        partial(shifted_pointwise.shifted_pointwise, **STEP, form="plain"),
        [drawn(2, 3, 3, 8), drawn(1, 1, 2, 8, seed=1)],
    ),
}
FORWARD = ("sums", "relu of a sum", "fixed point", "arc cosine")
"""Those with a derivative in forward mode."""


@pytest.mark.parametrize("name", CASES)
@pytest.mark.fast_cases(2)
def test_gradients_and_reverse_over_reverse_are_those_of_the_plain_form(name):
    op, plain, arguments = CASES[name]
    every = tuple(range(len(arguments)))
    directions = [drawn(*a.shape, seed=7).astype(a.dtype) for a in arguments]

    def derivatives(form, *a):
        def loss(*a):
            y = form(*a)
            return (y * jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape) + jnp.square(y)).sum()

        def along(*a):
            gradient = jax.grad(loss, every)(*a)
            return sum((g * v).sum() for g, v in zip(gradient, directions, strict=True)), gradient

        return jax.tree.leaves(jax.grad(along, every, has_aux=True)(*a))

    with jax.enable_x64(True):
        found, true = compiled(lambda *a: [derivatives(form, *a) for form in (op, plain)])(*arguments)
    single = arguments[0].dtype == np.float32
    for a, b in zip(found, true, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4 if single else 1e-9, atol=1e-4 if single else 1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_forward_mode_is_there_or_is_refused(name):
    op, _, arguments = CASES[name]
    arguments = [jnp.asarray(a, jnp.float32) for a in arguments]
    forward = jax.jit(lambda *a: jax.jvp(op, a, a))
    if name in FORWARD:
        forward.lower(*arguments)
    else:
        with pytest.raises(TypeError, match="forward-mode"):
            forward.lower(*arguments)


def test_every_derivative_of_its_own_is_among_the_cases():
    files = [p for p in Path(shuffle_jax.__file__).parent.rglob("*.py") if p.parent.name != "deploy"]  # which refuses
    own = {p.stem for p in files if re.search(r"jax\.custom_(vjp|jvp|gradient)", p.read_text())}
    assert own == {
        "converged_sinkhorn",
        "depthwise_shifts",
        "kronecker_forms",
        "mixing",
        "normalization",
        "polyphase",
        "pooling",
        "remat",
        "reduction",
        "residual",
        "shifted_pointwise_folded",
        "shifted_pointwise_kernel",
        "two_layer",
        "wrap",
    }


@pytest.mark.slow
def test_second_derivatives_of_parallel_vectors():
    """``H_uu = (w w^T + I - u u^T / |u|^2) |v| sin t / (2 pi |u|)``, w a unit vector, is 0; ``H_uv`` is ``I / 2``."""
    u = jnp.array([[0.6, 0.8, 0.0]])
    by_first = jax.grad(lambda u, v: two_layer.relu_kernel(u, v)[0, 0])
    own, across = compiled(jax.jacrev(by_first, (0, 1)))(u, 2 * u)
    np.testing.assert_allclose(own.reshape(3, 3), np.zeros((3, 3)), atol=2e-4)
    np.testing.assert_allclose(across.reshape(3, 3), np.eye(3) / 2, atol=2e-4)


class Three(nn.Module):
    """Three 1x1 convolutions, each with a batch norm behind it."""

    ours: bool

    @nn.compact
    def __call__(self, x):
        for k in range(3):
            x = nn.Conv(4, (1, 1), use_bias=False)(x)
            flax = partial(nn.BatchNorm, use_running_average=False, momentum=0.9, name=f"norm{k}")
            x = nn.tanh(BatchNorm(name=f"norm{k}")(x, train=True) if self.ours else flax()(x))
        return x.mean((1, 2))


@pytest.mark.slow
def test_products_with_the_hessian_a_penalised_gradient_and_learning_to_learn_are_those_of_flax():
    x, other, target = (drawn(*s, seed=i).astype(np.float32) for i, s in enumerate([(8, 3, 3, 4)] * 2 + [(8, 4)]))
    variables = jax.jit(Three(False).init)(jax.random.key(0), x)
    statistics = {"batch_stats": variables["batch_stats"]}

    def results(ours, params, x):
        def loss(params, x):
            y, _ = Three(ours).apply({"params": params, **statistics}, x, mutable=["batch_stats"])
            return jnp.square(y - target).mean() + jnp.square(y).sum() / 9

        def penalty(x):
            return jnp.square(jnp.sqrt(jnp.square(jax.grad(loss, 1)(params, x)).sum((1, 2, 3))) - 1).sum()

        def learned(params):
            better = jax.tree.map(lambda p, g: p - 0.5 * g, params, jax.grad(loss)(params, x))
            return loss(better, other)

        gradient = jax.grad(loss)
        along = jax.tree.map(lambda p: jnp.sin(jnp.arange(p.size, dtype=p.dtype)).reshape(p.shape), params)

        def product(params):
            return sum(jax.tree.leaves(jax.tree.map(lambda g, v: (g * v).sum(), gradient(params, x), along)))

        return jax.grad(product)(params), jax.grad(penalty)(x), jax.grad(learned)(params)

    found, true = (jax.jit(partial(results, ours))(variables["params"], x) for ours in (True, False))
    for pair in zip(found, true, strict=True):
        a, b = (np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]) for tree in pair)
        assert np.linalg.norm(a - b) < 1e-5 * np.linalg.norm(b)
