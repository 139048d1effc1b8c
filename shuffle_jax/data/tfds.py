"""Image classification sets that tensorflow-datasets has prepared, read without TensorFlow, network or builder."""

from __future__ import annotations

import hashlib
import operator
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np

from shuffle_jax.data.dataset import Dataset, check_holdout, check_validation, stratified_holdout
from shuffle_jax.data.encoded import Encoded, Record, check_crop, in_threads
from shuffle_jax.data.prepared import default_data_dir, find_prepared, import_tfds, parse_name, prepare_command
from shuffle_jax.data.vary import Vary, variants
from shuffle_jax.typing import Int

_TEST_SPLITS = ("test", "validation")


@dataclass(frozen=True)
class TfdsConfig:
    """A data set by its name in tensorflow-datasets, prepared by ``python -m experiments.prepare NAME``.

    Args:
        name: the data set, with its configuration and version where needed: cifar10, cifar10:3.0.2,
            imagenet_resized/64x64. By default the newest version that is prepared.
        data_dir: the folder that holds the prepared sets; by default $TFDS_DATA_DIR, or ~/tensorflow_datasets.
        image_size: side of the square images, in pixels; by default that of the set, if its images are of one size.
        train_split: the images to train on; slices such as "train[:10%]" are taken too.
        test_split: the images to measure on; by default the first of "test" and "validation" that has labels and is
            not trained on, or else a part of every class is held out of the training split.
        holdout: the part of every class that is held out then, in (0, 1).
        seed: chooses which images those are, and the variant of each.
        crop: the share of a test picture's shorter side that is kept, in (0, 1]: 0.875 is ImageNet's centre of 224
            pixels of 256. Training pictures that are kept in memory keep the whole of it.
        image: the feature that is the image, where there are several.
        label: the feature that is the label, where there are several.
        vary: changes each image of training and test in one of six ways, drawn by its place in the split: the order of
            its "colors" or YCbCr "planes", or one of six "corruptions", see :mod:`shuffle_jax.data.vary`.
        validation: the part of every class of the training images, in [0, 1), that is held out by seed and measured on
            in place of the test images, which the run leaves alone: to choose settings by. 0 for none. All training
            examples are read once for their labels.
    """

    name: str
    data_dir: Path | None = None
    image_size: int | None = None
    train_split: str = "train"
    test_split: str | None = None
    holdout: float = 0.1
    seed: int = 0
    crop: float = 1.0
    image: str | None = None
    label: str | None = None
    vary: Vary = "none"
    validation: float = 0.0

    def __post_init__(self) -> None:
        if isinstance(self.name, str):  # and not the command line's mark of what is still to be given
            parse_name(self.name)
        if self.image_size is not None and self.image_size < 1:
            raise ValueError(f"image_size must be at least 1, or None for the set's own, got {self.image_size}")
        check_holdout("holdout", self.holdout, self.seed)
        check_validation(self.validation)
        check_crop(self.crop)


def load_tfds(config: TfdsConfig) -> Dataset:
    """Opens a prepared data set.

    Args:
        config: which one, and how to split and prepare it.

    Returns:
        The data set, whose images are read and decoded when they are asked for. Sets of grey images have one channel.

    Raises:
        ValueError: the set or what reads it is missing, it is no image classification, or a split has no labels.
    """
    data_dir = default_data_dir() if config.data_dir is None else Path(config.data_dir).expanduser()
    folder = find_prepared(config.name, data_dir)
    builder = _open(folder, config.name, data_dir)
    (image, about), (label, classes) = _features(builder.info, config)
    size = config.image_size or _side(about.shape, config.name)

    def records(split: str) -> TfdsRecords:
        return _records(builder, split, config.name, image, label, len(classes))

    train: TfdsRecords | Chosen = records(config.train_split)
    if config.test_split is not None:
        test: TfdsRecords | Chosen | None = records(config.test_split)
    else:
        # The test split of a competition, ImageNet's among them, says -1 for every label.
        trained = set(re.findall(r"\w+", re.sub(r"\[[^]]*\]", "", config.train_split)))
        there = {name for name, split in builder.info.splits.items() if split.num_examples}
        named = (records(split) for split in _TEST_SPLITS if split in there - trained)
        test = next((split for split in named if split.label(0) >= 0), None)
    if test is None:
        train, test = _parts_by_class(train, classes, config.holdout, config.seed)
    if config.validation:
        train, test = _parts_by_class(train, classes, config.validation, config.seed)
    channels = 1 if about.shape[-1] == 1 else 3
    varied, varied_test = (variants(config.vary, channels, part.places, config.seed) for part in (train, test))
    return Dataset(
        name=parse_name(config.name).name,
        classes=classes,
        train=Encoded(train, size, channels, vary=varied),
        test=Encoded(test, size, channels, config.crop, varied_test),
        validation=config.validation > 0,
    )


class TfdsRecords:
    """A split of a prepared set as records, read at random; threads share it, and it is small when pickled.

    Args:
        source: the serialised examples, an ``array_record`` data source.
        name: of the data set and split, for messages.
        image: the feature that is the image.
        label: the feature that is the label.
        classes: how many classes there are.
        whole: the set with its version, the split and its parts.
    """

    def __init__(self, source: Any, name: str, image: str, label: str, classes: int, whole: str) -> None:
        self._source, self._name, self._whole = source, name, whole
        self._image, self._label, self._classes = image, label, classes

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, position: SupportsIndex) -> Record:
        index = operator.index(position)
        name = f"{self._name}[{index}]"
        features = self._features(index)
        label = features[self._label].int64_list.value[0]
        if not 0 <= label < self._classes:
            raise ValueError(f"{name} has the label {label}, not one of the {self._classes} classes: name other splits")
        return Record(name, features[self._image].bytes_list.value[0], label)

    def identities(self) -> list[str]:
        """What says which examples these are: the set with its version and the split, but not where it lies."""
        return [f"{self._whole} ({len(self)} examples)"]

    def places(self) -> list[str]:
        """What says which example each is: the set, the split and the place in it."""
        return [f"{self._name}[{position}]" for position in range(len(self))]

    def label(self, position: int) -> int:
        """A label as it is stored, which may be that of no class."""
        return self._features(position)[self._label].int64_list.value[0]

    def _features(self, index: int) -> Any:
        from tensorflow_datasets.proto import tf_example_pb2

        if not 0 <= index < len(self):
            raise IndexError(f"{self._name} has {len(self)} examples, none at {index}")
        try:
            return tf_example_pb2.Example.FromString(self._source[index]).features.feature
        except Exception as error:  # whatever the reader of the files raises
            reason = str(error).partition("\n")[0]
            raise ValueError(f"cannot read {self._name}[{index}]: {reason}; copy or prepare the set again") from error


class Chosen:
    """Some of the records, in the order of ``positions``."""

    def __init__(self, records: TfdsRecords | Chosen, positions: Int[np.ndarray, "m"]) -> None:
        self._records, self._positions = records, positions

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, position: SupportsIndex) -> Record:
        return self._records[int(self._positions[operator.index(position)])]

    def identities(self) -> list[str]:
        """Those of all, and which of them."""
        chosen = hashlib.sha256(self._positions.astype("<i8").tobytes()).hexdigest()
        return [f"{key}, {len(self)} of them: {chosen}" for key in self._records.identities()]

    def places(self) -> list[str]:
        """Those of the chosen ones among all."""
        places = self._records.places()
        return [places[position] for position in self._positions]


def _parts_by_class(
    records: TfdsRecords | Chosen, classes: Sequence[str], share: float, seed: int
) -> tuple[Chosen, Chosen]:
    """What is kept and what is held out, see :func:`stratified_holdout`; every record is read."""
    labels = np.array(in_threads(lambda i: records[i].label, range(len(records))), np.int32)
    kept, held = stratified_holdout(labels, classes, share, seed)
    return Chosen(records, kept), Chosen(records, held)


def _open(folder: Path, name: str, data_dir: Path) -> Any:
    """The read-only builder of a prepared folder."""
    tfds = import_tfds()
    try:
        builder = tfds.builder_from_directory(folder)
        formats = {form.value for form in builder.info.available_file_formats()}
        if "array_record" in formats and builder.info.file_format.value != "array_record":
            builder = tfds.builder_from_directory(folder, file_format="array_record")
    except Exception as error:  # FileNotFoundError, JSON and protobuf errors: a folder that was changed or cut
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{folder} is no prepared data set: {reason}; copy or prepare it again") from error
    if "array_record" not in formats:
        raise ValueError(
            f"{folder} is prepared as {', '.join(sorted(formats))}, which cannot be read at random: move it away, and "
            f"run `{prepare_command(name, data_dir)}`"
        )
    return builder


def _features(info: Any, config: TfdsConfig) -> tuple[tuple[str, Any], tuple[str, tuple[str, ...]]]:
    """Name and type of the image, name and classes of the label."""
    import tensorflow_datasets as tfds

    features = dict(sorted(info.features.items()))
    usual = info.supervised_keys or ()

    def only(kind: type, what: str, chosen: str | None) -> str:
        found = [key for key, feature in features.items() if isinstance(feature, kind)]
        found = [key for key in found if not isinstance(features[key], tfds.features.LabeledImage)]
        if chosen is not None and chosen in found:
            return chosen
        preferred = [key for key in found if key in usual] if len(found) > 1 and chosen is None else found
        if len(preferred) == 1 and chosen is None:
            return preferred[0]
        every = ", ".join(f"{key} ({type(feature).__name__})" for key, feature in features.items())
        remedy = f"choose one of them by {what}" if found else "only sets for image classification can be learnt"
        which = f"no {kind.__name__} {chosen!r}" if chosen else f"{len(found) or 'no'} features of type {kind.__name__}"
        raise ValueError(f"{config.name} has {which} among {every}: {remedy}")

    image = only(tfds.features.Image, "image", config.image)
    label = only(tfds.features.ClassLabel, "label", config.label)
    kind = np.dtype(features[image].np_dtype)
    if kind not in (np.uint8, np.uint16):
        raise ValueError(f"the images of {config.name} are {kind}: only those of 8 or 16 bits can be learnt")
    number = features[label].num_classes
    if not number:
        raise ValueError(f"the label {label} of {config.name} has no classes: choose another one by data.label")
    return (image, features[image]), (label, tuple(features[label].int2str(k) for k in range(number)))


def _side(shape: Sequence[int | None], name: str) -> int:
    """The side of a set's images."""
    height, width, _ = shape
    if height is None or height != width:
        sizes = "of many sizes" if height is None or width is None else f"{height}x{width}"
        raise ValueError(
            f"the images of {name} are {sizes}: set data.image_size, the side of the squares to make of them"
        )
    return height


def _records(builder: Any, split: str, name: str, image: str, label: str, classes: int) -> TfdsRecords:
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    try:
        chosen = builder.info.splits[split]
        examples, instructions = chosen.num_examples, chosen.file_instructions
    except Exception as error:  # KeyError, ValueError and AssertionError, of several lines
        there = ", ".join(builder.info.splits)
        raise ValueError(
            f"{name} has no split {split!r}: its splits are {there}, and slices such as train[:10%]"
        ) from error
    if not examples:
        raise ValueError(f"the split {split} of {name} is empty: take a larger part")
    for instruction in instructions:
        if not Path(instruction.filename).is_file():
            raise ValueError(f"no file {instruction.filename}: copy or prepare {name} again, all of its folder")
    whole = f"{builder.info.full_name} {split}, {_parts(instructions)}"
    return TfdsRecords(ArrayRecordDataSource(instructions), f"{name} {split}", image, label, classes, whole)


def _parts(instructions: Sequence[Any]) -> str:
    """The files of a split by name and the examples of each, as a digest."""
    lines = [f"{Path(i.filename).name} {i.skip} {i.take} {i.examples_in_shard}" for i in instructions]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
