"""Images that stay encoded: windows, the centre crop, one way for files and bytes, threads and processes."""

from __future__ import annotations

import io
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shuffle_jax.data.encoded import Encoded, Record, read_image

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (24, 40, 3), dtype=np.uint8)


def encode(pixels: np.ndarray, form: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form, **options)
    return file.getvalue()


def smooth(height: int, width: int) -> np.ndarray:
    """A picture without detail, by which reduced decoding must not show."""
    coarse = Image.fromarray(RNG.integers(0, 256, (9, 9, 3), dtype=np.uint8))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))


def records(count: int = 7) -> list[Record]:
    return [Record(f"picture {i}", encode(np.roll(PIXELS, i, axis=1)), i % 3) for i in range(count)]


def test_a_file_and_its_bytes_are_one_image(tmp_path):
    (tmp_path / "a.png").write_bytes(encode(PIXELS))
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", 9), read_image(encode(PIXELS), 9))


@pytest.mark.parametrize(("top", "left"), [(0, 0), (3, 7), (8, 24)])
def test_a_window_of_the_size_asked_for_is_a_copy_of_its_pixels(top, left):
    window = read_image(encode(PIXELS), 16, window=lambda height, width: (top, left, 16, 16))
    np.testing.assert_array_equal(window, PIXELS[top : top + 16, left : left + 16])


def test_a_window_is_stretched_to_a_square():
    """Of an area whose levels rise with the row alone, a window of any width has the same rows."""
    ramp = np.repeat(np.arange(0, 240, 4, dtype=np.uint8)[:, None, None], 50, axis=1).repeat(3, axis=2)
    wide, narrow = (
        read_image(encode(ramp), 8, window=lambda h, w, wide=wide: (10.5, 2, 32, wide)).astype(int) for wide in (40, 11)
    )
    assert np.abs(wide - narrow).max() <= 1
    centres = 4 * (10.5 + 4 * (np.arange(8) + 0.5) - 0.5)  # of rows four pixels high, on a ramp of 4 a pixel
    assert np.abs(wide[1:-1, 0, 0] - centres[1:-1]).max() <= 1


def test_a_window_is_called_once_with_the_size_of_the_upright_picture():
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side
    sizes = []

    def whole(height: int, width: int) -> tuple[float, float, float, float]:
        sizes.append((height, width))
        return 0, 0, height, width

    for scale in (1, 40):  # as it is, and decoded at a part of its size
        read_image(encode(smooth(24 * scale, 41 * scale), "JPEG", exif=exif), 10, window=whole)
    assert sizes == [(41, 24), (41 * 40, 24 * 40)]


@pytest.mark.parametrize("area", [(0, 0, 1, 1), (0.3, 0.1, 0.6, 0.5), (0.25, 0.5, 0.4, 0.5), (0.9, 0.9, 0.1, 0.1)])
def test_a_reduced_jpeg_shows_the_same_window_as_the_whole(area):
    """997 x 1203 pixels are no multiple of what a JPEG is reduced by."""

    def window(height: int, width: int) -> tuple[float, float, float, float]:
        return area[0] * height, area[1] * width, area[2] * height, area[3] * width

    pixels = smooth(997, 1203)
    reduced = read_image(encode(pixels, "JPEG", quality=98), 48, window=window)
    exact = read_image(encode(pixels), 48, window=window)
    assert np.abs(reduced.astype(int) - exact).max() <= 12


def test_a_jpeg_is_reduced_only_as_far_as_its_window_stays_twice_the_size(monkeypatch):
    from PIL.JpegImagePlugin import JpegImageFile

    asked = []
    draft = JpegImageFile.draft
    monkeypatch.setattr(JpegImageFile, "draft", lambda file, mode, size: asked.append(size) or draft(file, mode, size))
    data = encode(smooth(800, 1600), "JPEG")
    for side, reduced in ((800, 8), (799, 4), (400, 4), (399, 2), (200, 2), (199, 1)):
        asked.clear()
        read_image(data, 50, window=lambda h, w, side=side: (0, 0, side, 1600))
        assert asked == ([(1600 // reduced, 800 // reduced)] if reduced > 1 else [])


def test_crop_is_imagenets_centre():
    """Of a shorter side of 16 pixels, 14 of 16 are kept as they are: 224 of 256 in small."""
    pixels = RNG.integers(0, 256, (16, 30, 3), dtype=np.uint8)
    np.testing.assert_array_equal(read_image(encode(pixels), 14, crop=0.875), pixels[1:15, 8:22])
    wide = smooth(160, 300)
    resized = Image.fromarray(wide).resize((30, 16), Image.Resampling.BICUBIC)  # shorter side first, then the centre
    expected = np.asarray(resized)[1:15, 8:22].astype(int)
    assert np.abs(read_image(encode(wide), 14, crop=0.875) - expected).max() <= 1


@pytest.mark.parametrize("crop", [0.875, 0.3, 0.01])
@pytest.mark.parametrize("shape", [(1, 1), (1, 30), (33, 50), (200, 7)])
def test_every_crop_of_every_shape_is_a_square(shape, crop):
    colour = np.broadcast_to(np.array((200, 30, 20), np.uint8), (*shape, 3))
    np.testing.assert_array_equal(read_image(encode(colour), 5, crop=crop), np.broadcast_to(colour[0, 0], (5, 5, 3)))


def test_grey_is_brightness_and_grey_pictures_keep_their_levels():
    weights = np.array([299, 587, 114]) / 1000  # ITU-R 601
    grey = read_image(encode(PIXELS), 24, 1)
    assert grey.shape == (24, 24, 1)
    np.testing.assert_allclose(grey[..., 0], PIXELS[:, 8:32] @ weights, atol=1)
    levels = PIXELS[:, :24, 0]
    np.testing.assert_array_equal(read_image(encode(levels), 24, 1)[..., 0], levels)


def test_take_reads_what_read_reads_in_any_order_and_more_than_once():
    split = Encoded(records(), 10)
    positions = np.array([5, 0, 5, 2])
    images, labels = split.take(positions)
    assert (images.shape, images.dtype, labels.dtype) == ((4, 10, 10, 3), np.uint8, np.int32)
    for position, image, label in zip(positions.tolist(), images, labels, strict=True):
        expected, expected_label = split.read(position)
        np.testing.assert_array_equal(image, expected)
        assert label == expected_label
    assert (len(split), split.image_shape) == (7, (10, 10, 3))
    assert [label for _, label in split] == [0, 1, 2, 0, 1, 2, 0]  # a sequence, to its end


def test_threads_and_pickling_change_nothing():
    split = Encoded(records(), 10)
    again = pickle.loads(pickle.dumps(split))
    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(lambda i: again.read(i % 7)[0], range(70)))
    for index, image in enumerate(read):
        np.testing.assert_array_equal(image, split.read(index % 7)[0])


def test_grain_reads_the_records_and_the_images():
    grain = pytest.importorskip("grain")
    split = Encoded(records(), 6)
    for source, expected in ((split.records, records()), (split, [split[i] for i in range(7)])):
        found = list(grain.MapDataset.source(source))
        for row, other in zip(found, expected, strict=True):
            for value, wanted in zip(row, other, strict=True):
                np.testing.assert_array_equal(value, wanted)


@pytest.mark.parametrize(
    ("content", "remedy"),
    [(b"no image", "prepare the data set again"), (Path("none.png"), "repair or remove the file")],
)
def test_a_broken_image_is_named_by_its_record(content, remedy):
    split = Encoded([*records(2), Record("the third", content, 0)], 4)
    for read in (lambda: split.read(2), lambda: split.take(np.arange(3)), lambda: split[2]):
        with pytest.raises(ValueError, match=f"^cannot read image the third: [^\n]*; {remedy}$"):
            read()


def test_a_window_outside_of_the_picture_is_not_filled_up(monkeypatch):
    """Rounding may lead out of the picture by a little; the window then ends with it."""
    beyond = np.nextafter(24, 25)
    image = read_image(encode(PIXELS), 8, window=lambda h, w: (-1e-12, 0, beyond, beyond))
    np.testing.assert_array_equal(image, read_image(encode(PIXELS), 8, window=lambda h, w: (0, 0, 24, 24)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "a size from 1, got 3 and 0"),
        ({"size": 4, "channels": 2}, "images must have 1 or 3 channels"),
        ({"size": 4, "crop": 0.0}, "crop must be above 0 and at most 1, the whole shorter side, got 0.0"),
        ({"size": 4, "crop": 1.5}, "crop must be above 0 and at most 1, the whole shorter side, got 1.5"),
        ({"size": 4, "records": []}, "a split needs at least one image, got none; add images"),
    ],
)
def test_what_cannot_be_read_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Encoded(**{"records": records(1), **options})
