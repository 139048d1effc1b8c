# %% [markdown]
# # Your own pictures
#
# What you will have learned: how a folder of pictures becomes a classifier with learned shuffles by one command; where
# it goes wrong, as a confusion matrix and as the pictures themselves; and how the result is written to a file that
# needs JAX and nothing else.
#
# The folder is drawn here: five patterns of cloth, 1,000 pictures, turned a little, of any colours and of threads so
# fine or so coarse that some are hard to tell apart. With pictures of your own skip the cell that draws. It all takes
# two minutes on two cores, most of them for training.

# %%
import importlib
import os
import shlex
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

os.chdir(tempfile.mkdtemp())  # a folder to be thrown away

rng = np.random.default_rng(0)
PATTERNS = {
    "rows": lambda u, v: np.sin(v) > 0,
    "columns": lambda u, v: np.sin(u) > 0,
    "checks": lambda u, v: np.sin(u) * np.sin(v) > 0,
    "dots": lambda u, v: np.cos(u) + np.cos(v) > 0.7,
    "rings": lambda u, v: np.sin(np.hypot(u, v)) > 0,
}


def draw(name, side=64):
    """One picture of a pattern in two colours, with noise."""
    light, dark = rng.integers(130, 256, 3), rng.integers(0, 126, 3)
    period, turn, middle = rng.uniform(4, 24), rng.normal(0, 0.35), rng.uniform(0, side, 2)
    y, x = (np.indices((side, side)) - middle[:, None, None]) * 2 * np.pi / period
    inside = PATTERNS[name](x * np.cos(turn) - y * np.sin(turn), x * np.sin(turn) + y * np.cos(turn))
    pixels = np.where(inside[..., None], dark, light) + rng.normal(0, 25, (side, side, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


for name in PATTERNS:
    for split, count in (("train", 160), ("val", 40)):
        folder = Path("pictures", split, name)
        folder.mkdir(parents=True)
        for i in range(count):
            draw(name).save(folder / f"{i:03}.png")

figure, axes = plt.subplots(1, 10, figsize=(9, 1.2), layout="constrained")
for ax, i in zip(axes, range(10), strict=True):
    name = [*PATTERNS][i // 2]
    ax.imshow(plt.imread(f"pictures/train/{name}/{i:03}.png"))
    ax.set_axis_off()
    ax.set_title(name, fontsize=8)

# %% [markdown]
# ## Train
#
# The layout is one folder a class, `pictures/train/CLASS/*.png`, and `pictures/val` in the same way; without `val` a
# part of each class is held out. The preset `folder` is a ShuffleNetV2 with learned shuffles; a small
# ResNet in four groups does here, with the same mixers. In a terminal the commands are those that are printed.


# %%
def command(line):
    """What `python -m experiments.NAME ...` does, in this process."""
    print(f"$ python -m experiments.{line}")
    name, *arguments = shlex.split(line)
    importlib.import_module(f"experiments.{name}").run(arguments)


command(
    "train folder --data.root pictures --data.image-size 32 --network.family resnet --network.depth 10 "
    "--network.width 0.25 --network.groups 4 --network.stem small --augment.crop-padding 2 --epochs 6 --run run"
)

# %% [markdown]
# Each matrix is certified, and hardened the network reads the pictures as before: the table's last column counts the
# layers whose row-argmax is proved to be a permutation.
#
# ## Look
#
# `python -m experiments.evaluate run --classes --wrong 12 --figures FOLDER` prints and draws all this. Here it is from
# the trained network, which `load_trained` gives hardened, with the preprocessing of its training.

# %%
from experiments.evaluation.figures import confusion_figure, wrong_figure
from experiments.evaluation.predictions import Predictions
from shuffle_jax.data import FolderConfig, load
from shuffle_jax.deploy.exported import in_batches
from shuffle_jax.train.trained import load_trained

trained = load_trained(Path("run"))
pictures = load(FolderConfig(Path("pictures"), image_size=32), trained.classes)
pixels, labels = pictures.test.take(np.arange(len(pictures.test)))
logits = in_batches(trained.logits, trained.preprocessing.normalize(pixels), 64)
probabilities = np.exp(logits - logits.max(-1, keepdims=True))
probabilities /= probabilities.sum(-1, keepdims=True)
found = Predictions(trained.classes, labels, logits.argmax(-1), probabilities.max(-1))
print(f"{np.mean(found.said == labels):.1%} of {len(labels)} test pictures")
confusion_figure(found)

# %%
wrong_figure(found, pictures, 12)

# %% [markdown]
# ## Export
#
# One file for CPU, CUDA and TPU and for any number of pictures, and beside it one that says what goes in and what
# comes out. `experiments.predict` takes it, or the two lines below, in a program that has none of the code of the
# network.

# %%
command("export run cloth.jax")
command("predict cloth.jax pictures/val/dots/000.png pictures/val/rings/000.png")

# %%
from shuffle_jax.deploy import load as load_exported

cloth = load_exported("cloth.jax")
for name in PATTERNS:
    print(name, [f"{said} {share:.0%}" for said, share in cloth.predict([f"pictures/val/{name}/001.png"], top=2)[0]])
