"""Images of the prepared data set as lossless WebP, for sets that are too large as pixels.

Decoded they are the very pixels, so a model has the same bits with either storage. `SPLIT_images/` has shards, each
with the contents of many images one after the other. `SPLIT_index.npy`, int64 (N, 3), has the shard, offset and length
of each image, `SPLIT_shards.json` the path of each shard: in the folder, or in a bucket if `data.shards` names one.
"""

import hashlib
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from refit.artifacts.files import write_json
from refit.runtime.errors import UserError

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
        self.index = np.load(folder / f"{split}_index.npy")
        self.shards: list[str] = json.loads((folder / f"{split}_shards.json").read_text(encoding="utf-8"))
        self.folder = folder
        self.shape = (len(self.index), *shape)

    def __len__(self) -> int:
        return len(self.index)

    def __iter__(self) -> Iterator[_Pixels]:
        return map(self.__getitem__, range(len(self)))

    def __getitem__(self, rows: _Rows) -> _Pixels:
        """Raises UserError if a shard cannot be read."""
        chosen = np.arange(len(self))[rows]
        images = np.empty((chosen.size, *self.shape[1:]), np.uint8)
        contents = self._contents(chosen.reshape(-1))

        def fill(place: int) -> None:
            images[place] = decode(contents(place), self.shape[1])

        list(_threads(os.getpid()).map(fill, range(len(images))))
        return images.reshape(*chosen.shape, *self.shape[1:])

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[Any]:
        """All images."""
        return self[:].astype(dtype or np.uint8, copy=False)

    def _contents(self, rows: npt.NDArray[np.integer]) -> Callable[[int], bytes]:
        """A function that gives the content of the image in each of these rows. From a bucket all are read at once."""
        shards, starts, lengths = (column.tolist() for column in self.index[rows].T)
        paths = [self.shards[shard] for shard in shards]
        if not paths or "://" not in paths[0]:
            return lambda place: _read(self.folder / paths[place], starts[place], lengths[place])
        ends = [start + length for start, length in zip(starts, lengths, strict=True)]
        with bucket_of(paths[0]) as files:
            found: list[bytes] = files.cat_ranges(paths, starts, ends, on_error="raise")
        return found.__getitem__


def _read(path: Path, start: int, length: int) -> bytes:
    with path.open("rb") as file:  # opened each time: there may be thousands
        return os.pread(file.fileno(), length, start)


def write_encoded(
    folder: Path,
    split: str,
    contents: Iterable[bytes],
    shape: tuple[int, int, int, int],
    address: str | None = None,
) -> None:
    """Write the encoded images of a split. `shape`: N, C, H, W. The shards go to `address`, or into the folder.

    A shard at an address is named after its content: one that is there already is not written again. Raises UserError
    if that fails.
    """
    index = np.empty((shape[0], 3), np.int64)
    names: list[str] = []
    (folder / f"{split}_images").mkdir()
    for number, images in groupby(_placed(contents), itemgetter(0)):
        path = f"{split}_images/{number:05}.bin"
        with (folder / path).open("wb") as file:
            for _, offset, row, content in images:
                index[row] = number, offset, len(content)
                file.write(content)
        names.append(_moved(folder / path, address) if address else path)
    np.save(folder / f"{split}_index.npy", index)
    write_json(folder / f"{split}_shards.json", names)


def _placed(contents: Iterable[bytes]) -> Iterator[tuple[int, int, int, bytes]]:
    """Each content with its shard, its offset in it, and its row."""
    shard, offset = 0, 0
    for row, content in enumerate(contents):
        if offset >= SHARD_BYTES:
            shard, offset = shard + 1, 0
        yield shard, offset, row, content
        offset += len(content)


def _moved(shard: Path, address: str) -> str:
    """Move a shard to the address of a bucket; returns its own address there."""
    with shard.open("rb") as file:
        target = f"{address.rstrip('/')}/{hashlib.file_digest(file, 'sha256').hexdigest()}.bin"
    with bucket_of(address) as files:
        if not files.exists(target):
            files.put_file(shard, target)
    shard.unlink()
    return target


def check_bucket(address: str) -> None:
    """Raises UserError unless something can be written there."""
    with bucket_of(address) as files:
        files.pipe_file(f"{address.rstrip('/')}/refit", b"shards of encoded images\n")


@contextmanager
def bucket_of(address: str) -> Iterator[Any]:
    """The file system of an address. What goes wrong in it is a UserError."""
    try:
        yield _file_system(address.partition("://")[0], os.getpid())
    except Exception as error:  # each kind of bucket has its own errors
        why = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(f"{address} (data.shards) cannot be read or written: {why}") from error


@cache
def _threads(process: int) -> ThreadPoolExecutor:
    """A pool for each process, as a forked one does not have the threads of the first."""
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="decode")


@cache
def _file_system(protocol: str, process: int) -> Any:
    """One for each process, as a forked one does not have the threads of the first. Listings are not kept: another run
    may write there."""
    import fsspec

    return fsspec.filesystem(protocol, skip_instance_cache=True, use_listings_cache=False)
