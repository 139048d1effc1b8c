"""Which pictures a run knows: equal on every machine, and what has changed since by name."""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path

import pytest
from PIL import Image

from shuffle_jax.data import FolderConfig, load
from shuffle_jax.data.inventory import DataChanged, check_unchanged, inventory


def make(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (3, 3), (9, 9, 9)).save(path, format="png")
    return root


FILES = ("train/th\u00e9/a.png", "train/th\u00e9/b.png", "train/ant/c.png", "val/ant/d.png", "val/ant/e.png")


def of(root: Path):
    return inventory(load(FolderConfig(root, image_size=2)))


def test_it_is_of_class_name_and_split_and_of_nothing_else(tmp_path):
    found = of(make(tmp_path / "a", *FILES))
    assert found.text.decode() == (
        "test/ant/d.png\ntest/ant/e.png\ntrain/ant/c.png\ntrain/th\u00e9/a.png\ntrain/th\u00e9/b.png\n"
    )
    assert (found.to_json()["train"], found.to_json()["test"]) == (3, 2)
    assert gzip.decompress(found.packed()) == found.text and found.packed() == found.packed()
    assert inventory(load(FolderConfig(tmp_path / "a", image_size=2)).in_memory()).digest == found.digest
    elsewhere = [name.replace("\u00e9", "e\u0301").replace("c.png", "c.PNG") for name in reversed(FILES)]
    assert of(make(tmp_path / "b", *elsewhere, "train/ant/.hidden.png")).digest == found.digest
    for other in ("train/ant/x.png", "val/ant/c.png"):
        shutil.copytree(tmp_path / "a", tmp_path / "c")
        assert of(make(tmp_path / "c", other)).digest != found.digest
        shutil.rmtree(tmp_path / "c")


def test_what_changed_is_counted_and_named(tmp_path):
    before = of(make(tmp_path, *FILES))
    check_unchanged(before, before.to_json(), before.packed(), tmp_path)
    check_unchanged(before, {}, None, tmp_path)  # a run of a version that kept nothing
    make(tmp_path, *(f"train/ant/{i}.png" for i in range(4)))
    (tmp_path / "val/ant/d.png").rename(tmp_path / "train/ant/d.png")
    (tmp_path / "train/ant/c.png").unlink()
    with pytest.raises(DataChanged) as raised:
        check_unchanged(of(tmp_path), before.to_json(), before.packed(), Path("runs/a"))
    assert str(raised.value) == (
        "the pictures are not those of runs/a: 4 added (train/ant/0.png, train/ant/1.png, train/ant/2.png, ...); "
        "1 removed (train/ant/c.png); 1 moved between training and test (ant/d.png): put them back, or start another "
        "run"
    )
    with pytest.raises(DataChanged, match=r"runs/a: 3 and 2 of training and test then, 7 and 1 others now: put them"):
        check_unchanged(of(tmp_path), before.to_json(), None, Path("runs/a"))
