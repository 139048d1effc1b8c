# %% [markdown]
# # Shift invariance in five minutes
#
# What you will have learned: why a convolutional network may see another class in a picture that moved by one pixel,
# how adaptive polyphase sampling (APS) ends that, trained or not, and how to find what still breaks it in a network.
#
# The convolutions are not to blame: they move with the picture. What does not move is a stride of 2, which keeps the
# even rows and columns, whatever is on them. APS lets the picture say which rows and columns are kept. Then the logits
# do not change at all.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from shuffle_jax.ops import polyphase

x = jnp.arange(16.0).reshape(1, 4, 4, 1)
for by in (0, 1):
    moved = jnp.roll(x, by, axis=1)
    sampled, choice = polyphase.sample(moved)
    print(f"{by} rows down: stride", moved[0, ::2, ::2, 0].tolist(), " APS", sampled[..., 0].tolist(), choice)

# %% [markdown]
# A stride gives two pictures that have no number in common. APS gives the same numbers, moved by a whole row. There
# are four grids of every second row and column, and it keeps the one with the largest norm. Here they are on a digit:
# the dots are what is kept.

# %%
from shuffle_jax.data import DigitsConfig, load

digits = load(DigitsConfig())
images = jnp.asarray(digits.test.images, jnp.float32) / 255
picture = images[1:2]

figure, axes = plt.subplots(2, 3, figsize=(7.5, 5), layout="constrained")
for line, by in zip(axes, (0, 1), strict=True):
    moved = jnp.roll(picture, by, axis=2)
    sampled, (choice,) = polyphase.sample(moved)
    for ax, (row, column), name in zip(line, ((0, 0), (choice % 2, choice // 2)), ("stride", "APS"), strict=False):
        ax.imshow(moved[0, ..., 0], cmap="Greys")
        rows, columns = np.mgrid[int(row) : 8 : 2, int(column) : 8 : 2]
        ax.plot(columns.ravel(), rows.ravel(), "o", color="#d55e00", markersize=5)
        ax.set(title=f"{name}, {by} to the right", xticks=[], yticks=[])
    line[2].imshow(sampled[0, ..., 0], cmap="Greys")
    line[2].set(title="what APS keeps", xticks=[], yticks=[])

# %% [markdown]
# ## Two networks
#
# The same ResNet twice, with strides and with APS in their place. `sampling` also makes every convolution pad
# circularly, and shortcuts keep the rows and columns of the branch that they join. There is no parameter more. Both
# are trained on the digits for some seconds, without any shifts.

# %%
import optax

from shuffle_jax.models import ResNet
from shuffle_jax.nn import PolyphaseSampling

labels = jnp.asarray(digits.test.labels)
train_images = jnp.asarray(digits.train.images, jnp.float32) / 255
train_labels = jnp.asarray(digits.train.labels)


def trained(network, steps=120):
    variables = jax.jit(network.init)(jax.random.key(0), picture)
    optimizer = optax.sgd(0.1, momentum=0.9)

    @jax.jit
    def step(variables, state, key):
        chosen = jax.random.randint(key, (128,), 0, len(train_images))

        def loss(params):
            given = {**variables, "params": params}
            logits, new = network.apply(given, train_images[chosen], train=True, mutable=["batch_stats"])
            return optax.softmax_cross_entropy_with_integer_labels(logits, train_labels[chosen]).mean(), new

        gradient, new = jax.grad(loss, has_aux=True)(variables["params"])
        updates, state = optimizer.update(gradient, state)
        return {"params": optax.apply_updates(variables["params"], updates), **new}, state

    state = optimizer.init(variables["params"])
    for key in jax.random.split(jax.random.key(1), steps):
        variables, state = step(variables, state, key)
    return variables


small = ResNet(classes=10, depth=10, width=1 / 8, stem="small")
networks = {"stride": small, "APS": small.clone(sampling=PolyphaseSampling)}
weights = {name: trained(network) for name, network in networks.items()}
apply = {name: jax.jit(network.apply) for name, network in networks.items()}
for name in networks:
    right = (apply[name](weights[name], images).argmax(-1) == labels).mean()
    print(f"{name}: {float(right):.1%} of the test digits as they are")

# %% [markdown]
# It has its price: where a stroke stands says something of a digit in the middle of its picture, and APS cannot use
# it.
#
# ## The logits of a moved digit
#
# The digit moves to the right, one pixel at a time, and comes in again at the left. Each line is a class, the thick
# one the digit's own.

# %%
figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained", sharey=True)
every = jnp.concatenate([jnp.roll(picture, by, axis=2) for by in range(8)])
for ax, name in zip(axes, networks, strict=True):
    logits = apply[name](weights[name], every)
    for k in range(10):
        own = k == int(labels[1])
        ax.plot(range(8), logits[:, k], "o-", linewidth=3 if own else 1, markersize=3, zorder=2 + own)
    ax.set(title=name, xlabel="pixels to the right")
    print(f"{name}: logits change by up to {float(jnp.abs(logits - logits[:1]).max()):.2g}")
_ = axes[0].set_ylabel("logit")
# %% [markdown]
# ## Every shift, every digit
#
# The share of the test digits that keep their class, for each of the 64 circular shifts. A digit that is moved halfway
# around is no longer a digit, of course: the strided network is right to wonder. The other one does not wonder.

# %%
from shuffle_jax.analysis.shift_consistency import circular, consistency, logits_at, moved

figure, axes = plt.subplots(1, 2, figsize=(7, 3.4), layout="constrained")
for ax, name in zip(axes, networks, strict=True):
    found = logits_at(moved(networks[name].apply), weights[name], images, circular((8, 8), range(8)))
    kept = (found.argmax(-1) == found[0].argmax(-1)).mean(-1).reshape(8, 8)
    shown = ax.imshow(kept, cmap="Blues", vmin=0, vmax=1)
    ax.set(title=name, xlabel="to the right", ylabel="down")
    print(f"{name}: {consistency(found[0], found).survived:.1%} of the digits have one class under every shift")
_ = figure.colorbar(shown, ax=axes, label="same class")
# %% [markdown]
# ## What it takes
#
# Every size must be even where it is sampled; otherwise the network says so. A layer that does not move with the
# picture breaks the chain, and is found by name. In a run, `python -m experiments.consistency RUN` tells the same.

# %%
from shuffle_jax.analysis.shift_consistency import shift_breakers
from shuffle_jax.models import AddressNet

try:
    networks["APS"].init(jax.random.key(0), jnp.ones((1, 12, 8, 1)))
except ValueError as error:
    print(error)
for boundary in ("pointer", "wrap"):
    shifting = AddressNet(classes=10, depth=8, boundary=boundary, sampling=PolyphaseSampling)
    print(boundary, {reason: len(paths) for reason, paths in shift_breakers(shifting, (8, 8, 1)).items()})
