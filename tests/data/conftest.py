"""Sets of tensorflow-datasets, prepared for real by the command that a person runs, and pictures in files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

collect_ignore = ["tfds_builders.py"]  # it is imported by its own name: a builder can be registered once


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    """A folder with the digits, and with the pictures in the configuration "small"."""
    from experiments import prepare

    data_dir = tmp_path_factory.mktemp("tensorflow_datasets")
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(Path(__file__).parent)
        for name in ("embedded_digits", "mixed_pictures/small"):
            prepare.run([name, "--module", "tfds_builders", "--data-dir", str(data_dir)])
    return data_dir


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """A data set of 22 and 10 pictures of different sizes, in files of a folder, not read yet."""
    from PIL import Image

    from shuffle_jax.data import Dataset
    from shuffle_jax.data.encoded import Encoded, Record

    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    records = []
    for number in range(32):
        path = folder / f"{number:02d}.png"
        shape = (6 + number % 3, 5 + number % 4, 3)
        Image.fromarray(rng.integers(0, 256, shape, np.uint8)).save(path)
        records.append(Record(path.name, path, number % 7))
    return Dataset("pictures", tuple("abcdefg"), Encoded(records[:22], 4), Encoded(records[22:], 4))
