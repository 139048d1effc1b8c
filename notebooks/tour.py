# %% [markdown]
# # From a matrix to a shuffle
#
# What you will have learned: the one convention of this library; what each of its mixers does to channels, in one
# picture; how a permutation is learned as a matrix, certified and rounded; how shifts move channels over the image;
# and how a permutation or a kernel is made for each image.
#
# A shuffle of channels is a permutation. AutoShuffleNet learns it as a nonnegative matrix under a penalty that is zero
# exactly on permutations, and rounds it at the end. Each cell runs in seconds on a CPU.

# %% [markdown]
# ## One convention
#
# A permutation is an index vector `p` with `y[..., i] = x[..., p[i]]`.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from shuffle_jax.ops import invariants, mixing, penalty, permutation, relaxation, rounding

p = permutation.channel_shuffle(6, groups=2)
x = jnp.array([10.0, 11, 12, 20, 21, 22])  # two groups of three channels
print("p        ", p)
print("permute  ", mixing.permute(x, p))
print("shuffle  ", mixing.shuffle(x, groups=2))
print("matrix   ", mixing.mix(x, permutation.to_matrix(p)))
print("and back ", mixing.permute(mixing.permute(x, p), permutation.invert(p)))

# %% [markdown]
# ## What each mixer does to channels
#
# A mixer is a module from `(n, h, w, c)` to the same, and every one of them fits every network. Sixteen channels come
# in from the left, in four groups of one colour each, as a convolution in four groups makes them. A line leads from a
# channel to where it is read, the darker the more of it. Groups must meet: where all lines of one colour end side by
# side again, the next grouped convolution learns nothing of the others.

# %%
from functools import partial

from shuffle_jax.deploy import harden
from shuffle_jax.nn import (
    AutoShuffle,
    ChannelRotation,
    ChannelShift,
    ChannelShuffle,
    DynamicShuffle,
    FactorGenerator,
    FixedPermutation,
)


def reads(mixer, variables, x):
    """How much of each channel each output reads: the derivative, at one position."""
    return jax.jit(jax.jacobian(lambda v: mixer.apply(variables, v.reshape(1, 1, 1, -1)).ravel()))(x)


def wires(ax, matrix, title):
    """A line from every channel on the left to the outputs that read it, on the right."""
    colors = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")
    for i, row in enumerate(np.abs(matrix) / np.abs(matrix).max()):
        for j in np.flatnonzero(row > 0.02):
            ax.plot((0, 1), (j, i), color=colors[j // 4], alpha=row[j], linewidth=1.5)
    ax.set(title=title, xticks=[], yticks=[], ylim=(15.5, -0.5))
    ax.spines[:].set_visible(False)


x = jax.random.normal(jax.random.key(4), (16,))
other = jax.random.normal(jax.random.key(6), (16,))
start, images = jax.random.key(0), x.reshape(1, 1, 1, -1)
random_heads = DynamicShuffle(groups=4, generator=partial(FactorGenerator, start="random"), evaluation="repaired")
auto = AutoShuffle(candidates=2)
drawn, heads = jax.jit(auto.init)(start, images), jax.jit(random_heads.init)(start, images)
matrices = {"Identity": jnp.eye(16)}
for mixer in (ChannelShuffle(4), ChannelShift(4), ChannelRotation(1), FixedPermutation()):
    matrices[type(mixer).__name__] = reads(mixer, mixer.init(start, images), x)
matrices["AutoShuffle, untrained"] = reads(auto, drawn, x)
matrices["AutoShuffle, hardened"] = reads(auto, harden(drawn).variables, x)
matrices["DynamicShuffle, one image"] = reads(random_heads, heads, x)
matrices["DynamicShuffle, another"] = reads(random_heads, heads, other)

figure, axes = plt.subplots(2, 5, figsize=(12, 6), layout="constrained")
for ax, (name, matrix) in zip(axes.T.ravel(), [*matrices.items(), ("", None)], strict=True):
    if matrix is None:
        ax.set_axis_off()
    else:
        wires(ax, matrix, name)

# %% [markdown]
# ## A penalty that knows permutations
#
# `P(M)` sums `|v|_1 - |v|_2` over all rows and columns. Along a line from the centre of the doubly stochastic matrices
# to a permutation it falls from its maximum to zero; the shaded part is where the certificate proves that the largest
# entry of every row forms a permutation.

# %%
hard = permutation.to_matrix(permutation.random(jax.random.key(0), 16))
centre = jnp.full((16, 16), 1 / 16)
t = jnp.linspace(0, 1, 101).reshape(-1, 1, 1)
line = (1 - t) * centre[None] + t * hard[None]
values = penalty.normalized_l1_minus_l2(line)
proof = rounding.certificate(line)

figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
axes.plot(t.ravel(), values, label="P / P_max")
axes.fill_between(t.ravel(), 0, 1, where=proof.guaranteed, alpha=0.15, label="argmax certified")
axes.set(xlabel="from J / c (0) to a permutation (1)", ylabel="P / P_max", ylim=(0, 1))
_ = axes.legend()

# %% [markdown]
# ## Learning a permutation
#
# Gradient descent on the penalty alone, from a random start, with the normalisation as the last link of an optax
# chain. Invariants are asserted on the way.

# %%
import optax

from shuffle_jax.constraint import keep_bistochastic

matrix = relaxation.random_bistochastic(jax.random.key(1), 16)
invariants.assert_doubly_stochastic(matrix)
optimizer = optax.chain(optax.sgd(3e-3), keep_bistochastic())


@jax.jit
def step(matrix, state):
    updates, state = optimizer.update(jax.grad(penalty.l1_minus_l2)(matrix), state, matrix)
    return optax.apply_updates(matrix, updates), state


state, shown, history = optimizer.init(matrix), [matrix], []
for k in range(1, 601):
    matrix, state = step(matrix, state)
    history.append(float(penalty.normalized_l1_minus_l2(matrix)))
    if k in (100, 600):
        shown.append(matrix)

proof = rounding.certificate(matrix)
found = rounding.assignment(matrix)
invariants.assert_permutation(found)
print(
    f"P/P_max {history[0]:.3f} -> {history[-1]:.3f}, residual {float(proof.residual):.1e}, "
    f"certified {bool(proof.guaranteed)}"
)
print("permutation", found)

# %%
figure, axes = plt.subplots(1, 3, figsize=(8, 2.8), layout="constrained")
for ax, m, k in zip(axes, shown, (0, 100, 600), strict=True):
    ax.imshow(m, cmap="Blues", vmin=0, vmax=1 if k else None)
    ax.set(title=f"after {k} steps", xticks=[], yticks=[])

# %% [markdown]
# ## In a network
#
# Every mixer fits every network. Hardening turns each matrix into an index vector; the network then does the work of
# the fixed shuffle: one gather.

# %%
from shuffle_jax.models import ShuffleNetV2

network = ShuffleNetV2(classes=10, width=0.5, stem="small", mixer=partial(AutoShuffle, candidates=2))
images = jnp.ones((1, 16, 16, 3))
variables = jax.jit(network.init)(jax.random.key(0), images)
hardened = harden(variables)
layer, index = next(iter(hardened.permutations.items()))
print(len(hardened.permutations), "learned permutations; the first,", layer, "begins", index[:8])
print("P / P_max of an untrained one:", round(float(hardened.diagnoses[layer].penalty), 3))
print("logits:", jax.jit(network.apply)(hardened.variables, images).shape)

# %% [markdown]
# ## A permutation for each image
#
# Dynamic Shuffle makes two small matrices from each image. Their Kronecker product, behind it the shuffle of the
# groups, is a permutation of all channels, and the large matrix is never formed. By default every image gets the fixed
# shuffle at first; here the head starts at random. The matrices are soft at the beginning of a training and sharp at
# its end. How far it is stands in the collection "progress", which the training step of the library sets; in a loop of
# your own set it yourself.

# %%
from shuffle_jax.nn.collections import DIAGNOSTICS, with_progress
from shuffle_jax.ops import kronecker

p, q = kronecker.factor_pair(24 // 2)  # 24 channels in two groups of 3 x 4
print("index of identities", kronecker.index(jnp.arange(p), jnp.arange(q), groups=2))

mixer = DynamicShuffle(groups=2, generator=partial(FactorGenerator, start="random"), evaluation="repaired")
features = jax.random.normal(jax.random.key(2), (32, 4, 4, 24)) + jax.random.normal(jax.random.key(3), (32, 1, 1, 24))
variables = jax.jit(mixer.init)(jax.random.key(0), features)
evaluated = jax.jit(partial(mixer.apply, mutable=[DIAGNOSTICS]))
for done in (0.0, 1.0):
    mixed, sown = evaluated(with_progress(variables, done), features)
    print(done, {name: round(float(value), 2) for name, value in sown[DIAGNOSTICS]["generator"].items()})
print("same values, other places:", bool(jnp.allclose(jnp.sort(mixed, axis=-1), jnp.sort(features, axis=-1))))

# %% [markdown]
# ## Shifts
#
# A shift computes nothing: each channel, or group of channels, is read from somewhere else. Over channels it is a
# mixer, the rotation by half a group above. Over the image it takes the place of a 3x3 convolution: AddressNet's four
# groups look left, up, right and down, and beyond the edge go on in the next row, as a moved pointer does. ShiftNet
# has nine directions. The 1x1 convolution behind it then sees neighbours.

# %%
from shuffle_jax.data import DigitsConfig, load
from shuffle_jax.nn import AddressShift, GridShift

digits = load(DigitsConfig())
digit = jnp.asarray(digits.test.images[1:2], jnp.float32) / 255

figure, axes = plt.subplots(2, 9, figsize=(11, 2.9), layout="constrained")
for line, layer, channels in zip(axes, (AddressShift(), GridShift()), (4, 9), strict=True):
    moved = layer.apply({}, jnp.tile(digit, channels))
    for c, ax in enumerate(line):
        ax.set(xticks=[], yticks=[])
        if c < channels:
            ax.imshow(moved[0, ..., c], cmap="Greys")
            ax.set_title(f"channel {c}", fontsize=8)
        else:
            ax.set_axis_off()
    line[0].set_ylabel(type(layer).__name__)

# %% [markdown]
# ## A kernel for each image
#
# A dynamic convolution has a kernel that depends on the image, `W(x) = Lambda(x) W0 + P Phi(x) Q^T`. It can be
# computed as two features that are added, or by making the kernel of each image: two forms of one function, of which
# the layer takes the one with fewer multiply-adds.

# %%
from shuffle_jax.nn import DynamicConv

features = jax.random.normal(jax.random.key(5), (2, 4, 4, 16))
layer = DynamicConv(features=32)
variables = jax.jit(layer.init)(jax.random.key(0), features)
y = {form: jax.jit(layer.clone(form=form).apply)(variables, features) for form in ("features", "kernels")}
print("of one size:", {form: value.shape for form, value in y.items()})
print("one function:", bool(jnp.allclose(y["features"], y["kernels"], atol=1e-5)))

# %% [markdown]
# To train such networks, run `make train`, or `python -m experiments.train digits --help` for everything that can be
# changed. A network and a loop of your own are in [own_network](own_network.ipynb).
