"""`prepare` on JPEG files, against bare decoding: open, convert and fit with Pillow, in one process per core.

python -m benchmarks.prepare [--rounds 5]
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image, ImageOps
from sklearn.datasets import load_sample_images

from benchmarks.compare import Result, command_line, compare, interleave
from refit.data.pack import pack
from refit.data.sources.open import open_source
from refit.params import DataParams


def photos(rounds: int) -> list[Result]:
    """Of 500 x 375 pixels, to 128 pixels."""
    return _against_bare("prepare, photos of 500 x 375 to 128 px", (500, 375), 1000, 128, 1.2, rounds)


def small_images(rounds: int) -> list[Result]:
    """Of 32 x 32 pixels, as they are."""
    return _against_bare("prepare, JPEG files of 32 x 32 px", (32, 32), 20_000, 32, 0.8, rounds)


def large_photos(rounds: int) -> list[Result]:
    """Of 12 megapixels, to 160 pixels."""
    return _against_bare("prepare, photos of 12 megapixels to 160 px", (4000, 3000), 64, 160, 3.0, rounds)


def _against_bare(
    name: str, pixels: tuple[int, int], count: int, size: int, target: float, rounds: int
) -> list[Result]:
    with _class_folders(pixels, count) as root:
        measured = interleave({"refit": partial(_prepare, root, size), "bare": partial(_bare, root, size)}, rounds)
    return [compare(f"{name}: images/s ÷ bare decoding", measured["refit"], measured["bare"], target, "higher")]


@contextmanager
def _class_folders(pixels: tuple[int, int], count: int) -> Iterator[Path]:
    """Files cut or enlarged from the two photos that come with scikit-learn, one folder for each photo. No two files
    are the same, as `prepare` would leave out copies."""
    with TemporaryDirectory() as folder:
        for label, photo in enumerate(load_sample_images().images):
            (Path(folder) / f"photo_{label}").mkdir()
            image = Image.fromarray(photo)
            for number in range(count // 2):
                left, top = number % 128, number // 128
                part = image.resize(pixels, box=(left, top, left + 500, top + 340))
                part.save(Path(folder) / f"photo_{label}/{number}.jpg", quality=90)
        yield Path(folder)


def _prepare(root: Path, size: int) -> float:
    """Images per second."""
    data = DataParams(source="folder", root=str(root), image_size=size)
    with TemporaryDirectory() as folder:
        began = time.perf_counter()
        info = pack(open_source(data), data, 0, Path(folder)).info
        return sum(info.counts.values()) / (time.perf_counter() - began)


def _bare(root: Path, size: int) -> float:
    """Images per second."""
    files = sorted(root.rglob("*.jpg"))
    with get_context("fork").Pool(os.cpu_count()) as pool:
        began = time.perf_counter()
        for _ in pool.imap(partial(_decode, size=size), files, chunksize=32):
            pass
        return len(files) / (time.perf_counter() - began)


def _decode(file: Path, size: int) -> None:
    with Image.open(file) as image:
        ImageOps.fit(image.convert("RGB"), (size, size), Image.Resampling.BICUBIC)


if __name__ == "__main__":
    command_line(__doc__, [photos, small_images, large_photos])
