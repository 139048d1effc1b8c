"""Builders as a user may write them for tensorflow-datasets: the digits, and colour pictures of many sizes."""

from __future__ import annotations

import io
from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image


def encoded(pixels: np.ndarray, form: str, **options) -> io.BytesIO:
    """An image file in memory."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form, **options)
    file.seek(0)
    return file


class EmbeddedDigits(tfds.core.GeneratorBasedBuilder):
    """Scikit-learn's digits, split as ``load_digits`` splits them."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            description="Handwritten digits of 8x8 pixels.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(8, 8, 1), encoding_format="png"),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
            supervised_keys=("image", "label"),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager):
        from shuffle_jax.data import DigitsConfig, load_digits

        digits = load_digits(DigitsConfig())
        return {"train": self._generate_examples(digits.train), "test": self._generate_examples(digits.test)}

    def _generate_examples(self, split):
        for index, (image, label) in enumerate(split):
            yield index, {"image": encoded(image[..., 0], "PNG"), "label": int(label)}


PICTURES = 20


def picture(index: int) -> np.ndarray:
    """A smooth picture of its own size and colours."""
    height, width = 20 + 3 * index, 40 - index
    down, right = np.mgrid[0:height, 0:width]
    levels = np.stack([down * 4, right * 5, np.full_like(down, 9 * index)], axis=-1)
    return (levels % 256).astype(np.uint8)


class MixedPictures(tfds.core.GeneratorBasedBuilder):
    """Pictures of many sizes with a competition's test split, whose labels are kept back, in two configurations."""

    VERSION = tfds.core.Version("1.2.0")
    SUPPORTED_VERSIONS: ClassVar = [tfds.core.Version("1.1.0")]
    BUILDER_CONFIGS: ClassVar = [tfds.core.BuilderConfig(name="large"), tfds.core.BuilderConfig(name="small")]

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            description="Pictures.",
            features=tfds.features.FeaturesDict(
                {
                    "coarse": tfds.features.ClassLabel(names=["all"]),
                    "picture": tfds.features.Image(encoding_format="jpeg"),
                    "thumbnail": tfds.features.Image(shape=(4, 4, 3), encoding_format="png"),
                    "kind": tfds.features.ClassLabel(names=["even", "odd"]),
                    "file_name": tfds.features.Text(),
                }
            ),
            supervised_keys=("picture", "kind"),
        )

    def _split_generators(self, dl_manager):
        return {
            "train": self._generate_examples(range(PICTURES)),
            "validation": self._generate_examples(range(PICTURES, PICTURES + 4)),
            "test": self._generate_examples(range(3), labelled=False),
        }

    def _generate_examples(self, indices, labelled=True):
        for index in indices:
            yield (
                f"{index:04d}",
                {
                    "coarse": 0,
                    "picture": encoded(picture(index), "JPEG", quality=95),
                    "thumbnail": encoded(np.zeros((4, 4, 3), np.uint8), "PNG"),
                    "kind": index % 2 if labelled else -1,
                    "file_name": f"{index:04d}.jpg",
                },
            )


class FarAway(tfds.core.GeneratorBasedBuilder):
    """A set whose files are in a network that is not there."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(
                {"image": tfds.features.Image(shape=(4, 4, 3)), "label": tfds.features.ClassLabel(num_classes=2)}
            ),
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(dl_manager.download("http://nowhere.invalid/archive.bin"))}

    def _generate_examples(self, path):
        raise AssertionError("never reached")


class ByHand(FarAway):
    """A set whose files are downloaded by hand."""

    MANUAL_DOWNLOAD_INSTRUCTIONS = """
    Register at the site, and put
    `pictures.tar` here.
    """

    def _split_generators(self, dl_manager):
        if not (dl_manager.manual_dir / "pictures.tar").exists():
            raise AssertionError(f"no pictures.tar\nin {dl_manager.manual_dir}")
        return {"train": self._generate_examples(dl_manager.manual_dir)}


class Endless(FarAway):
    """A set that is never done."""

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(None)}

    def _generate_examples(self, path):
        rng = np.random.default_rng(0)
        for index in range(10**9):
            image = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
            yield index, {"image": encoded(image, "PNG"), "label": index % 2}


class FromArrays(FarAway):
    """A set that leaves the encoding of its images to TensorFlow."""

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(None)}

    def _generate_examples(self, path):
        yield 0, {"image": np.zeros((4, 4, 3), np.uint8), "label": 0}


class Unfinished(tfds.core.GeneratorBasedBuilder):
    """A builder whose author forgot a part."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        raise NotImplementedError

    def _split_generators(self, dl_manager):
        raise NotImplementedError
