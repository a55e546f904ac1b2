"""Decode all images of a source, on all cores or on the workers of a Dask scheduler, into parts on the disk.

A part is a file with the contents of some images, and a JSON file that tells what they are, which is written last.
Parts are not removed if `prepare` is interrupted or finds a fault: the next run decodes only what they lack, which are
the images without a part and those whose file has changed.
"""

import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from refit.artifacts.encoded import decode as decode_stored
from refit.artifacts.encoded import encode
from refit.artifacts.files import as_text
from refit.artifacts.prepared import Color, Pixels
from refit.data.images import BadImageError, Header, decode, read_header
from refit.data.parallel import in_parallel
from refit.data.sources.open import open_source
from refit.data.sources.source import Item
from refit.params import DataParams
from refit.params.data import Resize
from refit.runtime.errors import UserError
from refit.runtime.progress import progress
from refit.runtime.workers import has_scheduler, on_workers

AUTO_SIZE = 128  # pixels, for image_size: auto if the images differ in size
ENCODED_FROM = 16 * 2**30  # bytes of all pixels, for storage: auto
_SAMPLE = 64  # images whose headers tell the form of most sets
_PARTS = 256  # of a set that is neither small nor very large
_LEAST, _MOST = 16, 128  # images in a part

Names = Sequence[tuple[str, str | None]]
"""Names of images, each with its version."""


class Form(NamedTuple):
    """What all prepared images have in common."""

    color: Color
    size: tuple[int, int]
    """Height and width, pixels."""
    resize: Resize
    encoded: bool
    """Whether they are stored as refit.artifacts.encoded does, and not as pixels."""

    @property
    def shape(self) -> tuple[int, int, int]:
        return (1 if self.color == "grey" else 3, *self.size)


class Digest(NamedTuple):
    """What is computed from an image's pixels right after they are decoded, on all cores."""

    sha256: str
    sums: list[int]
    """Of the pixels of each channel."""
    squares: list[int]
    """Sums of the squared pixels of each channel."""


class Place(NamedTuple):
    """Where the content of an image is: its pixels, or what they are encoded to."""

    part: int
    offset: int
    length: int
    """Bytes."""


class Outcome(NamedTuple):
    """What decoding an image gave: a digest and a place, or a fault."""

    header: Header | None
    """None if the image cannot even be opened."""
    digest: Digest | None
    place: Place | None
    fault: str


class Decoded(NamedTuple):
    item: Item
    header: Header
    digest: Digest
    place: Place


class Parts:
    """The folder of the parts of one form."""

    def __init__(self, folder: Path, form: Form) -> None:
        self.form = form
        name = hashlib.sha256(json.dumps(form).encode()).hexdigest()[:12]
        self.folder = folder / name
        self.folder.mkdir(parents=True, exist_ok=True)

    def has(self, number: int) -> bool:
        return self._file(number).exists()

    def contents(self, places: Iterable[Place]) -> Iterator[bytes]:
        for part, of_part in groupby(places, attrgetter("part")):
            with self._file(part).open("rb") as file:
                yield from (os.pread(file.fileno(), place.length, place.offset) for place in of_part)

    def pixels(self, place: Place) -> Pixels:
        """uint8 (C, H, W)."""
        (content,) = self.contents([place])
        if self.form.encoded:
            return decode_stored(content, self.form.shape[0])
        return np.frombuffer(content, np.uint8).reshape(self.form.shape)

    def decode(self, items: Sequence[Item], number: int) -> list[Outcome]:
        """Decode these images into part `number`."""
        outcomes = []
        with self._file(number).open("wb") as part:
            for item in items:
                outcome, content = _attempt(item, self.form, number, part.tell())
                part.write(content)
                outcomes.append(outcome)
        told = [(item.name, item.version, *outcome) for item, outcome in zip(items, outcomes, strict=True)]
        partial_file = self.folder / f"{number}.partial"
        partial_file.write_text(json.dumps(told))
        partial_file.replace(self.folder / f"{number}.json")
        return outcomes

    def found(self, items: Sequence[Item]) -> tuple[dict[int, Outcome], int]:
        """What an earlier run has left of these images, by their number, and the first number that no part has. It is
        read again, as after a power failure a file may lack its end."""
        rows: dict[tuple[str, str | None], int] = {
            (item.name, item.version): row for row, item in enumerate(items) if item.version
        }
        files = sorted(self.folder.glob("*.json"))
        found: dict[int, Outcome] = {}
        for outcomes in in_parallel(lambda number: self._whole(files[number]), len(files), together=1):
            for name, version, outcome in outcomes:
                if (name, version) in rows:
                    found[rows[name, version]] = outcome
        numbers = [int(file.stem) for file in self.folder.iterdir()]
        return found, max(numbers, default=-1) + 1

    def _whole(self, file: Path) -> list[tuple[str, str | None, Outcome]]:
        """The images of a part whose pixels are what its JSON file says."""
        try:
            told = json.loads(file.read_bytes())
        except ValueError:
            return []
        outcomes = [(name, version, _outcome(*fields)) for name, version, *fields in told]
        return [(name, version, outcome) for name, version, outcome in outcomes if self._is_whole(outcome)]

    def _is_whole(self, outcome: Outcome) -> bool:
        if outcome.place is None or outcome.digest is None:
            return True
        try:
            return hashlib.sha256(self.pixels(outcome.place).tobytes()).hexdigest() == outcome.digest.sha256
        except (OSError, ValueError):
            return False

    def _file(self, number: int) -> Path:
        return self.folder / f"{number}.part"


def decode_all(items: Sequence[Item], data: DataParams, folder: Path) -> tuple[list[Outcome], Parts]:
    """The outcome for each item, and the parts with their contents, below `folder`.

    The form depends on the headers of all images. Most sets are read once all the same: the first images tell the form,
    and only if another one turns out to be right, all are decoded again.
    """
    form = _choose_form([header for item in items[:_SAMPLE] if (header := _read_header(item))], data, len(items))
    while True:
        parts = Parts(folder, form)
        outcomes = _decode_into(parts, items, data)
        headers = [outcome.header for outcome in outcomes if outcome.header]
        right = _choose_form(headers, data, len(items))
        if right == form:
            break
        form = right
    sizes = len({header.size for header in headers})
    if sizes > 1 and data.image_size == "auto":
        print(f"images of {sizes} sizes are resized to {AUTO_SIZE} x {AUTO_SIZE}; data.image_size overrides this")
    return outcomes, parts


def _decode_into(parts: Parts, items: Sequence[Item], data: DataParams) -> list[Outcome]:
    found, first = parts.found(items)
    if found:
        print(f"{len(found):,} of {len(items):,} images were decoded by a run that did not finish")
    missing = [row for row in range(len(items)) if row not in found]
    size = min(max(len(missing) // _PARTS, _LEAST), _MOST)
    batches = [missing[start : start + size] for start in range(0, len(missing), size)]

    def work(number: int) -> list[Outcome]:
        return parts.decode([items[row] for row in batches[number]], first + number)

    if has_scheduler():
        named = [[(items[row].name, items[row].version) for row in batch] for batch in batches]
        results = _decode_on_workers(parts, data, named, first)
    else:
        results = in_parallel(work, len(batches), together=1)
    decoded = progress((outcome for batch in results for outcome in batch), "decoding", len(missing))
    found |= zip(missing, decoded, strict=True)
    return [found[row] for row in range(len(items))]


def _decode_on_workers(parts: Parts, data: DataParams, named: Sequence[Names], first: int) -> Iterator[list[Outcome]]:
    calls = [(parts, data, names, first + number) for number, names in enumerate(named)]
    for number, outcomes in enumerate(on_workers(_decode_named, calls, "prepare", data.source)):
        if not parts.has(first + number):
            raise UserError(f"the Dask workers have another {parts.folder}; run them on a file system that all share")
        yield outcomes


def _decode_named(parts: Parts, data: DataParams, names: Names, number: int) -> list[Outcome]:
    """Runs in a worker, which has to find the images itself. Raises UserError if it finds others in data.root."""
    items = _items_of(data, names)
    if absent := next((name for name in names if name not in items), None):
        name = as_text(absent[0])
        raise UserError(f"a Dask worker finds no {name}, or another one; let all workers read the same data.root")
    return parts.decode([items[name] for name in names], number)


_listings: dict[str, dict[tuple[str, str | None], Item]] = {}


def _items_of(data: DataParams, names: Names) -> dict[tuple[str, str | None], Item]:
    """All items by name and version; listed again only if these are not among them."""
    key = data.model_dump_json()
    if not _listings.get(key, {}).keys() >= set(names):
        _listings[key] = {(item.name, item.version): item for item in open_source(data).list_images().items}
    return _listings[key]


def _attempt(item: Item, form: Form, part: int, offset: int) -> tuple[Outcome, bytes]:
    header = None
    try:
        with item.open() as image:
            header = read_header(image)
            pixels = decode(image, form.color, form.size, form.resize)
    except BadImageError as error:
        return Outcome(header, None, None, str(error)), b""
    raw = pixels.tobytes()
    content = encode(pixels) if form.encoded else raw
    return Outcome(header, _digest(pixels, raw), Place(part, offset, len(content)), ""), content


def _outcome(header: list[Any] | None, digest: list[Any] | None, place: list[int] | None, fault: str) -> Outcome:
    """The outcome as JSON has it."""
    its_header = Header(*header) if header else None
    return Outcome(its_header, Digest(*digest) if digest else None, Place(*place) if place else None, fault)


def _digest(image: Pixels, content: bytes) -> Digest:
    channels = image.reshape(len(image), -1)
    squares = np.square(channels, dtype=np.uint16)
    return Digest(
        hashlib.sha256(content).hexdigest(),
        channels.sum(axis=1, dtype=np.int64).tolist(),
        squares.sum(axis=1, dtype=np.int64).tolist(),
    )


def _read_header(item: Item) -> Header | None:
    try:
        with item.open() as image:
            return read_header(image)
    except BadImageError:  # it is reported when all are decoded
        return None


def _choose_form(headers: Sequence[Header], data: DataParams, images: int) -> Form:
    is_grey = all(header.color == "grey" for header in headers) if data.color == "auto" else data.color == "grey"
    sizes = {header.size for header in headers}
    if data.image_size != "auto":
        size = (data.image_size, data.image_size)
    else:
        size = sizes.pop() if len(sizes) == 1 else (AUTO_SIZE, AUTO_SIZE)
    form = Form("grey" if is_grey else "rgb", size, data.resize, encoded=data.storage == "encoded")
    if data.storage == "auto":
        return form._replace(encoded=images * math.prod(form.shape) > ENCODED_FROM)
    return form
