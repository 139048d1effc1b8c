"""Writes a trained network for use: `python -m experiments.export RUN [OUT] --format FORMAT`.

The network is hardened. FORMAT says what is written:

jax   one file that JAX alone can run, for any batch size and several platforms; OUT.json beside it says what goes in
      and what comes out. Batch norms and permutations are folded into the kernels.
onnx  one ONNX file for any batch size, folded as well, for ONNX Runtime and what reads ONNX; classes and preprocessing
      are its metadata (pip install 'shuffle_jax[onnx]').
hub   a folder in the layout of the Hugging Face hub: weights as safetensors, config.json, and a model card with what
      the run measured, and its spread where runs with other seeds lie beside it (pip install 'shuffle_jax[hub]').

OUT is by default network.jax, network.onnx or hub in the folder of the run. `python -m experiments.predict OUT
PICTURES` uses each of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from experiments.cli import keep_programs, main, parse, quiet_libraries
from shuffle_jax.typing import PyTree

if TYPE_CHECKING:
    from shuffle_jax.deploy.routing import Routed
    from shuffle_jax.train.trained import Trained

TOLERANCE = {"float32": 1e-3, "float16": 3e-2, "bfloat16": 0.2}
"""Largest difference of the exported logits from the network's, relative to the largest logit."""


FORMATS = {"jax": "network.jax", "onnx": "network.onnx", "hub": "hub"}
"""What is written by default, in the folder of the run."""


@dataclass(frozen=True)
class Arguments:
    """What to export, and where to."""

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of a run, as experiments.train writes it."""

    out: Annotated[Path | None, tyro.conf.Positional] = None
    """The file or folder to write; by default in the folder of the run."""

    format: Literal["jax", "onnx", "hub"] = "jax"
    """What to write: a file for JAX, an ONNX file, or a folder in the layout of the Hugging Face hub."""

    checkpoint: str = "last"
    """Which checkpoint: "last", "best" (by relaxed top-1 accuracy), or a step."""

    fold: bool = True
    """Fold batch norms, and the permutations of ShuffleNets, into the kernels; --no-fold exports the layers as they
    are, to compare. What cannot be folded, such as shuffles that depend on the image, stays as it is."""

    copies: bool = False
    """Give each use of a shared kernel, as anchored networks have them, a copy of its own that absorbs the norm behind
    it: a larger file and fewer operations. Without, the file has one copy of the kernel, and the norms."""

    platforms: tuple[Literal["cpu", "cuda", "rocm", "tpu"], ...] = ("cpu", "cuda", "tpu")
    """What the one file runs on, of the format jax."""

    weights: Literal["float32", "float16"] = "float32"
    """Type in which the kernels of an ONNX file are kept; with float16 it is half as large, and computes in float32."""

    license: str = "other"
    """Licence of the weights on the card of the format hub, as the hub names it, such as apache-2.0 or cc-by-4.0; what
    the pictures allow is for you to know."""


def run(arguments: Sequence[str] | None = None) -> None:
    """Parses the command line, exports, and compares what was written with the network."""
    options = parse(Arguments, arguments, prog="python -m experiments.export", description=__doc__)
    quiet_libraries()
    keep_programs()
    check(options)
    from shuffle_jax.deploy.exported import platform_name
    from shuffle_jax.deploy.routing import Routed
    from shuffle_jax.train.advice import after
    from shuffle_jax.train.trained import load_trained

    trained = load_trained(options.run, options.checkpoint)
    out = options.out or options.run / FORMATS[options.format]
    if options.format == "hub":
        from experiments.exporting.folder import write_folder

        name = options.run.resolve().name if options.out is None else out.resolve().name
        write_folder(options.run, trained, out, name, options.license)
        return
    if options.format == "onnx" and trained.config.network.dtype != "float32":
        print(
            f"the network computes in {trained.config.network.dtype}; the ONNX file does in float32, and is compared so"
        )
        trained = in_float32(trained)
    exported = folded(options, trained) if options.fold else Routed(trained.apply, trained.variables)
    (write_onnx if options.format == "onnx" else write_jax)(options, trained, exported, out)
    say_use(options, trained)
    for line in after(trained.config, trained.diagnoses):
        print(line)
    if options.format == "onnx" or platform_name() in options.platforms:
        compare(options, trained, out)


def check(options: Arguments) -> None:
    """Raises a ValueError for options that the format has no use for, or if a package for it is missing."""
    if options.copies and not options.fold:
        raise ValueError("--copies are made for folding: leave out --no-fold, or --copies")
    defaults = {field.name: field.default for field in fields(Arguments)}
    for name, formats in (
        ("platforms", ["jax"]),
        ("weights", ["onnx"]),
        ("license", ["hub"]),
        ("fold", ["jax", "onnx"]),
        ("copies", ["jax", "onnx"]),
    ):
        if options.format not in formats and getattr(options, name) != defaults[name]:
            word = "no-fold" if name == "fold" else name
            raise ValueError(f"--{word} is for --format {' and '.join(formats)}: leave it out with {options.format}")
    if options.format == "onnx":
        from shuffle_jax.deploy.onnx.run import SUFFIX, needed

        needed()
        if options.out is not None and options.out.suffix != SUFFIX:
            raise ValueError(f"an ONNX file is known by its name: call it {options.out}{SUFFIX}, and not {options.out}")
    if options.format == "hub":
        from shuffle_jax.deploy.hub import needed

        needed()


def in_float32(trained: Trained) -> Trained:
    """The same network, which computes in float32."""
    from shuffle_jax.train.experiment import build_network

    config = replace(trained.config.network, dtype="float32")
    network = build_network(config, trained.preprocessing.shape, len(trained.classes))
    return replace(trained, network=network, config=replace(trained.config, network=config))


def folded(options: Arguments, trained: Trained) -> Routed:
    """The network with what can be folded folded; says what cannot."""
    from shuffle_jax.deploy.folding import fold
    from shuffle_jax.deploy.routing import route

    shape = trained.preprocessing.shape
    found = fold(trained.network, trained.variables, shape, options.copies)
    exported = route(trained.network, found.variables, shape)
    if options.copies:
        print(copied(trained.variables["params"], found.variables["params"]))
    if found.kept:
        name, why = next(iter(found.kept.items()))
        print(f"{len(found.kept)} batch norms are not folded, such as {name}: {why}")
    if exported.reason:
        print(f"the mixers are exported as they are: {exported.reason}")
    return exported


def described(options: Arguments, trained: Trained) -> dict[str, Any]:
    """What a file says of the network, by the names of what writes it."""
    from shuffle_jax.train.config import to_json

    return {
        "classes": trained.classes,
        "preprocessing": trained.preprocessing.to_json(),
        "image_shape": trained.preprocessing.shape,
        "about": {"network": to_json(trained.config.network), "step": trained.step, "folded": options.fold},
    }


def write_jax(options: Arguments, trained: Trained, exported: Routed, out: Path) -> None:
    """Writes the file for JAX, and says where it is."""
    from shuffle_jax.deploy.exported import sidecar
    from shuffle_jax.deploy.exporting import export

    about = export(exported.apply, exported.params, out, **described(options, trained), platforms=options.platforms)
    size, text = about["bytes"] / 1e6, ", ".join(about["platforms"])
    print(f"{out} ({size:.1f} MB) and {sidecar(out).name}: step {trained.step} of {options.run}, for {text}")


def write_onnx(options: Arguments, trained: Trained, exported: Routed, out: Path) -> None:
    """Writes the ONNX file, which is checked before, and says where it is."""
    from shuffle_jax.deploy.onnx.write import BATCHES, export

    about = export(exported.apply, exported.params, out, **described(options, trained), weights=options.weights)
    sizes = ", ".join(map(str, BATCHES[:-1]))
    kind = f"{options.weights} weights, opset {about['opset']}"
    print(f"{out} ({about['bytes'] / 1e6:.1f} MB, {kind}): step {trained.step} of {options.run}")
    print(
        f"on {sizes} and {BATCHES[-1]} random images ONNX Runtime differs from it by {about['difference']:.1e} of the "
        "largest logit at most"
    )


def say_use(options: Arguments, trained: Trained) -> None:
    """Says what dynamic layers do for single images, as far as the run has recorded it."""
    from shuffle_jax.analysis.dynamic_use import recorded_use
    from shuffle_jax.records import read_records
    from shuffle_jax.run import Run

    records = read_records(metrics) if (metrics := Run(options.run).metrics).exists() else []
    use = recorded_use(records, trained.step)
    if use is not None and use.counts:  # factors that are learned once are index vectors now
        measured = {r["network"]: r for r in records if r["kind"] == "result" and r["step"] == trained.step}
        print(use.text(measured))


def compare(options: Arguments, trained: Trained, out: Path) -> None:
    """Compares the file that was written with the hardened network, on three random images."""
    from shuffle_jax.deploy.exported import load

    images = np.random.default_rng(0).normal(size=(3, *trained.preprocessing.shape)).astype(np.float32)
    expected = np.asarray(trained.logits(jnp.asarray(images)))
    if not np.isfinite(expected).all():
        print("on random images the network's own logits are not finite: there is nothing to compare")
        return
    difference = np.abs(np.asarray(load(out).logits(jnp.asarray(images))) - expected).max()
    relative = float(difference / np.abs(expected).max())
    print(f"on random images its logits differ from the hardened network's by {relative:.1e} of the largest")
    kind = "float16" if options.weights == "float16" else trained.config.network.dtype
    if not relative <= TOLERANCE[kind]:
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
