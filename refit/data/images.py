"""Decode image files to pixels. `prepare` and `predict` use the same rules.

EXIF orientation is applied. An animation gives its first frame. 16-bit grey is scaled to 8 bits. Transparency is
composited over white. Pillow converts all other modes. The image is brought to the target size as `data.resize` says.
"""

import math
import os
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from refit.artifacts.prepared import Color, Pixels
from refit.params.data import Resize
from refit.runtime.errors import UserError

MAX_PIXELS = 128 * 2**20  # half a GiB as decoded RGBA: a larger file is a decompression bomb rather than a photo
_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
NO_IMAGE = f"its name does not end in {', '.join(sorted(_SUFFIXES))}"
"""Why find_images leaves a file out."""
_GREY_MODES = frozenset({"1", "L", "LA", "I", "I;16", "I;16B", "I;16L"})
# Not every format that Pillow reads: one of its parsers starts Ghostscript.
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
# Pillow warns of a fault that it gets over, without the file's name: either the pixels can be read, or it is an error.
warnings.filterwarnings("ignore", module=r"PIL\.")
_TRANSPOSES = {  # by EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class BadImageError(UserError):
    """An image that cannot be decoded; the message says why."""


class Header(NamedTuple):
    """What an image file states before its pixels are decoded."""

    width: int
    """Pixels, after EXIF orientation."""
    height: int
    color: Color

    @property
    def size(self) -> tuple[int, int]:
        return self.height, self.width


def find_images(folder: Path) -> Iterator[Path]:
    """Image files below a folder, sorted. Hidden files are skipped, and linked folders too: they may form loops."""
    return (path for path in _visible_files(folder) if has_image_suffix(path.name))


def find_others(folder: Path) -> Iterator[Path]:
    """The files below a folder that find_images leaves out, without the hidden ones, sorted."""
    return (path for path in _visible_files(folder) if not has_image_suffix(path.name))


def _visible_files(folder: Path) -> Iterator[Path]:
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(parent, name) for name in sorted(files) if not name.startswith("."))


def has_image_suffix(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in _SUFFIXES  # noqa: PTH122, ten times as fast as a Path


def open_image(source: Path | bytes) -> Image.Image:
    """Open an image file, or its content, without decoding its pixels. Raises BadImageError."""
    with _translate_pillow_errors():
        if isinstance(source, Path) and not stat.S_ISREG(source.stat().st_mode):
            raise BadImageError("it is no regular file")  # to open a pipe waits for its writer
        return Image.open(BytesIO(source) if isinstance(source, bytes) else source, formats=_FORMATS)


def read_header(image: Image.Image) -> Header:
    """Size and colour of an opened image. Raises BadImageError if it has too many pixels."""
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise BadImageError(f"{width} x {height} pixels exceed the limit of {MAX_PIXELS}")
    with _translate_pillow_errors():
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    if orientation in (5, 6, 7, 8) and image.format != "TIFF":  # rotated; for a TIFF, Pillow has swapped the size
        width, height = height, width
    return Header(width, height, "grey" if image.mode in _GREY_MODES else "rgb")


def decode(image: Image.Image, color: Color, size: tuple[int, int] | None, resize: Resize) -> Pixels:
    """Pixels of an opened image: uint8 (C, H, W), C = 1 for grey and 3 for rgb, brought to `size` (H, W) as `resize`
    says, unless it is None.

    Raises BadImageError if the pixels cannot be read.
    """
    read_header(image)
    with _translate_pillow_errors():
        if size is not None:
            # A JPEG can be decoded at a half, a quarter or an eighth of its size, which takes a fraction of the time.
            image.draft(None, _least_size(image, max(size), resize))
        image.load()
        # Not ImageOps.exif_transpose: it also rewrites the EXIF data, and fails on data that it cannot write.
        transpose = _TRANSPOSES.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    if transpose is not None:
        image = image.transpose(transpose)
    image = _to_eight_bits(image, color)
    if size is not None:
        image = _resized(image, size, resize)
    pixels = np.asarray(image)
    return np.ascontiguousarray(pixels[None] if color == "grey" else pixels.transpose(2, 0, 1))


def _least_size(image: Image.Image, side: int, resize: Resize) -> tuple[int, int]:
    """Width and height, in pixels, from which the opened image is only made smaller; before EXIF orientation, so the
    target is taken as a square of its longer side."""
    if resize != "pad":  # each side of the image has to fill a side of the target
        return side, side
    width, height = image.size
    return math.ceil(side * width / max(image.size)), math.ceil(side * height / max(image.size))


def _resized(image: Image.Image, size: tuple[int, int], resize: Resize) -> Image.Image:
    """The upright image, L or RGB, in `size` (H, W)."""
    height, width = size
    if resize == "crop":
        return ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC)
    if resize == "squash":
        return image.resize((width, height), Image.Resampling.BICUBIC)
    scale = min(width / image.width, height / image.height)
    inside = max(1, round(scale * image.width)), max(1, round(scale * image.height))
    padded = Image.new(image.mode, (width, height))  # black
    padded.paste(image.resize(inside, Image.Resampling.BICUBIC), ((width - inside[0]) // 2, (height - inside[1]) // 2))
    return padded


def _to_eight_bits(image: Image.Image, color: Color) -> Image.Image:
    mode = "L" if color == "grey" else "RGB"
    if image.mode == "F":
        raise BadImageError("32-bit float pixels have no agreed range; convert the image to 8 or 16 bits")
    if image.mode.startswith("I"):  # convert() would clip 16-bit values at 255
        wide = np.asarray(image).astype(np.int64)
        if wide.min() < 0 or wide.max() > 65535:
            raise BadImageError("32-bit integer pixels have no agreed range; convert the image to 8 or 16 bits")
        image = Image.fromarray((wide // 257).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    if image.mode not in ("L", "RGB"):  # Pillow cannot convert some modes to grey directly
        image = image.convert("RGB")
    return image if image.mode == mode else image.convert(mode)


@contextmanager
def _translate_pillow_errors() -> Iterator[None]:
    """Raise BadImageError in place of any exception that Pillow's parsers raise for a damaged file."""
    try:
        yield
    except MemoryError:  # not caused by the image, so the image must not be skipped
        raise
    except Exception as error:  # noqa: BLE001, they raise TypeError, struct.error and more
        raise BadImageError(_reason(error)) from None


def _reason(error: Exception) -> str:
    """Pillow's message, without the object addresses and absolute paths that some messages contain."""
    if isinstance(error, UnidentifiedImageError):
        return "not a recognised image format"
    return (isinstance(error, OSError) and error.strerror) or str(error)
