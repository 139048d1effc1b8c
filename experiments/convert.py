"""Makes a run of weights trained with torch: `python -m experiments.convert SOURCE NETWORK ARRAYS OUT`.

SOURCE says whose names the arrays have: "torchvision" of ShuffleNetV2, MobileNetV2 and ResNet, "dcd" of the MobileNetV2
and ResNet that the authors of dynamic convolution decomposition released. NETWORK is a name of experiments.count, or
torchvision's own. Prefixes such as "module." and "_orig_mod.", counters and what was saved beside the weights do not
count.
ARRAYS is the state-dict as .npz or .safetensors (pip install 'shuffle_jax[convert]'); torch is not needed, and nothing
in the file can run code. OUT becomes the folder of a run of 0 steps, which predict, export and evaluate take.

How many classes there are, whether the classifier is dynamic and how wide the heads of dynamic layers are, the arrays
say. What torch did to its pictures they do not: the defaults are those for ImageNet. By default the shorter side of a
picture is brought to the size of the network; torchvision brings it to 256 pixels and cuts 224 from the middle, as
--crop 0.875 does, and measures slightly other accuracies for it.
"""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from experiments.cli import main, network_named, parse, quiet_libraries
from shuffle_jax.models.config import NetworkConfig
from shuffle_jax.models.convert import Source

if TYPE_CHECKING:
    from shuffle_jax.data import Preprocessing
    from shuffle_jax.models.convert.arrays import Arrays
    from shuffle_jax.train.config import TrainConfig
    from shuffle_jax.typing import PyTree


@dataclass(frozen=True)
class Arguments:
    """What to convert, and where to."""

    source: Annotated[Source, tyro.conf.Positional]
    """Whose names the arrays have."""

    network: Annotated[str, tyro.conf.Positional]
    """A name of the catalogue, such as shufflenet_v2_1.0x, or torchvision's, such as shufflenet_v2_x1_0."""

    arrays: Annotated[Path, tyro.conf.Positional]
    """The state-dict: a .npz or .safetensors file."""

    out: Annotated[Path, tyro.conf.Positional]
    """Folder of the run to write; it must not exist."""

    classes: Path | None = None
    """Text file with the names of the classes, one a line, in the order of the logits; of equal ones the second gets a
    number. By default the names of the folders in ROOT/train, in alphabetical order, or without --root class_0,
    class_1, ..."""

    root: Path | None = None
    """Folder of pictures for experiments.evaluate, with ROOT/train/CLASS and ROOT/val/CLASS; nothing else reads it."""

    part: str | None = None
    """Which network, where the file holds several, such as "ema" beside "model"."""

    image_size: int | None = None
    """Height and width of the network's images; those of the catalogue by default."""

    crop: float = 1.0
    """Share of a picture's shorter side that is kept, above 0 and at most 1."""

    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Of the training pixels per channel, in units of [0, 1]."""

    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """Their standard deviation."""

    batch_size: int = 64
    """How many pictures experiments.evaluate takes at once. It wants as many training images, and reads no more."""


def run(arguments: Sequence[str] | None = None) -> None:
    """Parses the command line, converts, and says what to type next."""
    options = parse(Arguments, arguments, prog="python -m experiments.convert", description=__doc__)
    quiet_libraries()
    import jax

    from shuffle_jax.data import FolderConfig, Preprocessing
    from shuffle_jax.models import build
    from shuffle_jax.models.catalogue import catalogue
    from shuffle_jax.models.convert import convert_network, count_classes, load_arrays
    from shuffle_jax.models.convert.names import plain
    from shuffle_jax.train.config import TrainConfig

    if options.out.exists():
        raise ValueError(f"{options.out} exists: name another OUT, or remove it")
    entry = network_named(options.network, catalogue())
    read_arrays = load_arrays(options.arrays)
    try:
        arrays = plain(read_arrays, options.part)
        config = as_arrays_say(entry.config, arrays)
        classes = count_classes(arrays, options.source) or entry.classes
        variables = convert_network(build(config, classes), arrays, options.source)
    except ValueError as error:
        raise ValueError(f"{options.arrays} is no {options.network} of {options.source}: {error}") from error
    names = class_names(options, classes)
    size = entry.image_shape[0] if options.image_size is None else options.image_size
    preprocessing = Preprocessing(size, 3, options.mean, options.std, options.crop)
    read = max(1, -(-options.batch_size // classes))
    data = FolderConfig(options.root or Path("data"), size, per_class=read, crop=options.crop)
    run_config = TrainConfig(data, config, batch_size=options.batch_size)
    write(options.out, run_config, variables, names, preprocessing)

    parameters = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    print(
        f"{options.out}: {options.network} of {options.source}, {parameters:,} parameters, {classes} classes, "
        f"images of {size}x{size}"
    )
    typed = shlex.quote(str(options.out))
    print(f"classify pictures:   python -m experiments.predict {typed} PICTURES")
    print(f"write one file:      python -m experiments.export {typed}")
    again = " --data.root ROOT" if options.classes else "   (convert again with --root)"
    needs = "" if options.root else again
    print(f"measure on pictures: python -m experiments.evaluate {typed}{needs}")
    print(f"train on others:     python -m experiments.train folder --data.root FOLDER --start-from {typed}")


def as_arrays_say(config: NetworkConfig, arrays: Arrays) -> NetworkConfig:
    """A configuration with what the arrays say better than a name: the kind of classifier, the width of heads."""
    if config.family not in ("mobilenet_v2", "resnet"):
        return config
    config = replace(config, head="dcd" if any(name.endswith(".cls_q.weight") for name in arrays) else "plain")
    heads = {
        name: array.shape
        for name, array in arrays.items()
        if name.endswith(".fc.0.weight") and not name.startswith("classifier.") and array.ndim == 2 and array.size
    }
    if config.pointwise != "dcd" or not heads:
        return config
    # hidden = max(seen, latent^2) // squeeze, or a small constant instead: the widest head says it best.
    widest, (hidden, seen) = max(heads.items(), key=lambda item: item[1])
    fusion = arrays.get(widest.replace(".fc.0.", ".fc_phi."))
    squared = 0 if fusion is None or not fusion.ndim else fusion.shape[0]
    # A name of the catalogue says how the network is counted; what is used takes the form that is faster.
    return replace(config, dcd=replace(config.dcd, squeeze=max(1, max(seen, squared) // hidden), form="auto"))


def class_names(options: Arguments, count: int) -> tuple[str, ...]:
    """The names of the classes in the order of the logits.

    Raises:
        ValueError: there are not as many as logits, or no place to find them.
    """
    from shuffle_jax.data.listing import class_folders
    from shuffle_jax.data.names import composed, read_classes

    names: Sequence[str]
    if options.classes is not None:
        where, names = options.classes, read_classes(options.classes)
    elif options.root is not None:
        where = options.root / "train"
        if not where.is_dir():
            raise ValueError(f"no folder {where}: give --root the folder that holds 'train'")
        names = list(class_folders(where, options.root, composed))
    else:
        return tuple(f"class_{i}" for i in range(count))
    if len(names) != count:
        raise ValueError(
            f"{where} names {len(names)} classes, the network has {count} logits: give --classes a file with one name "
            "a line, equal ones too"
        )
    return tuple(names)


def write(
    out: Path,
    config: TrainConfig,
    variables: dict[str, PyTree],
    classes: tuple[str, ...],
    preprocessing: Preprocessing,
) -> None:
    """Writes a run of 0 steps, or nothing.

    Args:
        out: its folder, which does not exist.
        config: of a run with these variables.
        variables: parameters and running statistics.
        classes: in the order of the logits.
        preprocessing: from pictures to images.
    """
    import jax
    import optax

    from shuffle_jax.run import Run
    from shuffle_jax.train.checkpoint import Checkpoints
    from shuffle_jax.train.config import to_json
    from shuffle_jax.train.optimizer import make_optimizer
    from shuffle_jax.train.state import first_state

    optimizer = make_optimizer(config.optimizer, optax.constant_schedule(0.0))
    state = first_state(jax.random.key(config.seed), variables, optimizer)
    run = Run(out)
    try:
        run.start(to_json(config), classes, preprocessing)
        with Checkpoints(run.checkpoints) as checkpoints:
            checkpoints.save(state)
    except BaseException:
        shutil.rmtree(out, ignore_errors=True)
        raise


if __name__ == "__main__":
    main(run)
