"""Images of the prepared data set as lossless WebP, for sets that are too large as pixels.

Decoded they are the very pixels, so a model has the same bits with either storage. `SPLIT_images/` has shards, each
with the contents of many images one after the other. `SPLIT_index.npy`, int64 (N, 3), has the shard, offset and length
of each image.
"""

import io
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

_Pixels = npt.NDArray[np.uint8]
_Rows = int | slice | Sequence[int] | npt.NDArray[np.integer]

SHARD_BYTES = 256 * 2**20  # DVC hashes and transfers files side by side


def encode(image: _Pixels) -> bytes:
    """The lossless WebP of an image, uint8 (C, H, W) of one or three channels. Its fastest method: the others save a
    tenth of the space and take twenty times as long."""
    picture = Image.fromarray(image[0] if len(image) == 1 else np.ascontiguousarray(np.moveaxis(image, 0, 2)))
    content = io.BytesIO()
    picture.save(content, "WEBP", lossless=True, quality=0, method=0)
    return content.getvalue()


def decode(content: bytes, channels: int) -> _Pixels:
    """The image that `encode` was given."""
    pixels = np.moveaxis(np.asarray(Image.open(io.BytesIO(content))), 2, 0)  # WebP has no grey images: all are RGB
    return pixels[:channels]


class EncodedImages:
    """The images of a split, indexed as an array of pixels is: uint8 (N, C, H, W). Only what is indexed is read and
    decoded, on all cores."""

    def __init__(self, folder: Path, split: str, shape: tuple[int, int, int]) -> None:
        """`shape`: C, H, W."""
        self.folder = folder / f"{split}_images"
        self.index = np.load(folder / f"{split}_index.npy")
        self.shape = (len(self.index), *shape)

    def __len__(self) -> int:
        return len(self.index)

    def __iter__(self) -> Iterator[_Pixels]:
        return map(self._read, range(len(self)))

    def __getitem__(self, rows: _Rows) -> _Pixels:
        chosen = np.arange(len(self))[rows]
        if chosen.ndim == 0:
            return self._read(int(chosen))
        images = np.empty((len(chosen), *self.shape[1:]), np.uint8)

        def fill(place: int) -> None:
            images[place] = self._read(chosen[place])

        list(_threads(os.getpid()).map(fill, range(len(chosen))))
        return images

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[Any]:
        """All images."""
        return self[:].astype(dtype or np.uint8, copy=False)

    def _read(self, row: int) -> _Pixels:
        shard, offset, length = self.index[row].tolist()
        with (self.folder / f"{shard:05}.bin").open("rb") as file:  # opened each time: there may be thousands
            content = os.pread(file.fileno(), length, offset)
        return decode(content, self.shape[1])


def write_encoded(folder: Path, split: str, contents: Iterable[bytes], shape: tuple[int, int, int, int]) -> None:
    """Write the encoded images of a split. `shape`: N, C, H, W."""
    shards = folder / f"{split}_images"
    shards.mkdir()
    index = np.empty((shape[0], 3), np.int64)
    shard, offset = 0, 0
    for row, content in enumerate(contents):
        if offset >= SHARD_BYTES:
            shard, offset = shard + 1, 0
        with (shards / f"{shard:05}.bin").open("ab") as file:
            file.write(content)
        index[row] = shard, offset, len(content)
        offset += len(content)
    np.save(folder / f"{split}_index.npy", index)


@cache
def _threads(process: int) -> ThreadPoolExecutor:
    """A pool for each process, as a forked one does not have the threads of the first."""
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="decode")
