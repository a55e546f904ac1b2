"""Decode a source's images once and pack them into the prepared format."""

import hashlib
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import count
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from refit.artifacts.files import as_text, write_json
from refit.artifacts.prepared import FORMAT, Color, DatasetInfo, Pixels, read_names
from refit.data.images import BadImageError, Header, decode, read_header
from refit.data.sources import SPLITS, Item, Source, SplitName, open_source
from refit.data.splits import assign_splits, find_label_conflicts
from refit.params import DataParams
from refit.runtime.errors import UserError
from refit.runtime.progress import progress

AUTO_SIZE = 128  # pixels, for image_size: auto if the images differ in size
Result = TypeVar("Result")
LISTED = 50  # images that cannot be used, in an error
_CHUNK = 512  # images held in memory at a time


class _Decoded(NamedTuple):
    item: Item
    header: Header
    row: int
    """Row of its pixels in the scratch array."""
    sha256: str
    """Of the decoded pixels."""


def pack(source: Source, data: DataParams, seed: int, folder: Path) -> tuple[DatasetInfo, dict[str, int | float]]:
    """Write the prepared data set to `folder`; returns its description and a report of counts.

    Raises UserError that lists all images that cannot be decoded or have two labels, unless `data.bad_images` is skip.
    """
    items = source.list_items()
    bad = _BadImages(data)
    headers = _read_headers(items, data, bad)
    color = _choose_color(headers, data)
    size = _choose_size(headers, data)
    scratch = folder / "scratch.npy"
    shape = (1 if color == "grey" else 3, *(size or (headers[0][1].height, headers[0][1].width)))
    pixels = np.lib.format.open_memmap(scratch, "w+", np.uint8, (len(headers), *shape))
    images = _without_conflicts(_decode_all(headers, color, size, pixels, bad), bad)
    bad.raise_if_any()
    hashes = [image.sha256 for image in images]
    assigned = assign_splits([image.item for image in images], hashes, data, seed)
    splits = {name: [image for image, split in zip(images, assigned, strict=True) if split == name] for name in SPLITS}
    _check_classes(source.classes, splits, data)

    for name, members in splits.items():
        _write_split(folder, name, members, pixels)
    _write_manifest(folder / "manifest.parquet", source.classes, splits)
    mean, std = _channel_statistics(pixels, [image.row for image in splits["train"]])
    del pixels
    scratch.unlink()
    info = DatasetInfo(
        format=FORMAT,
        source=data.source,
        classes=list(source.classes),
        color=color,
        shape=list(shape),
        counts={name: len(members) for name, members in splits.items()},
        mean=mean,
        std=std,
        sha256=_content_hash(source.classes, splits),
    )
    write_json(folder / "dataset.json", info.as_json())
    train_classes = Counter(image.item.label for image in splits["train"])
    return info, {
        **info.counts,
        "skipped": len(items) - len(images),
        "duplicates": len(hashes) - len(set(hashes)),
        "left_out_copies": assigned.count(None),
        "imbalance": round(max(train_classes.values()) / min(train_classes.values()), 4),
    }


def decode_again(split: str, data: DataParams, color: Color, size: tuple[int, int]) -> Pixels:
    """Decode the images of a prepared split again, at another model's colour and size: uint8 (N, C, *size), in order.

    Raises UserError if the source no longer has an image, or an image cannot be decoded.
    """
    items = {as_text(item.name): item for item in open_source(data).list_items()}
    names = read_names(split)
    for name in names:
        if name not in items:
            raise UserError(f"{name} is no longer in data.root = {data.root!r}; run: dvc repro")
    images = []
    for item, image in _in_threads(partial(decode, color=color, size=size), [items[name] for name in names]):
        if isinstance(image, BadImageError):
            raise UserError(f"{as_text(item.name)}: {image}; run: dvc repro")
        images.append(image)
    return np.stack(images)


class _BadImages:
    """The images that cannot be used. If `data.bad_images` is skip, each is printed when it is found; otherwise all of
    them are listed in one error."""

    def __init__(self, data: DataParams) -> None:
        self.skip = data.bad_images == "skip"
        self.lines: list[str] = []

    def add(self, name: str, reason: object) -> None:
        line = f"{as_text(name)}: {reason}"
        if self.skip:
            print(f"skipped {line}", flush=True)
        else:
            self.lines.append(line)

    def raise_if_any(self) -> None:
        if len(self.lines) == 1:
            raise UserError(f"{self.lines[0]}; repair or remove it, or set data.bad_images to skip")
        if self.lines:
            more = [f"and {len(self.lines) - LISTED:,} more"] if len(self.lines) > LISTED else []
            remedy = "repair or remove them, or set data.bad_images to skip"
            lines = [f"{len(self.lines):,} images cannot be used; {remedy}:", *self.lines[:LISTED], *more]
            raise UserError("\n".join(lines))


def _in_threads(
    work: Callable[[Image.Image], Result], items: Sequence[Item]
) -> Iterator[tuple[Item, Result | BadImageError]]:
    """Each item with the result of `work` for its opened image, or with the error; in order."""

    def attempt(item: Item) -> Result | BadImageError:
        try:
            with item.open() as image:
                return work(image)
        except BadImageError as error:
            return error

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow releases the GIL while it decodes
        for start in range(0, len(items), _CHUNK):
            chunk = items[start : start + _CHUNK]
            yield from zip(chunk, pool.map(attempt, chunk), strict=True)


def _read_headers(items: Sequence[Item], data: DataParams, bad: _BadImages) -> list[tuple[Item, Header]]:
    headers = []
    # In threads too: Pillow has to decode a PNG to find its orientation.
    for item, header in progress(_in_threads(read_header, items), "reading headers", len(items)):
        if isinstance(header, BadImageError):
            bad.add(item.name, header)
        else:
            headers.append((item, header))
    if not headers:
        bad.raise_if_any()
        raise UserError(f"data.source = {data.source!r} has no readable image")
    return headers


def _choose_color(headers: Sequence[tuple[Item, Header]], data: DataParams) -> Color:
    if data.color != "auto":
        return data.color
    return "grey" if all(header.color == "grey" for _, header in headers) else "rgb"


def _choose_size(headers: Sequence[tuple[Item, Header]], data: DataParams) -> tuple[int, int] | None:
    """Height and width to resize to, in pixels; None if no image needs resizing."""
    sizes = {(header.width, header.height) for _, header in headers}
    if data.image_size != "auto":
        square = (data.image_size, data.image_size)
        return None if sizes == {square} else square
    if len(sizes) == 1:
        return None
    print(f"images of {len(sizes)} sizes are resized to {AUTO_SIZE} x {AUTO_SIZE}; data.image_size overrides this")
    return AUTO_SIZE, AUTO_SIZE


def _decode_all(
    headers: Sequence[tuple[Item, Header]], color: Color, size: tuple[int, int] | None, pixels: Pixels, bad: _BadImages
) -> list[_Decoded]:
    """Fill `pixels`, uint8 (N, C, H, W), row by row; the row of an image that cannot be decoded stays unused."""
    decoded = []
    images = _in_threads(partial(decode, color=color, size=size), [item for item, _ in headers])
    for row, (item, image) in enumerate(progress(images, "decoding", len(headers))):
        if isinstance(image, BadImageError):
            bad.add(item.name, image)
        else:
            pixels[row] = image
            decoded.append(_Decoded(item, headers[row][1], row, hashlib.sha256(image.tobytes()).hexdigest()))
    return decoded


def _without_conflicts(images: list[_Decoded], bad: _BadImages) -> list[_Decoded]:
    """Leave out identical images with different labels: the correct label is unknown."""
    conflicts = find_label_conflicts([image.item for image in images], [image.sha256 for image in images])
    for group in conflicts:
        names = " and ".join(images[i].item.name for i in group)
        bad.add(names, "identical images with different labels")
    left_out = {i for group in conflicts for i in group}
    return [image for i, image in enumerate(images) if i not in left_out]


def _check_classes(classes: Sequence[str], splits: dict[SplitName, list[_Decoded]], data: DataParams) -> None:
    """Raise UserError if a class has no training image; warn if it has no image in another split."""
    present = {name: {image.item.label for image in members} for name, members in splits.items()}
    given = {image.item.split for members in splits.values() for image in members}
    for split, labels in present.items():
        absent = ", ".join(repr(name) for label, name in enumerate(classes) if label not in labels)
        if absent and split == "train":
            raise UserError(
                f"data.source = {data.source!r}: no training image of class {absent}; add training images of it, or "
                "remove the class"
            )
        if absent:
            remedy = "add images"
            if split not in given:  # it was drawn
                fraction = data.val if split == "val" else data.test
                needed = next(images for images in count(2) if round(fraction * images))
                remedy = (
                    f"with data.{split} = {fraction:g} a class needs {needed} images: {remedy}, or raise data.{split}"
                )
            print(f"warning: the {split} split has no image of class {absent}; {remedy}", file=sys.stderr)
    totals = Counter(image.item.label for members in splits.values() for image in members)
    if single := ", ".join(repr(name) for label, name in enumerate(classes) if totals[label] == 1):
        print(f"warning: a single image of class {single}: the model can learn it, but not be tested on it; add "
              "images, or remove the class", file=sys.stderr)  # fmt: skip


def _write_split(folder: Path, name: str, members: Sequence[_Decoded], pixels: Pixels) -> None:
    path = folder / f"{name}_images.npy"
    packed = np.lib.format.open_memmap(path, "w+", np.uint8, (len(members), *pixels.shape[1:]))
    for start in range(0, len(members), _CHUNK):
        packed[start : start + _CHUNK] = pixels[[image.row for image in members[start : start + _CHUNK]]]
    packed.flush()
    np.save(folder / f"{name}_labels.npy", np.array([image.item.label for image in members], dtype=np.int64))


def _write_manifest(path: Path, classes: Sequence[str], splits: dict[SplitName, list[_Decoded]]) -> None:
    images = [image for members in splits.values() for image in members]
    columns = {
        "name": [as_text(image.item.name) for image in images],
        "split": [name for name, members in splits.items() for _ in members],
        "class": [classes[image.item.label] for image in images],
        "sha256": [image.sha256 for image in images],
        "width": pa.array([image.header.width for image in images], pa.int32()),
        "height": pa.array([image.header.height for image in images], pa.int32()),
    }
    pq.write_table(pa.table(columns), path)


def _channel_statistics(pixels: Pixels, rows: Sequence[int]) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel, pixels scaled to 0..1; exact, as the sums are integers."""
    channels = pixels.shape[1]
    total, squares = np.zeros(channels, np.int64), np.zeros(channels, np.int64)
    for start in range(0, len(rows), _CHUNK):
        chunk = pixels[list(rows[start : start + _CHUNK])].astype(np.int64)
        total += chunk.sum(axis=(0, 2, 3))
        squares += (chunk**2).sum(axis=(0, 2, 3))
    count = len(rows) * pixels[0, 0].size
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 1.0))  # at least one grey level: std is a divisor
    return (mean / 255).tolist(), (std / 255).tolist()


def _content_hash(classes: Sequence[str], splits: dict[SplitName, list[_Decoded]]) -> str:
    lines = [f"class {name}" for name in classes]
    lines += [f"{name} {image.sha256} {image.item.label}" for name, members in splits.items() for image in members]
    return hashlib.sha256("\n".join(lines).encode("utf-8", "backslashreplace")).hexdigest()
