"""One decoder reads every mode, size and orientation, and names what it cannot read."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shuffle_jax.data.encoded import read_image

RED, GREEN, BLUE = (200, 30, 20), (20, 180, 40), (10, 40, 220)
ORIENTATION = 0x0112


def plain(mode: str, colour, size: tuple[int, int] = (9, 7)) -> Image.Image:
    return Image.new(mode, size, colour)


def save(image: Image.Image, path: Path, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return path


@pytest.mark.parametrize(
    ("image", "name", "expected"),
    [
        (plain("1", 1), "bits.png", (255, 255, 255)),
        (plain("L", 120), "grey.png", (120, 120, 120)),
        (plain("LA", (120, 10)), "grey-alpha.png", (120, 120, 120)),
        (plain("RGB", RED), "colour.png", RED),
        (plain("RGBA", (*GREEN, 7)), "alpha.png", GREEN),
        (plain("RGB", BLUE).quantize(4), "palette.png", BLUE),
        (Image.fromarray(np.full((5, 8), 0x80FF, np.uint16)), "grey16.png", (128, 128, 128)),
        (Image.fromarray(np.full((5, 8), 0xFFFF, np.uint16)), "white16.png", (255, 255, 255)),
        (plain("L", 77), "grey.jpg", (77, 77, 77)),
        (plain("RGB", GREEN), "colour.jpeg", GREEN),
        (plain("RGB", RED).convert("CMYK"), "cmyk.jpg", RED),
        (plain("RGB", RED).convert("CMYK"), "cmyk.tif", RED),
        (plain("RGBA", (*GREEN, 7)), "alpha.tif", GREEN),
        (plain("RGB", BLUE).quantize(4), "palette.gif", BLUE),
        (plain("RGB", GREEN), "colour.webp", GREEN),
        (Image.fromarray(np.full((5, 8), 0x80FF, np.uint16)), "grey16.tif", (128, 128, 128)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_mode_becomes_rgb(tmp_path, image, name, expected):
    path = save(image, tmp_path / name)
    with Image.open(path) as file:
        assert file.mode == ("I;16" if "16" in name else image.mode)  # the file holds what the case promises
    result = read_image(path, 4)
    assert result.shape == (4, 4, 3)
    assert result.dtype == np.uint8
    tolerance = 0 if path.suffix == ".png" else 4
    assert np.abs(result.astype(int) - np.array(expected)).max() <= tolerance


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.int32([0, 7, 255]), [0, 7, 255]),
        (np.int32([0, 256, 65535]), [0, 1, 255]),
        (np.float32([0, 0.5, 1]), [0, 128, 255]),
        (np.float32([0, 7.4, 255]), [0, 7, 255]),
        (np.float32([0, 300, 65535]), [0, 1, 255]),
        (np.uint16([0, 7, 255]), [0, 0, 0]),
        (np.int32([0, 1 << 24, 3]), "integers from 0 to 1.67772e+07"),
        (np.int32([0, -1, 3]), "integers from -1 to 3"),
        (np.float32([0, -0.5, 1]), "floats from -0.5 to 1"),
        (np.float32([0, np.nan, 1]), "floats from nan to nan"),
        (np.float32([0, 1, 7e4]), "floats from 0 to 70000"),
    ],
    ids=lambda value: value if isinstance(value, str) else str(np.asarray(value).dtype),
)
def test_values_of_32_bits_have_the_smallest_range_that_holds_them_all_or_are_refused(tmp_path, values, expected):
    path = save(Image.fromarray(np.tile(values, (3, 1))), tmp_path / "a.tif")
    if isinstance(expected, str):
        with pytest.raises(
            ValueError, match=f"^cannot read image .*a.tif: .*, got 32-bit {re.escape(expected)}; scale"
        ):
            read_image(path, 3)
    else:
        np.testing.assert_array_equal(read_image(path, 3), np.tile(np.array(expected)[:, None], (3, 1, 3)))


def test_sixteen_bits_keep_their_upper_eight(tmp_path):
    levels = np.arange(0, 1 << 16, 1 << 10, dtype=np.uint16).reshape(8, 8)
    result = read_image(save(Image.fromarray(levels), tmp_path / "ramp.png"), 8)
    np.testing.assert_array_equal(result, np.repeat((levels >> 8)[..., None], 3, axis=2))


@pytest.mark.parametrize("transparency", [0, bytes([0, 128])])
def test_palette_with_transparency_keeps_its_colours(tmp_path, transparency):
    image = plain("P", 0)
    image.putpalette([*RED, *GREEN])
    result = read_image(save(image, tmp_path / "clear.png", transparency=transparency), 3)
    np.testing.assert_array_equal(result, np.broadcast_to(RED, (3, 3, 3)))


@pytest.mark.parametrize("size", [1, 4, 6, 11])
@pytest.mark.parametrize("shape", [(6, 6), (5, 17), (17, 5), (1, 1), (1, 30), (33, 50)])
def test_every_size_becomes_a_square(tmp_path, shape, size):
    result = read_image(save(plain("RGB", RED, shape), tmp_path / "image.png"), size)
    np.testing.assert_array_equal(result, np.broadcast_to(RED, (size, size, 3)))


def test_an_image_of_the_right_size_is_unchanged(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    np.testing.assert_array_equal(read_image(save(Image.fromarray(pixels), tmp_path / "a.png"), 6), pixels)


@pytest.mark.parametrize("wide", [True, False])
def test_the_centre_is_kept(tmp_path, wide):
    pixels = np.random.default_rng(1).integers(0, 256, (6, 14, 3), dtype=np.uint8)
    centre = pixels[:, 4:10]
    if not wide:
        pixels, centre = pixels.swapaxes(0, 1), centre.swapaxes(0, 1)
    np.testing.assert_array_equal(read_image(save(Image.fromarray(pixels), tmp_path / "a.png"), 6), centre)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_reduction_is_antialiased(tmp_path, suffix):
    """Stripes of one pixel, alternately black and white, become grey and not a pattern."""
    stripes = np.zeros((320, 320), np.uint8)
    stripes[:, ::2] = 255
    result = read_image(save(Image.fromarray(stripes), tmp_path / f"stripes.{suffix}"), 10)
    assert np.abs(result[:, 1:-1].astype(int) - 128).max() <= 3


def test_a_large_jpeg_is_not_softened_by_reduced_decoding(tmp_path):
    coarse = Image.fromarray(np.random.default_rng(2).integers(0, 256, (100, 100, 3), dtype=np.uint8))
    photo = save(coarse.resize((800, 800), Image.Resampling.BICUBIC), tmp_path / "photo.jpg", quality=95)
    with Image.open(photo) as file:  # the same pixels in a format that is always decoded in full
        exact = read_image(save(file.convert("RGB"), tmp_path / "photo.png"), 100)
    difference = read_image(photo, 100).astype(int) - exact.astype(int)
    assert np.abs(difference).mean() < 2


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("name", "scale"), [("photo.jpg", 16), ("photo.jpg", 160), ("photo.png", 16)])
def test_images_are_turned_upright(tmp_path, orientation, name, scale):
    """Four colours in the corners, stored in each of the eight ways that a camera may be held."""
    upright = Image.fromarray(np.array([[RED, GREEN], [BLUE, (255, 255, 255)]], np.uint8))
    upright = upright.resize((2 * scale, 2 * scale), Image.Resampling.NEAREST)
    stored = {  # the inverse of what the orientation tells the reader to do
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    image = upright if stored is None else upright.transpose(stored)
    result = read_image(save(image, tmp_path / name, exif=exif), 8).astype(int)
    corners = result[[0, 0, 7, 7], [0, 7, 0, 7]]
    assert np.abs(corners - np.array([RED, GREEN, BLUE, (255, 255, 255)])).max() <= 20


def damage(path: Path, how: str) -> Path:
    data = path.read_bytes()
    path.write_bytes({"empty": b"", "text": b"no image", "truncated": data[: len(data) // 2]}[how])
    return path


@pytest.mark.parametrize("how", ["empty", "text", "truncated"])
@pytest.mark.parametrize("name", ["bad.png", "bad.jpg"])
def test_a_damaged_image_is_named(tmp_path, name, how):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    path = damage(save(Image.fromarray(pixels), tmp_path / name), how)
    with pytest.raises(ValueError, match=f"^cannot read image {path}: .*; repair or remove the file$"):
        read_image(path, 8)
