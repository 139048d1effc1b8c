"""Splits whose images stay encoded, in files or in records, until they are asked for; threads decode them."""

from __future__ import annotations

import io
import operator
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol, SupportsIndex, TypeAlias, TypeVar

import numpy as np

from shuffle_jax.data.vary import Variants
from shuffle_jax.sharding import cores
from shuffle_jax.typing import Int, UInt8

if TYPE_CHECKING:
    from PIL import Image

Window: TypeAlias = Callable[[int, int], tuple[float, float, float, float]]
"""From the height and width of an upright picture to (top, left, height, width) of a part of it, all in pixels."""

_ORIENTATION = 0x0112
_TURNED = (5, 6, 7, 8)
"""Values of the EXIF orientation whose upright picture is as high as the stored one is wide."""

_WIDE = ("PNG", "PPM")
"""Formats whose grey levels of 16 bits Pillow may give as integers of 32."""

_MOST = 65535

_Value = TypeVar("_Value")
_Result = TypeVar("_Result")


class Record(NamedTuple):
    """An encoded image with its label."""

    name: str
    """What a message calls it."""
    content: Path | bytes
    """A file that holds it, or the bytes of such a file."""
    label: int


class Records(Protocol):
    """Encoded images that are read by position, by several threads and, pickled, by several processes."""

    def __len__(self) -> int:
        """How many there are."""

    def __getitem__(self, position: SupportsIndex, /) -> Record:
        """The one at a position; IndexError beyond the last."""


@dataclass(frozen=True, eq=False)
class Encoded:
    """Square images of one size, each decoded when it is asked for.

    Args:
        records: the encoded images and their labels.
        size: side of the images in pixels.
        channels: 3 for red, green and blue, 1 for brightness.
        crop: the share of a picture's shorter side that is kept, in (0, 1]. The shorter side is resized to
            ``round(size / crop)`` pixels and the centre is kept: 1 keeps all of it, 0.875 is ImageNet's 224 of 256.
        vary: what is then changed in each image.

    Raises:
        ValueError: there are no records, or a value is out of its range.
    """

    records: Records
    size: int
    channels: int = 3
    crop: float = 1.0
    vary: Variants | None = None

    def __post_init__(self) -> None:
        if self.size < 1 or self.channels not in (1, 3):
            raise ValueError(f"images must have 1 or 3 channels and a size from 1, got {self.channels} and {self.size}")
        check_crop(self.crop)
        if not len(self.records):
            raise ValueError("a split needs at least one image, got none; add images")

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: SupportsIndex) -> tuple[UInt8[np.ndarray, "h w c"], np.int32]:
        image, label = self.read(operator.index(index))
        return image, np.int32(label)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of every image."""
        return self.size, self.size, self.channels

    def take(self, positions: Int[np.ndarray, "m"]) -> tuple[UInt8[np.ndarray, "m h w c"], Int[np.ndarray, "m"]]:
        """The images at some positions, and their int32 labels.

        Raises:
            ValueError: an image is broken.
        """
        images = np.empty((len(positions), *self.image_shape), np.uint8)
        labels = np.empty(len(positions), np.int32)

        def fill(row: int) -> None:
            images[row], labels[row] = self.read(int(positions[row]))

        with bombs_are_errors():
            in_threads(fill, range(len(positions)))
        return images, labels

    def read(self, position: int, window: Window | None = None) -> tuple[UInt8[np.ndarray, "h w c"], int]:
        """The image at a position and its label, see :func:`read_image`.

        Args:
            position: in [0, len(self)).
            window: the part of the picture to take, called once; by default the centre, as ``crop`` says.

        Raises:
            ValueError: the image is broken.
        """
        name, content, label = self.records[position]
        image = read_image(content, self.size, self.channels, crop=self.crop, window=window, name=name)
        return image if self.vary is None else self.vary(image, position), label


def read_image(
    content: Path | bytes,
    size: int,
    channels: int = 3,
    *,
    crop: float = 1.0,
    window: Window | None = None,
    name: str | None = None,
) -> UInt8[np.ndarray, "size size c"]:
    """Reads an encoded image as a square one.

    The image is turned upright by its EXIF orientation; the window is resized to ``size`` (bicubic, with
    antialiasing). Grey levels are repeated over three channels, transparency is dropped, and of several frames the
    first is read. Of 16 bits the upper 8 are kept. Of 32 bits, integers or floats, the values say the range, the
    smallest of [0, 1] (floats alone), [0, 255] and [0, 65535] that holds them all; other values are refused.

    Args:
        content: a file in any format and mode that Pillow reads, or its bytes.
        size: side of the result in pixels, at least 1.
        channels: 3 for red, green and blue, 1 for brightness.
        crop: the share of the shorter side that is kept, see :class:`Encoded`.
        window: the part of the upright picture to take, whatever its proportions, called once; by default the centre.
        name: what a message calls the image; the name of the file by default.

    Returns:
        uint8 (size, size, channels).

    Raises:
        ValueError: the image is not complete and readable.
    """
    from PIL import Image, ImageOps

    centre = _centre(size, crop)
    try:
        with Image.open(io.BytesIO(content) if isinstance(content, bytes) else content) as file:
            if Image.MAX_IMAGE_PIXELS is not None and file.width * file.height > Image.MAX_IMAGE_PIXELS:
                raise ValueError(f"{file.width}x{file.height} pixels are more than {Image.MAX_IMAGE_PIXELS}")
            width, height = file.size
            if file.getexif().get(_ORIENTATION) in _TURNED:
                width, height = height, width
            part = (window or centre)(height, width)
            _draft(file, min(part[2:]) / (2 * size))
            image = _eight_bits(ImageOps.exif_transpose(file), wide=file.format in _WIDE)
    except Exception as error:  # OSError, SyntaxError, struct.error and whatever else a decoder raises
        if isinstance(content, bytes):
            file_name, remedy = "of some bytes", "prepare the data set again"
        else:
            file_name, remedy = str(content), "repair or remove the file"
        if isinstance(error, _Range):
            remedy = "scale them, or save it with 8 or 16 bits"
        raise ValueError(f"cannot read image {name or file_name}: {error}; {remedy}") from error
    if window is None:  # The centre of what was decoded: a reduced side is rounded up.
        part = centre(image.height, image.width)
    else:
        down, right = image.height / height, image.width / width
        part = (part[0] * down, part[1] * right, part[2] * down, part[3] * right)
    top, left, high, wide = part
    # Rounding must not lead out of the picture, by however little.
    box = (max(left, 0), max(top, 0), min(left + wide, image.width), min(top + high, image.height))
    square = image.resize((size, size), Image.Resampling.BICUBIC, box=box)
    return np.asarray(square) if channels == 3 else np.asarray(square.convert("L"))[..., None]


def check_crop(crop: float) -> None:
    """Raises ValueError unless ``crop`` is in (0, 1]."""
    if not 0 < crop <= 1:
        raise ValueError(f"crop must be above 0 and at most 1, the whole shorter side, got {crop}")


@contextmanager
def bombs_are_errors() -> Iterator[None]:
    """Makes an error of Pillow's warning about a picture with too many pixels, which would come beside ours.

    Around the threads that open images and not within: the filters of warnings are those of all threads.
    """
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


_AT_ONCE = 1 << 14
"""Values that wait for a thread at a time: each takes 2 kB while it waits, of a million images more than some have."""


def in_threads(function: Callable[[_Value], _Result], values: Sequence[_Value]) -> list[_Result]:
    """``[function(v) for v in values]`` on all cores: Pillow reads and resizes without the interpreter's lock.

    The first exception in the order of the values ends it.
    """
    with ThreadPoolExecutor(cores()) as pool:
        try:
            parts = (values[start : start + _AT_ONCE] for start in range(0, len(values), _AT_ONCE))
            return [result for part in parts for result in pool.map(function, part)]
        except BaseException:  # Ctrl-C or a broken image: do not read all the others first.
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _centre(size: int, crop: float) -> Window:
    """The square in the centre that is ``size`` pixels wide where the shorter side has ``round(size / crop)``."""
    share = size / round(size / crop)

    def window(height: int, width: int) -> tuple[float, float, float, float]:
        side = share * min(height, width)
        return (height - side) * 0.5, (width - side) * 0.5, side, side

    return window


class _Range(ValueError):
    """Values that no range is known for."""


def _eight_bits(image: Image.Image, wide: bool) -> Image.Image:
    """A picture in red, green and blue of 8 bits each, by the rule of :func:`read_image`.

    Args:
        image: of any mode.
        wide: whether 32-bit integers are those of a format of 16 bits.
    """
    from PIL import Image

    if image.mode == "F" or image.mode.startswith("I"):
        values = np.asarray(image)
        least, most = values.min(), values.max()
        if not (least >= 0 and most <= _MOST):  # NaN too
            kind = "floats" if image.mode == "F" else "integers"
            reach = f"32-bit {kind} from {least:g} to {most:g}"
            raise _Range(f"its values must lie in [0, 255] or [0, 65535], or floats in [0, 1], got {reach}")
        if image.mode == "F" and most <= 1:
            values = np.round(values * 255)
        elif wide or image.mode.startswith("I;16") or most > 255:
            values = values.astype(np.int32) >> 8
        else:
            values = np.round(values)
        image = Image.fromarray(values.astype(np.uint8))
    elif image.mode == "La":  # which Pillow converts to its relative alone
        image = image.convert("LA")
    elif "transparency" in image.info:
        image = image.convert("RGBA")
    return image if image.mode == "RGB" else image.convert("RGB")


def _draft(file: Image.Image, reduction: float) -> None:
    """Has a JPEG decoded at 1/2, 1/4 or 1/8 of its size, the smallest of them that reduces by ``reduction`` at most."""
    scale = next((scale for scale in (8, 4, 2) if scale <= reduction), 1)
    if scale > 1:
        file.draft("RGB", (file.width // scale, file.height // scale))
