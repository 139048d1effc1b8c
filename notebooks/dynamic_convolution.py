# %% [markdown]
# # A kernel for each image
#
# What you will have learned: what dynamic convolution decomposition does to a kernel for each image, seen on the
# kernels of two digits side by side; that adding features and making kernels are one function; which parts of a kernel
# depend on what is in the picture; and how CondConv and DY-Conv, which add up whole kernels, differ from it.
#
# The layer is `W(x) = Lambda(x) W0 + P Phi(x) Q^T`: a static kernel, each of its outputs scaled by an amount that
# depends on the image, and a correction through a small latent space. It costs as many kernels as one layer has, and a
# small head.

# %%
from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

from shuffle_jax.data import DigitsConfig, load
from shuffle_jax.nn import BatchNorm, CondConv, Conv, Dense, DYConv, DynamicConv
from shuffle_jax.train import recipe, with_progress

digits = load(DigitsConfig())
images, labels = jnp.asarray(digits.train.images, jnp.float32) / 255, jnp.asarray(digits.train.labels)
test_images, test_labels = jnp.asarray(digits.test.images, jnp.float32) / 255, np.asarray(digits.test.labels)


class Reader(nn.Module):
    first: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x, train=False):
        x = self.first(features=8, kernel_size=5, name="first")(x, train)
        x = nn.relu(BatchNorm()(x, train))
        x = nn.relu(BatchNorm()(Conv(32, stride=2)(x), train))
        return Dense(10)(x.mean((1, 2)), train)


# %% [markdown]
# ## Three readers
#
# The first layer sees the pixels, through 5 x 5 kernels of eight outputs, so that they can be looked at. Its head sees
# the digit in 4 x 4 parts; with `elements` all of a kernel is corrected, and not the element in its middle alone.
# CondConv and DY-Conv weigh four whole kernels by the mean of the image.

# %%
layers = {
    "DynamicConv": partial(DynamicConv, pool=4, latent=1, hidden=16, elements=4),
    "CondConv": partial(CondConv, count=4),
    "DYConv": partial(DYConv, count=4),
}


def trained(network, steps=300):
    variables, plan = jax.jit(network.init)(jax.random.key(0), images[:1]), recipe(steps)

    @jax.jit
    def step(variables, state, k):
        chosen = jax.random.randint(jax.random.fold_in(jax.random.key(1), k), (64,), 0, len(images))
        told = with_progress(variables, plan.progress(k))

        def loss(params):
            given = {**told, "params": params}
            logits, new = network.apply(given, images[chosen], train=True, mutable=["batch_stats"])
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels[chosen]).mean(), new

        gradient, new = jax.grad(loss, has_aux=True)(variables["params"])
        updates, state = plan.optimizer.update(gradient, state, variables["params"])
        return {**told, "params": optax.apply_updates(variables["params"], updates), **new}, state

    state = plan.optimizer.init(variables["params"])
    for k in range(steps):
        variables, state = step(variables, state, k)
    return variables


readers = {name: Reader(layer) for name, layer in layers.items()}
weights = {name: trained(reader) for name, reader in readers.items()}
for name, reader in readers.items():
    right = (jax.jit(reader.apply)(weights[name], test_images).argmax(-1) == test_labels).mean()
    print(f"{name}: {float(right):.1%} of the test digits")

# %% [markdown]
# ## The kernels of two digits
#
# What the head says of an image, the gate `Lambda` and the coefficients `Phi`, is captured as Flax captures any
# output; `synthesise` puts the kernel together from it. The network itself adds features here: for kernels larger than
# 1 x 1 that is faster. It is the same function, as the last line shows.

# %%
from shuffle_jax.nn.normalization import absorbed
from shuffle_jax.ops import convolution, dynamic_conv
from shuffle_jax.ops.normalization import Affine


def told_by_head(name):
    """What the head of the first layer says of each test digit."""
    is_head = lambda module, _: module.name == "generator"  # noqa: E731
    _, seen = readers[name].apply(weights[name], test_images, capture_intermediates=is_head, mutable=["intermediates"])
    return seen["intermediates"]["first"]["generator"]["__call__"][0]


gate, phi = told_by_head("DynamicConv")
own, statistics = (weights["DynamicConv"][kind]["first"] for kind in ("params", "batch_stats"))
norms = [
    Affine(*(jnp.asarray(a, jnp.float32) for a in absorbed(own[name], statistics[name]))) for name in ("norm1", "norm2")
]
rows = dynamic_conv.synthesise(own["kernel"], gate, phi, own["q"], own["p"], *norms, own["r"])
kernels, biases = rows[:, :-1].reshape(-1, 5, 5, 8), rows[:, -1]

first, second = int(np.flatnonzero(test_labels == 0)[0]), int(np.flatnonzero(test_labels == 1)[0])
shown = {
    "W0": own["kernel"][:, :, 0],
    f"W of the {test_labels[first]}": kernels[first],
    f"W of the {test_labels[second]}": kernels[second],
    "difference": kernels[first] - kernels[second],
}
limit = float(jnp.abs(kernels[np.array([first, second])]).max())
figure, axes = plt.subplots(4, 9, figsize=(11, 5), layout="constrained")
for line, (name, kernel) in zip(axes, shown.items(), strict=True):
    for ax in line:
        ax.set(xticks=[], yticks=[])
    line[0].set_ylabel(name)
    for o, ax in enumerate(line[1:]):
        ax.imshow(kernel[:, :, o], cmap="RdBu", vmin=-limit, vmax=limit)
        if name == "W0":
            ax.set_title(f"output {o}", fontsize=8)
axes[1, 0].imshow(test_images[first, ..., 0], cmap="Greys")
axes[2, 0].imshow(test_images[second, ..., 0], cmap="Greys")
for ax in (axes[0, 0], axes[3, 0]):
    ax.spines[:].set_visible(False)

x = test_images[first : first + 1]
y = convolution.convolution(x, kernels[first][:, :, None]) + biases[first].reshape(1, 1, 1, -1)
layer = layers["DynamicConv"](features=8, kernel_size=5)
own_variables = {kind: tree["first"] for kind, tree in weights["DynamicConv"].items() if "first" in tree}
difference = jnp.abs(layer.apply(own_variables, x) - y).max() / jnp.abs(y).max()
print(f"the layer and the convolution with the 0's own kernel differ by {float(difference):.0e} of the largest output")

# %% [markdown]
# ## What depends on the picture
#
# The means over the test digits of each class. Where a column is even, all classes share what it stands for, and a
# static kernel would do. On the left the eight gates of DynamicConv, 1 for an output that is left as it is; then the
# weights of the four kernels in CondConv, each from 0 to 1, and in DY-Conv, which sum to 1.

# %%
said = {"DynamicConv, gates": gate} | {f"{name}, weights": told_by_head(name) for name in ("CondConv", "DYConv")}
figure, axes = plt.subplots(1, 3, figsize=(10, 3.6), layout="constrained", width_ratios=(8, 4, 4))
for ax, (name, values) in zip(axes, said.items(), strict=True):
    means = np.stack([np.asarray(values)[test_labels == label].mean(0) for label in range(10)])
    drawn = ax.imshow(means, cmap="Blues", vmin=0, vmax=max(1, means.max()), aspect="auto")
    ax.set(title=name, xlabel="output" if "gates" in name else "kernel", yticks=range(10))
    figure.colorbar(drawn, ax=ax)
    print(f"{name}: change by {np.ptp(means, axis=0).max():.2f} from class to class at most")
_ = axes[0].set_ylabel("class")

# %% [markdown]
# As a layer `DynamicConv` stands where a `Conv` or a `PointwiseConv` stands, in every network by `--network.pointwise
# dcd`. What it brought there, and what it did not, is in [the results](../docs/results/dynamic_convolution.md).
