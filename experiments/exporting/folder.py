"""The folder for the Hugging Face hub, from a run."""

from __future__ import annotations

import shlex
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from experiments.exporting.card import card
from experiments.exporting.command import command
from experiments.exporting.numbers import local_name, measured
from shuffle_jax.deploy.hub import is_folder, load_network, save_network
from shuffle_jax.run import Run
from shuffle_jax.train.config import to_json
from shuffle_jax.train.trained import Trained

FIGURES = ("learning_curves.png", "matrices.png")
"""Of a run, what a card shows."""


def write_folder(path: Path, trained: Trained, out: Path, name: str, license: str) -> None:
    """Writes the folder, loads it back, and says how to upload it.

    Args:
        path: of the run.
        trained: its network.
        out: the folder to write.
        name: of the network, on its card.
        license: of the weights, as the hub names it.

    Raises:
        ValueError: there is something else at ``out``.
        ArithmeticError: what was written is not the network.
    """
    if out.exists() and not (out.is_dir() and (is_folder(out) or not any(out.iterdir()))):
        raise ValueError(f"{out} exists and is no folder that an earlier export wrote: name another OUT")
    run, config = Run(path), trained.config
    split, numbers = measured(run, trained.step)
    figures = [run.figures / name for name in FIGURES if (run.figures / name).exists()]
    text = card(
        name,
        config,
        trained.classes,
        sum(leaf.size for leaf in jax.tree.leaves(trained.variables["params"])),
        trained.preprocessing.size,
        license,
        split,
        numbers,
        command(config),
        [figure.name for figure in figures],
    )
    size = save_network(
        out,
        to_json(config.network),
        trained.variables,
        classes=trained.classes,
        preprocessing=trained.preprocessing.to_json(),
        card=text,
        about={
            "step": trained.step,
            "measured": {"split": split, **{one.name: {"top1": one.value, "all": one.all} for one in numbers}},
            "training": local_name(to_json(config)),
        },
        figures=figures,
    )
    modules = [part.partition(":")[0] for part in config.network.parts().values() if ":" in part]
    images = jnp.asarray(np.random.default_rng(0).normal(size=(3, *trained.preprocessing.shape)), jnp.float32)
    if not np.array_equal(load_network(out, modules).logits(images), trained.logits(images), equal_nan=True):
        raise ArithmeticError(f"{out} is not the network that was trained: do not use it, and report this")
    print(f"{out} ({size / 1e6:.1f} MB of weights): step {trained.step} of {path}; its logits are the same to the bit")
    for one in numbers:
        more = f"; {one.spread()}" if one.spread() else ""
        print(f"top-1 on {split} images, {one.name}: {100 * one.value:.2f} %{more}")
    if not numbers:
        print("the run measured nothing at that step: the card has no accuracy")
    if license == "other":
        print("the card names no licence (other): say --license NAME if you know under which the weights may be used")
    typed = shlex.quote(str(out))
    print(f"to upload it:   pip install huggingface_hub; hf auth login; hf upload YOUR_NAME/{name} {typed}")
