"""Exports a trained network to a file that JAX alone can run: `python -m experiments.export RUN [OUT]`.

The network is hardened, its batch norms and permutations are folded into its kernels, and it is written for any batch
size and for several platforms. OUT, by default RUN/network.jax, is the program with its weights; OUT.json says what
goes in and what comes out. `python -m experiments.predict OUT PICTURES` uses it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from experiments.cli import keep_programs, main, parse, quiet_libraries
from shuffle_jax.typing import PyTree

TOLERANCE = {"float32": 1e-3, "bfloat16": 0.2}
"""Largest difference of the exported logits from the network's, relative to the largest logit."""


@dataclass(frozen=True)
class Arguments:
    """What to export, and where to."""

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of a run, as experiments.train writes it."""

    out: Annotated[Path | None, tyro.conf.Positional] = None
    """The file to write; OUT.json is written beside it. By default network.jax in the folder of the run."""

    checkpoint: str = "last"
    """Which checkpoint: "last", "best" (by relaxed top-1 accuracy), or a step."""

    fold: bool = True
    """Fold batch norms, and the permutations of ShuffleNets, into the kernels; --no-fold exports the layers as they
    are, to compare. What cannot be folded, such as shuffles that depend on the image, stays as it is."""

    copies: bool = False
    """Give each use of a shared kernel, as anchored networks have them, a copy of its own that absorbs the norm behind
    it: a larger file and fewer operations. Without, the file has one copy of the kernel, and the norms."""

    platforms: tuple[Literal["cpu", "cuda", "rocm", "tpu"], ...] = ("cpu", "cuda", "tpu")
    """What the one file runs on."""


def run(arguments: Sequence[str] | None = None) -> None:
    """Parses the command line, exports, and compares what was written with the network."""
    options = parse(Arguments, arguments, prog="python -m experiments.export", description=__doc__)
    quiet_libraries()
    keep_programs()
    from shuffle_jax.analysis.dynamic_use import recorded_use
    from shuffle_jax.deploy.export import export
    from shuffle_jax.deploy.exported import load, platform_name, sidecar
    from shuffle_jax.deploy.fold import fold
    from shuffle_jax.deploy.route import Routed, route
    from shuffle_jax.records import read_records
    from shuffle_jax.run import Run
    from shuffle_jax.train.advice import after
    from shuffle_jax.train.config import to_json
    from shuffle_jax.train.trained import load_trained

    if options.copies and not options.fold:
        raise ValueError("--copies are made for folding: leave out --no-fold, or --copies")
    trained = load_trained(options.run, options.checkpoint)
    network = trained.config.network
    exported, shape = Routed(trained.apply, trained.variables), trained.preprocessing.shape
    if options.fold:
        folded = fold(trained.network, trained.variables, shape, options.copies)
        exported = route(trained.network, folded.variables, shape)
        if options.copies:
            print(copied(trained.variables["params"], folded.variables["params"]))
        if folded.kept:
            name, why = next(iter(folded.kept.items()))
            print(f"{len(folded.kept)} batch norms are not folded, such as {name}: {why}")
        if exported.reason:
            print(f"the mixers are exported as they are: {exported.reason}")
    out = options.out or options.run / "network.jax"
    about = export(
        exported.apply,
        exported.params,
        out,
        classes=trained.classes,
        preprocessing=trained.preprocessing.to_json(),
        image_shape=shape,
        about={"network": to_json(network), "step": trained.step, "folded": options.fold},
        platforms=options.platforms,
    )
    size, text = about["bytes"] / 1e6, ", ".join(about["platforms"])
    print(f"{out} ({size:.1f} MB) and {sidecar(out).name}: step {trained.step} of {options.run}, for {text}")
    records = read_records(metrics) if (metrics := Run(options.run).metrics).exists() else []
    use = recorded_use(records, trained.step)
    if use is not None and use.counts:  # factors that are learned once are index vectors now
        measured = {r["network"]: r for r in records if r["kind"] == "result" and r["step"] == trained.step}
        print(use.text(measured))
    for line in after(trained.config, trained.diagnoses):
        print(line)
    if platform_name() in about["platforms"]:
        images = np.random.default_rng(0).normal(size=(3, *trained.preprocessing.shape)).astype(np.float32)
        expected = np.asarray(trained.logits(jnp.asarray(images)))
        if not np.isfinite(expected).all():
            print("on random images the network's own logits are not finite: there is nothing to compare")
            return
        difference = np.abs(np.asarray(load(out).logits(jnp.asarray(images))) - expected).max()
        relative = float(difference / np.abs(expected).max())
        print(f"on random images its logits differ from the hardened network's by {relative:.1e} of the largest")
        if not relative <= TOLERANCE[network.dtype]:
            raise ArithmeticError(f"{out} is not the network that was trained: do not use it, and report this")


def copied(before: PyTree, after: PyTree) -> str:
    """What is said of the copies of shared layers, from the parameters before and after they were made."""
    from flax.traverse_util import flatten_dict

    from shuffle_jax.nn.shared import OWN

    sizes = [sum(leaf.size for leaf in jax.tree.leaves(params)) for params in (before, after)]
    places = [{path[: path.index(OWN)] for path in flatten_dict(params) if OWN in path} for params in (before, after)]
    if not (new := places[1] - places[0]):
        return "no shared layer has a norm right behind it: --copies made none"
    return f"{len(new)} uses of shared layers have copies: {sizes[1]:,} parameters, {sizes[0]:,} without"


if __name__ == "__main__":
    main(run)
