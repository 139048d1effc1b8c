# %% [markdown]
# # Your own network in forty lines
#
# What you will have learned: how a network of your own takes a learned shuffle (AutoShuffle), a shuffle for each image
# (DynamicShuffle) and a convolution whose kernel depends on the image (DynamicConv); what its training loop, plain
# optax, must say to them; and how the trained matrices are certified, become index vectors, and leave as a file.
#
# The network reads scikit-learn's digits, of 8x8 pixels. It trains in less than two minutes on two cores.

# %%
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

from shuffle_jax.data import DigitsConfig, load

digits = load(DigitsConfig())
images, labels = jnp.asarray(digits.train.images, jnp.float32) / 255, jnp.asarray(digits.train.labels)
test_images, test_labels = jnp.asarray(digits.test.images, jnp.float32) / 255, np.asarray(digits.test.labels)
print(images.shape, test_images.shape)

# %% [markdown]
# ## Network and training step
#
# A block as in ShuffleNets: grouped 1x1 convolutions, which are cheap because no group sees another, and between them
# what carries information across the groups. Any module from `(n, h, w, c)` to the same can stand there.
#
# Three lines of the step are not those of any other network, and each is one call:
#
# - `with_progress` tells the layers how much of the training is done. Dynamic layers are soft at the start and sharp at
#   the end. Where nobody tells them, they are at the end from the first step on.
# - `penalty_sum` adds up what the layers want to be small. That of AutoShuffle is zero exactly on permutations.
# - `recipe` is the recommended optimiser, with the weight of the penalties, which grows from zero. It keeps the
#   matrices of AutoShuffle doubly stochastic, gives them a rate of their own and spares them weight decay.

# %%
from shuffle_jax.nn import (
    AutoShuffle,
    BatchNorm,
    Conv,
    Dense,
    DepthwiseConv,
    DynamicConv,
    DynamicShuffle,
    PointwiseConv,
)
from shuffle_jax.train import penalty_sum, recipe, with_progress


class Block(nn.Module):
    mixer: Callable[..., nn.Module]
    stride: int = 1

    @nn.compact
    def __call__(self, x, train=False):
        y = nn.relu(BatchNorm()(PointwiseConv(32, groups=4)(x), train))
        y = self.mixer(name="mixer")(y, train)
        y = BatchNorm()(DepthwiseConv(stride=self.stride)(y), train)
        y = BatchNorm()(PointwiseConv(32, groups=4)(y), train)
        return nn.relu(x + y if self.stride == 1 else y)


class Reader(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.relu(BatchNorm()(Conv(32)(x), train))
        x = Block(AutoShuffle, name="first")(x, train)
        x = Block(DynamicShuffle, stride=2, name="second")(x, train)
        x = Block(AutoShuffle, name="third")(x, train)
        x = nn.relu(BatchNorm()(DynamicConv(64)(x, train), train))
        return Dense(10)(x.mean((1, 2)), train)


network, plan = Reader(), recipe(steps=600)


@jax.jit
def step(variables, state, k):
    chosen = jax.random.randint(jax.random.fold_in(jax.random.key(1), k), (64,), 0, len(images))
    told = with_progress(variables, plan.progress(k))

    def loss(params):
        given = {**told, "params": params}
        logits, new = network.apply(given, images[chosen], train=True, mutable=["batch_stats", "penalties"])
        entropy = optax.softmax_cross_entropy_with_integer_labels(logits, labels[chosen]).mean()
        return entropy + plan.penalty_weight(k) * penalty_sum(new), (entropy, new["batch_stats"])

    gradient, (entropy, statistics) = jax.grad(loss, has_aux=True)(variables["params"])
    updates, state = plan.optimizer.update(gradient, state, variables["params"])
    params = optax.apply_updates(variables["params"], updates)
    return {**told, "params": params, "batch_stats": statistics}, state, entropy


# %% [markdown]
# ## Training
#
# `diagnose_all` says at any time how near each matrix is to a permutation: 1 is the centre of the doubly stochastic
# matrices, 0 a permutation.

# %%
from shuffle_jax.deploy import diagnose_all
from shuffle_jax.nn.collections import relaxed_permutations

variables = jax.jit(network.init)(jax.random.key(0), images[:1])
state = plan.optimizer.init(variables["params"])
entropies, penalties, seen = [], [], {}
for k in range(600):
    if k in (0, 150):
        seen[k] = relaxed_permutations(variables)["first/mixer"]
    if k % 20 == 0:
        penalties.append([float(diagnosis.penalty) for diagnosis in diagnose_all(variables).values()])
    variables, state, entropy = step(variables, state, k)
    entropies.append(entropy)
seen[600] = relaxed_permutations(variables)["first/mixer"]

figure, (curves, *matrices) = plt.subplots(1, 4, figsize=(12, 2.9), layout="constrained", width_ratios=(1.5, 1, 1, 1))
curves.semilogy(np.array(entropies), color="#0072b2", linewidth=0.7, label="cross entropy")
for line, name, color in zip(np.array(penalties).T, ("first", "third"), ("#d55e00", "#009e73"), strict=True):
    curves.semilogy(range(0, 600, 20), line, color=color, label=f"penalty of {name}/mixer")
curves.set(xlabel="step", ylim=(1e-4, 4))
curves.legend(fontsize=8)
for ax, (k, matrix) in zip(matrices, seen.items(), strict=True):
    ax.imshow(matrix, cmap="Blues", vmin=0, vmax=None if k == 0 else 1)
    ax.set(title=f"first/mixer, step {k}", xticks=[], yticks=[])

# %% [markdown]
# ## Certify and harden
#
# A certificate is a proof, from the matrix alone, that the largest entries of its rows form a permutation. Hardening
# puts that permutation, an index vector, in the place of the matrix: what was a product by 32 x 32 is a gather now.

# %%
from shuffle_jax.deploy import harden

evaluated = jax.jit(network.apply)


def accuracy(variables):
    return float((evaluated(variables, test_images).argmax(-1) == test_labels).mean())


hardened = harden(variables)
for layer, diagnosis in hardened.diagnoses.items():
    print(f"{layer}: certified {bool(diagnosis.certified)}, |M - P| at most {float(diagnosis.l1_bound):.4f}")
    print("  ", *hardened.permutations[layer])
print(f"relaxed {accuracy(variables):.2%}, hardened {accuracy(hardened.variables):.2%} of the test digits")

# %% [markdown]
# ## A permutation for each image
#
# In evaluation `second/mixer` is a gather too, with another index vector for each image where the network wants one. It
# is written down on request, like the kernels' coefficients, and not computed otherwise. `freeze` replaces it by one
# permutation for all images; what that costs is what the images' own permutations are worth here.

# %%
from shuffle_jax.deploy import freeze

_, told = network.apply(hardened.variables, test_images, mutable=["diagnostics"])
print({name: round(float(value), 3) for name, value in told["diagnostics"]["second"]["mixer"]["generator"].items()})
frozen = freeze(network, hardened.variables, [images])
print(f"with one permutation for all images {accuracy(frozen.variables):.2%}")

# %% [markdown]
# ## Export and run
#
# Batch norms are folded into the layers before them, and the rest is written as one file for any batch size. It needs
# JAX to run, and none of the lines above. What brings a picture to the input goes into the file beside it.

# %%
import tempfile
from pathlib import Path

from PIL import Image

from shuffle_jax.data import Preprocessing
from shuffle_jax.deploy import export, fold
from shuffle_jax.deploy import load as load_exported

folder = Path(tempfile.mkdtemp())
folded = fold(network, hardened.variables, (8, 8, 1))
print(f"{len(folded.folded)} batch norms folded; kept: {list(folded.kept) or 'none'}")
about = export(
    network.apply,
    folded.variables,
    folder / "reader.jax",
    classes=digits.classes,
    preprocessing=Preprocessing(size=8, channels=1, mean=(0.0,), std=(1.0,)).to_json(),
    image_shape=(8, 8, 1),
    about={"network": "Reader"},
)
print(f"{about['bytes'] / 1e3:.0f} kB for {', '.join(about['platforms'])}")

shown = digits.test.images[:8]
paths = [folder / f"{i}.png" for i in range(8)]
for path, picture in zip(paths, shown, strict=True):
    Image.fromarray(np.asarray(picture)[..., 0]).save(path)
reader = load_exported(folder / "reader.jax")
figure, axes = plt.subplots(1, 8, figsize=(10, 1.8), layout="constrained")
for ax, picture, ((name, share), *_) in zip(axes, shown, reader.predict(paths), strict=True):
    ax.imshow(picture[..., 0], cmap="Greys")
    ax.set(title=f"{name} ({share:.0%})", xticks=[], yticks=[])
difference = np.abs(reader.logits(test_images) - evaluated(hardened.variables, test_images)).max()
print(f"logits of the file and of the network differ by {difference:.0e}")

# %% [markdown]
# ## With another optimiser
#
# `recipe` takes other settings (`recipe(600, replace(OPTIMIZER, learning_rate=0.05))`), and its parts stand in any
# chain: `optax.chain(YOURS, permuting())`, and `mask=decays` where yours has weight decay. They are on one page:
# [a network and a loop of your own](../docs/own_network.md).
