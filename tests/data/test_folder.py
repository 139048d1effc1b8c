"""Folders of images as data sets: classes, splits, what is drawn, skipped and refused."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shuffle_jax.data import Dataset, Encoded, FolderConfig, load, load_folder
from shuffle_jax.data.encoded import read_image
from shuffle_jax.data.listing import SUFFIXES, pictures_in

RED, GREEN, BLUE = (200, 30, 20), (20, 180, 40), (10, 40, 220)


def plain(mode: str, colour, size: tuple[int, int] = (9, 7)) -> Image.Image:
    return Image.new(mode, size, colour)


def save(image: Image.Image, path: Path, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return path


def tree(root: Path, split: str, **counts: int) -> None:
    """``count`` images a class; the red level says the class, the green level the image."""
    for label, (name, count) in enumerate(sorted(counts.items())):
        (root / split / name).mkdir(parents=True)
        for index in range(count):
            save(plain("RGB", (label, index, 255)), root / split / name / f"{index:02d}.png")


def content(dataset: Dataset) -> dict[str, list[tuple[int, int, int]]]:
    """For each split, the label, the red and the green level of every image."""
    splits = {"train": dataset.train, "test": dataset.test}
    return {
        name: [(int(label), *map(int, image[0, 0, :2])) for image, label in split] for name, split in splits.items()
    }


def damage(path: Path, how: str) -> Path:
    data = path.read_bytes()
    path.write_bytes({"empty": b"", "text": b"no image", "truncated": data[: len(data) // 2]}[how])
    return path


def test_classes_are_sorted_and_files_in_order(tmp_path):
    tree(tmp_path, "train", cat=3, ant=2, bee=1)
    tree(tmp_path, "val", cat=1, ant=1, bee=2)
    data = load(FolderConfig(tmp_path, image_size=5))
    assert data.name == tmp_path.name
    assert data.classes == ("ant", "bee", "cat")
    assert data.image_shape == (5, 5, 3)
    assert content(data) == {
        "train": [(0, 0, 0), (0, 0, 1), (1, 1, 0), (2, 2, 0), (2, 2, 1), (2, 2, 2)],
        "test": [(0, 0, 0), (1, 1, 0), (1, 1, 1), (2, 2, 0)],
    }


def test_suffixes_count_in_any_case_and_other_files_do_not(tmp_path, capsys):
    folder = tmp_path / "train" / "cat"
    for index, name in enumerate(("a.JPG", "b.jpeg", "c.PNG", "d.Jpeg")):
        save(plain("L", 60 * index), folder / name)
    for name in (".hidden.png", "._a.JPG", "notes.txt", "Thumbs.db", "image.gif"):
        (folder / name).write_bytes(b"no image")
    (folder / "folder.png").mkdir()
    (tmp_path / "train" / ".cache").mkdir()
    (tmp_path / "train" / "README").write_text("no folder")
    save(plain("L", 9), tmp_path / "train" / "__MACOSX" / "cat" / "e.png")
    save(plain("L", 9), tmp_path / "train" / "loose.png")
    for name in ("inner/f.png", "inner/deep/g.png", ".ipynb_checkpoints/a-checkpoint.png", "@eaDir/h.png"):
        save(plain("L", 9), folder / name)
    save(plain("L", 240), folder / "i.webp")
    tree(tmp_path, "val", cat=1)
    data = load_folder(FolderConfig(tmp_path, image_size=4)).in_memory()
    assert data.classes == ("cat",)
    np.testing.assert_allclose(data.train.images[:, 0, 0, 0], [0, 60, 120, 180], atol=2)
    assert capsys.readouterr().err == (
        f"left out of {tmp_path}: pictures, 1 .gif, 1 .webp (name what to read with --data.suffixes); "
        "2 in folders inside of a class (move them up); 1 in no folder of a class (move them into one)\n"
    )
    (folder / "image.gif").unlink()
    named = load_folder(FolderConfig(tmp_path, image_size=4, suffixes=(*SUFFIXES, ".webp", ".gif"))).in_memory()
    np.testing.assert_allclose(named.train.images[:, 0, 0, 0], [0, 60, 120, 180, 240], atol=2)
    assert [path.name for path in pictures_in(folder)] == ["a.JPG", "b.jpeg", "c.PNG", "d.Jpeg", "g.png", "f.png"]


def test_names_are_equal_in_either_form_of_their_accents(tmp_path):
    for split, name in (("train", "th\u00e9"), ("val", "the\u0301")):
        save(plain("L", 9), tmp_path / split / name / "a.png")
    for classes in (None, ("th\u00e9",), ("the\u0301",)):  # of a run made on a system that stores them decomposed
        data = load(FolderConfig(tmp_path, image_size=4), classes)
        assert data.classes == (classes or ("th\u00e9",)) and len(data.test) == 1
    shutil.copytree(tmp_path / "val" / "the\u0301", tmp_path / "train" / "the\u0301")
    with pytest.raises(ValueError, match="has two folders 'th\u00e9', in two spellings of Unicode: move all into one"):
        load_folder(FolderConfig(tmp_path))


@pytest.mark.parametrize(
    ("present", "chosen"),
    [
        (("val", "validation", "test"), "val"),
        (("validation", "test"), "validation"),
        (("test",), "test"),
    ],
)
def test_the_first_test_folder_is_taken(tmp_path, present, chosen):
    tree(tmp_path, "train", cat=4)
    for count, name in enumerate(("val", "validation", "test"), start=1):
        if name in present:
            tree(tmp_path, name, cat=count)
    data = load_folder(FolderConfig(tmp_path, image_size=2))
    assert len(data.train) == 4
    assert len(data.test) == {"val": 1, "validation": 2, "test": 3}[chosen]


def test_a_test_folder_may_lack_a_class(tmp_path):
    tree(tmp_path, "train", ant=1, bee=1, cat=1)
    tree(tmp_path, "val", cat=2)
    data = load_folder(FolderConfig(tmp_path, image_size=2)).in_memory()
    assert data.test.labels.tolist() == [2, 2]


def test_as_earlier_versions_did_it_a_part_of_each_class_is_held_out_by_the_order_of_the_names(tmp_path):
    tree(tmp_path, "train", ant=10, bee=5, cat=2)
    config = FolderConfig(tmp_path, image_size=2, holdout=0.3, choose="order")
    found = content(load_folder(config))
    assert sorted(found["train"] + found["test"]) == [
        (label, label, index) for label, count in enumerate((10, 5, 2)) for index in range(count)
    ]
    assert [label for label, _, _ in found["test"]] == [0, 0, 0, 1, 1, 2]
    assert content(load_folder(config)) == found
    assert content(load_folder(FolderConfig(tmp_path, image_size=2, holdout=0.3, seed=1, choose="order"))) != found


def test_what_is_held_out_and_drawn_does_not_depend_on_other_files(tmp_path):
    tree(tmp_path, "train", ant=60, bee=2)
    shutil.copytree(tmp_path / "train", tmp_path / "more" / "train")
    (tmp_path / "more" / "train" / "ant" / "07.png").unlink()
    for name in ("005.png", "zz.png", "31a.png"):
        save(plain("RGB", (0, 200, 255)), tmp_path / "more" / "train" / "ant" / name)

    def names(root: Path, **options) -> list[set[str]]:
        data = load_folder(FolderConfig(root, image_size=2, holdout=0.3, **options))
        return [
            {key for key in split.records.identities() if key.startswith("ant/")} for split in (data.train, data.test)
        ]

    train, test = names(tmp_path)
    assert len(train | test) == 60 and not train & test and 8 <= len(test) <= 30
    assert names(tmp_path) == [train, test] != names(tmp_path, seed=1)
    more, held = names(tmp_path / "more")
    assert not (more & test or held & train)
    drawn, drawn_of_more = names(tmp_path, per_class=9)[0], names(tmp_path / "more", per_class=9)[0]
    assert len(drawn) == 9 and len(drawn - drawn_of_more) <= 4  # by one that is gone and three that came
    data = load_folder(FolderConfig(tmp_path, image_size=2, holdout=1e-9))  # both splits have every class
    assert sorted(data.test.records[i].label for i in range(2)) == [0, 1] and len(data.test) == 2


@pytest.mark.parametrize("with_test_folder", [True, False])
def test_the_classes_of_a_finished_run_fix_the_labels(tmp_path, with_test_folder):
    tree(tmp_path, "train", ant=4, bee=4, cat=4)
    if with_test_folder:
        tree(tmp_path, "val", ant=1, bee=1, cat=1)
    config = FolderConfig(tmp_path, image_size=2, holdout=0.5)
    plain_order = load(config)
    data = load(config, ["cat", "ant", "bee"])
    assert data.classes == ("cat", "ant", "bee")
    label = {0: 1, 1: 2, 2: 0}  # of ant, bee, cat
    for split, rows in content(plain_order).items():
        assert content(data)[split] == [(label[folder], folder, index) for _, folder, index in rows]


def test_images_are_opened_when_they_are_asked_for_and_named_by_their_files(tmp_path):
    tree(tmp_path, "train", ant=3, bee=2)
    tree(tmp_path, "val", ant=2, bee=1)
    data = load(FolderConfig(tmp_path, image_size=5))
    for path in (tmp_path / "train" / "ant").iterdir():
        path.write_bytes(b"no image")
    image, label = data.train[3]  # the others may be whatever they are
    assert (image.shape, label) == ((5, 5, 3), 1)
    with pytest.raises(ValueError, match=f"^cannot read image {tmp_path}/train/ant/01.png: "):
        data.train.take(np.array([3, 1]))


@pytest.mark.parametrize("name", ["0\u00e9 \u96ea.png", "0\udcff.png"], ids=["text", "bytes"])
def test_file_names_may_be_any(tmp_path, name):
    tree(tmp_path, "train", ant=1, bee=2)
    tree(tmp_path, "val", ant=1)
    (tmp_path / "train" / "ant" / "00.png").rename(tmp_path / "train" / "ant" / name)
    data = load(FolderConfig(tmp_path, image_size=5))
    assert [record.content.name for record in data.train.records] == [name, "00.png", "01.png"]
    assert content(data)["train"] == [(0, 0, 0), (1, 1, 0), (1, 1, 1)]


def test_a_split_is_little_more_than_its_file_names_when_pickled(tmp_path):
    tree(tmp_path, "train", ant=300, bee=300)
    tree(tmp_path, "val", ant=1, bee=1)
    data = load(FolderConfig(tmp_path, image_size=5))
    pickled = pickle.dumps(data.train)
    assert len(pickled) < 600 * (len("ant/00.png") + 12) + 2000  # a name, where it ends (8 bytes), a label (4)
    again = pickle.loads(pickled)
    assert [again.records[i] for i in range(600)] == [data.train.records[i] for i in range(600)]


def test_crop_is_of_the_test_pictures_alone(tmp_path):
    pixels = np.random.default_rng(3).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    for split in ("train", "val"):
        save(Image.fromarray(pixels), tmp_path / split / "ant" / "0.png")
    data = load(FolderConfig(tmp_path, image_size=14, crop=0.875))
    assert isinstance(data.train, Encoded) and isinstance(data.test, Encoded)
    path = tmp_path / "train" / "ant" / "0.png"
    np.testing.assert_array_equal(data.train[0][0], read_image(path, 14))
    np.testing.assert_array_equal(data.test[0][0], pixels[1:15, 1:15])


def no_root(root: Path) -> FolderConfig:
    return FolderConfig(root / "nowhere")


def no_train(root: Path) -> FolderConfig:
    tree(root, "val", cat=1)
    return FolderConfig(root)


def no_classes(root: Path) -> FolderConfig:
    save(plain("RGB", RED), root / "train" / "loose.png")
    return FolderConfig(root)


def no_test_classes(root: Path) -> FolderConfig:
    tree(root, "train", cat=1)
    (root / "test").mkdir()
    return FolderConfig(root)


def empty_class(root: Path) -> FolderConfig:
    tree(root, "train", ant=2, bee=0)
    return FolderConfig(root)


def nested_class(root: Path) -> FolderConfig:
    tree(root, "train", ant=2, bee=0)
    save(plain("L", 9), root / "train" / "bee" / "images" / "0.png")
    save(plain("L", 9), root / "train" / "bee" / "1.webp")
    return FolderConfig(root)


def empty_test_class(root: Path) -> FolderConfig:
    tree(root, "train", ant=2, bee=2)
    tree(root, "val", ant=2, bee=0)
    return FolderConfig(root)


def unknown_class(root: Path) -> FolderConfig:
    tree(root, "train", ant=2, bee=2)
    tree(root, "val", ant=2, wasp=2)
    return FolderConfig(root)


def single_image(root: Path) -> FolderConfig:
    tree(root, "train", ant=2, bee=1)
    return FolderConfig(root)


def damaged(root: Path) -> FolderConfig:
    tree(root, "train", ant=3)
    tree(root, "val", ant=3)
    damage(root / "val" / "ant" / "01.png", "truncated")
    return FolderConfig(root)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (no_root, "no folder {root}/nowhere; set data.root to the folder that holds 'train'"),
        (no_train, "no folder {root}/train; put the training images in {root}/train/<class>/"),
        (
            no_classes,
            "no class folders in {root}/train; put the images of each class in {root}/train/<class>/",
        ),
        (
            no_test_classes,
            "no class folders in {root}/test; put the images of each class in {root}/test/<class>/",
        ),
        (empty_class, "no .jpg, .jpeg or .png image in {root}/train/bee; add images, or remove the folder"),
        (
            nested_class,
            "no .jpg, .jpeg or .png image in {root}/train/bee, but 1 .webp (name what to read with --data.suffixes); "
            "1 in folders inside of a class (move them up); add images",
        ),
        (
            empty_test_class,
            "no .jpg, .jpeg or .png image in {root}/val/bee; add images, or remove the folder",
        ),
        (
            unknown_class,
            "{root}/val/wasp is not among the 2 known classes; remove the folder, or add the class to",
        ),
        (single_image, "class 'bee' has 1 image, but a hold-out needs at least 2; add images"),
        (damaged, "cannot read image {root}/val/ant/01.png: "),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_is_wrong_with_a_folder_is_said_in_one_line(tmp_path, make, message):
    config = make(tmp_path)
    with pytest.raises(ValueError) as raised:
        load_folder(config).in_memory()
    assert str(raised.value).startswith(message.format(root=tmp_path))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (
            ("ant", "bee", "cat"),
            "class 'cat' has no folder in {root}/train; the folders must be the classes given",
        ),
        (("ant",), "{root}/train/bee is not among the 1 known classes"),
        (("ant", "bee", "ant"), "class names must differ, got 'ant' more than once"),
    ],
)
def test_other_classes_than_those_of_a_finished_run_are_named(tmp_path, classes, message):
    tree(tmp_path, "train", ant=2, bee=2)
    with pytest.raises(ValueError) as raised:
        load_folder(FolderConfig(tmp_path, image_size=2), classes)
    assert str(raised.value).startswith(message.format(root=tmp_path))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 0}, "image_size must be at least 1, got 0"),
        ({"holdout": 0.0}, "holdout must be between 0 and 1, both excluded, got 0.0"),
        ({"holdout": 1.0}, "holdout must be between 0 and 1, both excluded, got 1.0"),
        ({"seed": -1}, r"seed must be in \[0, 2\*\*32\), got -1"),
        ({"suffixes": ("jpg",)}, r"suffixes must be such as .jpg and .webp, in small letters, got \['jpg'\]"),
        ({"crop": 0.0}, "crop must be above 0 and at most 1, the whole shorter side, got 0.0"),
    ],
)
def test_config_rejects(options, message):
    with pytest.raises(ValueError, match=message):
        FolderConfig(Path(), **options)


# Broken images and links


def spoil(root: Path) -> None:
    """Adds four broken images, first and last of their classes among them, one in the test split."""
    for name in ("train/ant/00a.png", "train/bee/99.png", "train/bee/98.png", "val/ant/00.png"):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"no image")


@pytest.mark.parametrize("with_test_folder", [True, False])
def test_skipping_broken_images_equals_a_folder_without_them(tmp_path, capsys, with_test_folder):
    for root in (tmp_path / "clean", tmp_path / "spoilt"):
        tree(root, "train", ant=6, bee=5)
        if with_test_folder:
            tree(root, "val", ant=0, bee=2)
            save(plain("RGB", (0, 9, 255)), root / "val" / "ant" / "01.png")
    spoil(tmp_path / "spoilt")
    if not with_test_folder:
        shutil.rmtree(tmp_path / "spoilt" / "val")
    options = {"image_size": 4, "holdout": 0.4, "broken": "skip"}
    clean = load_folder(FolderConfig(tmp_path / "clean", **options)).in_memory()
    assert capsys.readouterr().err == ""
    spoilt = load_folder(FolderConfig(tmp_path / "spoilt", **options)).in_memory()
    for name in ("train", "test"):
        np.testing.assert_array_equal(getattr(spoilt, name).images, getattr(clean, name).images)
        np.testing.assert_array_equal(getattr(spoilt, name).labels, getattr(clean, name).labels)
    broken, images = (4, 18) if with_test_folder else (3, 14)
    first = ", ".join(str(tmp_path / "spoilt" / "train" / name) for name in ("ant/00a.png", "bee/98.png", "bee/99.png"))
    more = ", ..." if with_test_folder else ""
    assert capsys.readouterr().err == f"warning: {broken} of {images} images are broken and left out: {first}{more}\n"


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_class_without_a_whole_image_is_an_error(tmp_path, split):
    tree(tmp_path, "train", ant=2, bee=2)
    tree(tmp_path, "val", ant=1, bee=1)
    for path in (tmp_path / split / "bee").iterdir():
        damage(path, "truncated")
    with pytest.raises(ValueError, match=f"^every image in {tmp_path / split / 'bee'} is broken; add images, or "):
        load_folder(FolderConfig(tmp_path, image_size=2, broken="skip"))


def test_a_decompression_bomb_is_a_broken_image(tmp_path, capsys, monkeypatch):
    tree(tmp_path, "train", ant=3)
    tree(tmp_path, "val", ant=1)
    for name, side in (("10", 40), ("11", 50), ("12", 100)):  # at the limit, where Pillow warns, and where it raises
        save(plain("1", 1, (side, side)), tmp_path / "train" / "ant" / f"{name}.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1600)
    assert len(load_folder(FolderConfig(tmp_path, image_size=2, broken="skip")).train) == 4
    assert "warning: 2 of 7 images" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"cannot read image .*11\.png: "):
        load_folder(FolderConfig(tmp_path, image_size=2)).in_memory()


def test_links_are_followed_inside_of_the_root_which_may_be_one(tmp_path):
    tree(tmp_path / "real", "train", ant=2, bee=2)
    tree(tmp_path / "real", "val", ant=1, bee=1)
    (tmp_path / "real" / "train" / "ant" / "7.png").symlink_to("../bee/00.png")
    (tmp_path / "real" / "train" / "cow").symlink_to("bee")
    (tmp_path / "root").symlink_to("real")
    data = load_folder(FolderConfig(tmp_path / "root", image_size=2))
    assert data.classes == ("ant", "bee", "cow")
    assert content(data)["train"] == [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 1, 0), (1, 1, 1), (2, 1, 0), (2, 1, 1)]


@pytest.mark.parametrize("inside", ["train", "val", "train/ant", "train/ant/00.png"])
@pytest.mark.parametrize("broken", ["stop", "skip"])
def test_a_link_out_of_the_root_is_refused(tmp_path, inside, broken):
    root = tmp_path / "root"
    tree(root, "train", ant=2)
    tree(root, "val", ant=1)
    (root / inside).rename(tmp_path / "elsewhere")
    (root / inside).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=f"^{root / inside} is a link to {tmp_path / 'elsewhere'}, outside of {root}"):
        load_folder(FolderConfig(root, image_size=2, broken=broken))
