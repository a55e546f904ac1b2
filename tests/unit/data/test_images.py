"""The decoding rules, each tested on real files."""

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import ExifTags, Image, ImageOps

from refit.artifacts.prepared import Color, Pixels
from refit.data.images import BadImageError, decode, find_images, open_image, read_header
from refit.params.data import Resize

RANDOM = np.random.default_rng(0)
PHOTO = RANDOM.integers(0, 256, (6, 9, 3), dtype=np.uint8)


def save(path: Path, image: Image.Image | npt.NDArray[Any], **options: Any) -> Path:
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(path, **options)
    return path


def decoded(path: Path, color: Color = "rgb", size: tuple[int, int] | None = None, resize: Resize = "crop") -> Pixels:
    with open_image(path) as image:
        return decode(image, color, size, resize)


def header_and_pixels(path: Path, color: Color = "rgb") -> Pixels:
    """As in `prepare`: the header is read in one pass and the pixels in another."""
    with open_image(path) as image:
        header = read_header(image)
    pixels = decoded(path, color)
    assert pixels.shape[1:] == (header.height, header.width)
    return pixels


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


# The transform that a camera applies before it stores the image: the inverse of each EXIF rotation.
STORED = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.transpose(1, 0, 2),
    6: lambda upright: np.rot90(upright, 1),
    7: lambda upright: upright[::-1, ::-1].transpose(1, 0, 2),
    8: lambda upright: np.rot90(upright, -1),
}


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("suffix", ["png", "webp", "tif"])
def test_a_photo_is_upright_for_every_exif_orientation(suffix: str, orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    stored = np.ascontiguousarray(STORED[orientation](PHOTO))
    path = save(tmp_path / f"photo.{suffix}", stored, exif=exif, **({"lossless": True} if suffix == "webp" else {}))
    assert np.array_equal(header_and_pixels(path), PHOTO.transpose(2, 0, 1))


@pytest.mark.parametrize("orientation", STORED)
def test_a_jpeg_photo_is_upright_up_to_compression_error(orientation: int, tmp_path: Path) -> None:
    upright = np.kron(PHOTO, np.ones((16, 16, 1), np.uint8))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    stored = np.ascontiguousarray(STORED[orientation](upright))
    path = save(tmp_path / "photo.jpg", stored, exif=exif, quality=100, subsampling=0)
    assert np.abs(header_and_pixels(path).astype(int) - upright.transpose(2, 0, 1)).max() < 8


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("color", ["grey", "rgb"])
def test_16_bit_grey_keeps_its_levels(color: Color, suffix: str, tmp_path: Path) -> None:
    levels = np.arange(256, dtype=np.uint16)[None] * 257
    pixels = header_and_pixels(save(tmp_path / f"grey.{suffix}", levels), color)
    assert all(np.array_equal(channel[0], np.arange(256)) for channel in pixels)


def test_big_endian_16_bit_grey_keeps_its_levels(tmp_path: Path) -> None:
    levels = (np.arange(256, dtype=np.uint16)[None] * 257).astype(">u2")
    path = tmp_path / "grey.pgm"
    path.write_bytes(b"P5 256 1 65535\n" + levels.tobytes())
    assert np.array_equal(header_and_pixels(path, "grey")[0, 0], np.arange(256))


def test_8_bit_pixels_are_not_changed(tmp_path: Path) -> None:
    assert np.array_equal(decoded(save(tmp_path / "rgb.png", PHOTO)), PHOTO.transpose(2, 0, 1))
    assert np.array_equal(decoded(save(tmp_path / "grey.png", PHOTO[..., 0]), "grey"), PHOTO[None, ..., 0])


def palette_image() -> Image.Image:
    image = Image.new("P", (3, 1))
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    image.putdata([0, 1, 2])
    return image


@pytest.mark.parametrize("suffix", ["png", "gif", "bmp"])
def test_a_palette_image_is_converted_to_its_colours(suffix: str, tmp_path: Path) -> None:
    pixels = decoded(save(tmp_path / f"palette.{suffix}", palette_image()))
    assert pixels.transpose(1, 2, 0).tolist() == [[[255, 0, 0], [0, 255, 0], [0, 0, 255]]]


@pytest.mark.parametrize("suffix", ["png", "gif"])
def test_a_palette_s_transparent_colour_is_white(suffix: str, tmp_path: Path) -> None:
    pixels = decoded(save(tmp_path / f"palette.{suffix}", palette_image(), transparency=1))
    assert pixels.transpose(1, 2, 0).tolist() == [[[255, 0, 0], [255, 255, 255], [0, 0, 255]]]


def test_transparent_pixels_are_blended_with_white(tmp_path: Path) -> None:
    image = np.array([[[255, 0, 0, 255], [255, 0, 0, 128], [255, 0, 0, 0]]], np.uint8)
    pixels = decoded(save(tmp_path / "red.png", image))
    assert pixels.transpose(1, 2, 0).tolist() == [[[255, 0, 0], [255, 127, 127], [255, 255, 255]]]


def test_transparent_grey_is_blended_with_white_and_stays_grey(tmp_path: Path) -> None:
    image = Image.merge("LA", [Image.new("L", (2, 1), 40), Image.fromarray(np.array([[255, 0]], np.uint8))])
    path = save(tmp_path / "grey.png", image)
    with open_image(path) as opened:
        assert read_header(opened).color == "grey"
    assert decoded(path, "grey").tolist() == [[[40, 255]]]


def test_cmyk_is_converted_to_rgb(tmp_path: Path) -> None:
    path = save(tmp_path / "print.tif", Image.new("CMYK", (1, 1), (255, 0, 0, 0)))
    assert decoded(path).ravel().tolist() == [0, 255, 255]


@pytest.mark.parametrize("color", ["grey", "rgb"])
def test_lab_is_converted_to_the_requested_color(color: Color, tmp_path: Path) -> None:
    path = save(tmp_path / "lab.tif", Image.new("LAB", (2, 2), (255, 128, 128)))
    assert (decoded(path, color) >= 254).all()


@pytest.mark.parametrize("color", ["grey", "rgb"])
def test_black_and_white_stays_black_and_white(color: Color, tmp_path: Path) -> None:
    path = save(tmp_path / "fax.png", np.array([[0, 255, 0]], np.uint8) > 0)
    assert all(channel.tolist() == [[0, 255, 0]] for channel in decoded(path, color))


@pytest.mark.parametrize("suffix", ["gif", "png", "tif"])
def test_an_animation_gives_its_first_frame(suffix: str, tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "lime", "blue")]
    path = save(tmp_path / f"film.{suffix}", frames[0], save_all=True, append_images=frames[1:])
    with Image.open(path) as image:
        assert getattr(image, "n_frames", 1) == 3
    assert decoded(path)[:, 0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize(
    ("mode", "color"), [("1", "grey"), ("L", "grey"), ("I;16", "grey"), ("P", "rgb"), ("RGB", "rgb"), ("RGBA", "rgb")]
)
def test_the_header_gives_the_size_and_whether_the_image_is_grey(mode: str, color: Color, tmp_path: Path) -> None:
    with open_image(save(tmp_path / "image.png", Image.new(mode, (2, 3)))) as image:
        assert read_header(image) == (2, 3, color)


def test_an_image_is_resized_to_cover_and_cropped_at_the_centre(tmp_path: Path) -> None:
    bands = np.repeat(np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]]], np.uint8), 20, axis=1).repeat(20, axis=0)
    pixels = decoded(save(tmp_path / "wide.png", bands), size=(10, 8))
    assert pixels.shape == (3, 10, 8)
    assert pixels[:, :, 1:-1].reshape(3, -1).T.tolist() == [[0, 255, 0]] * 60
    tall = decoded(save(tmp_path / "tall.png", bands.transpose(1, 0, 2)), size=(8, 10))
    assert np.array_equal(tall, pixels.transpose(0, 2, 1))


BANDS = np.repeat(np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]]], np.uint8), 20, axis=1).repeat(20, axis=0)


def test_squash_keeps_the_whole_image_and_loses_its_aspect_ratio(tmp_path: Path) -> None:
    pixels = decoded(save(tmp_path / "wide.png", BANDS), size=(30, 30), resize="squash")
    middles = pixels[:, :, [5, 15, 25]]
    assert (middles == BANDS[0, [10, 30, 50]].T[:, None]).all()
    tall = decoded(save(tmp_path / "tall.png", BANDS.transpose(1, 0, 2)), size=(30, 30), resize="squash")
    assert np.array_equal(tall, pixels.transpose(0, 2, 1))


@pytest.mark.parametrize("color", ["grey", "rgb"])
@pytest.mark.parametrize("size", [(6, 6), (30, 30), (90, 90)])
def test_pad_keeps_the_whole_image_and_its_aspect_ratio_in_a_black_border(
    size: tuple[int, int], color: Color, tmp_path: Path
) -> None:
    white = np.full((20, 60, 3), 255, np.uint8)
    pixels = decoded(save(tmp_path / "wide.png", white), color, size, "pad")
    third = size[0] // 3
    assert pixels.shape[1:] == size
    assert not pixels[:, :third].any()
    assert not pixels[:, 2 * third :].any()
    assert (pixels[:, third : 2 * third] == 255).all()
    tall = decoded(save(tmp_path / "tall.png", white.transpose(1, 0, 2)), color, size, "pad")
    assert np.array_equal(tall, pixels.transpose(0, 2, 1))


@pytest.mark.parametrize("resize", ["crop", "squash", "pad"])
def test_an_image_of_extreme_shape_fills_the_square_in_every_way(resize: Resize, tmp_path: Path) -> None:
    for name, shape in {"line": (1, 3000), "column": (3000, 1)}.items():
        path = save(tmp_path / f"{name}.png", np.full((*shape, 3), 255, np.uint8))
        pixels = decoded(path, size=(8, 8), resize=resize)
        assert pixels.shape == (3, 8, 8)
        assert pixels.any()


@pytest.mark.parametrize("resize", ["crop", "squash", "pad"])
def test_a_square_image_is_the_same_in_every_way(resize: Resize, tmp_path: Path) -> None:
    path = save(tmp_path / "square.png", RANDOM.integers(0, 256, (40, 40, 3), dtype=np.uint8))
    assert np.array_equal(decoded(path, size=(16, 16), resize=resize), decoded(path, size=(16, 16)))


def whole(path: Path, side: int, resize: Resize) -> Pixels:
    """As `decode`, from all pixels of the file."""
    with Image.open(path) as image:
        upright = ImageOps.exif_transpose(image.convert("RGB"))
    ways: dict[str, Any] = {"crop": ImageOps.fit, "pad": ImageOps.pad, "squash": Image.Image.resize}
    return np.asarray(ways[resize](upright, (side, side), Image.Resampling.BICUBIC)).transpose(2, 0, 1)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL.TiffImagePlugin")  # Pillow only warns of missing data
@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize(
    ("resize", "side", "size"),
    [
        ("crop", 96, (150, 113)),  # an eighth, which still covers 96 x 96
        ("squash", 96, (150, 113)),
        ("squash", 120, (300, 225)),  # the shorter side decides
        ("pad", 120, (150, 113)),  # an eighth, which still holds 120 x 90
        ("pad", 151, (300, 225)),
        ("pad", 1300, (1200, 900)),
    ],
)
def test_a_large_jpeg_is_decoded_at_a_fraction_of_its_size_and_looks_the_same(
    resize: Resize, side: int, size: tuple[int, int], orientation: int, tmp_path: Path
) -> None:
    rows, columns = np.mgrid[0:900, 0:1200]
    photo = np.stack((rows // 4, columns // 5, np.abs(rows - columns) // 5), axis=2).astype(np.uint8)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    path = save(tmp_path / "large.jpg", photo, quality=95, exif=exif)
    with open_image(path) as image:
        pixels = decode(image, "rgb", (side, side), resize)
        assert image.size == size
    assert np.abs(pixels.astype(int) - whole(path, side, resize)).mean() < 2


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "tif", "webp", "bmp", "ppm", "pgm"])
def test_a_truncated_file_is_a_bad_image(suffix: str, tmp_path: Path) -> None:
    photo = Image.fromarray(RANDOM.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    path = save(tmp_path / f"photo.{suffix}", photo.convert("L") if suffix == "pgm" else photo)
    content = path.read_bytes()
    for kept in (len(content) // 2, 40, 20, 4):
        path.write_bytes(content[:kept])
        with pytest.raises(BadImageError):
            decoded(path)


def test_a_truncated_jpeg_is_bad_although_pillow_verifies_it(tmp_path: Path) -> None:
    """The reason why images are decoded and not only verified."""
    path = save(tmp_path / "photo.jpg", RANDOM.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with Image.open(path) as image:
        image.verify()
    with pytest.raises(BadImageError, match="truncated"):
        decoded(path)


def test_a_photo_with_exif_data_that_pillow_cannot_rewrite_is_upright(tmp_path: Path) -> None:
    """Its description is a fraction, so ImageOps.exif_transpose, which rewrites it, raises AttributeError."""
    entries = struct.pack("<HHII", 0x010E, 5, 1, 38) + struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0)
    content = struct.pack("<H", 2) + entries + struct.pack("<I", 0) + struct.pack("<II", 1, 1)
    exif = b"Exif\0\0II*\0" + struct.pack("<I", 8) + content
    path = save(tmp_path / "photo.jpg", Image.new("RGB", (16, 8)), exif=exif)
    with open_image(path) as image, pytest.raises(AttributeError):
        ImageOps.exif_transpose(image)
    assert decoded(path).shape == (3, 16, 8)


NO_IMAGES = {
    "text.png": b"This is not an image.\n",
    "empty.jpg": b"",
    "header.png": b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", bytes(8)),
    "numbers.pgm": b"P2\n2 2\n255\n1 2 three 4\n",
    "few.pgm": b"P2\n2 2\n255\n1 2\n",
    "size.ppm": b"P6\n2 two\n255\n",
}


@pytest.mark.parametrize("name", NO_IMAGES)
def test_a_file_that_is_not_an_image_is_a_bad_image_whatever_its_name(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(NO_IMAGES[name])
    with pytest.raises(BadImageError) as raised:
        decoded(tmp_path / name)
    assert str(tmp_path) not in str(raised.value)  # the message is the same on every machine


def test_postscript_is_never_opened_whatever_its_name(tmp_path: Path) -> None:
    """Pillow would pass the file to Ghostscript."""
    (tmp_path / "photo.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n")
    with pytest.raises(BadImageError, match="not a recognised image format"):
        decoded(tmp_path / "photo.png")


def test_a_missing_file_is_a_bad_image(tmp_path: Path) -> None:
    with pytest.raises(BadImageError) as raised:
        open_image(tmp_path / "gone.png")
    assert str(raised.value) == "No such file or directory"


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")  # for the smaller one Pillow only warns
@pytest.mark.parametrize("side", [12_000, 20_000])
def test_too_many_pixels_are_refused_before_they_are_decoded(side: int, tmp_path: Path) -> None:
    """The file contains no pixels at all: decoding it would give another error."""
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    (tmp_path / "bomb.png").write_bytes(content)
    with pytest.raises(BadImageError, match="pixels"):
        decoded(tmp_path / "bomb.png")


@pytest.mark.parametrize(
    ("pixels", "kind"),
    [
        (np.array([[0.0, 0.5]], np.float32), "32-bit float"),
        (np.array([[0, 70_000]], np.int32), "32-bit integer"),
        (np.array([[-1, 70]], np.int32), "32-bit integer"),
    ],
)
def test_pixels_without_an_agreed_range_are_refused(pixels: npt.NDArray[Any], kind: str, tmp_path: Path) -> None:
    path = save(tmp_path / "science.tif", pixels)
    with pytest.raises(BadImageError, match=f"{kind} pixels have no agreed range"):
        decoded(path)


def test_images_are_found_in_order_without_hidden_files_and_linked_folders(tmp_path: Path) -> None:
    for name in ("b/2.PNG", "b/10.jpg", "a/1.png", "c.tiff", ".hidden/1.png", "a/.1.png", "a/notes.txt", "a/png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "a/loop").symlink_to(tmp_path, target_is_directory=True)
    found = [path.relative_to(tmp_path).as_posix() for path in find_images(tmp_path)]
    assert found == ["c.tiff", "a/1.png", "b/10.jpg", "b/2.PNG"]
