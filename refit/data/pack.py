"""Decode a source's images once and pack them into the prepared format."""

import hashlib
import math
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from itertools import count
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from refit.artifacts.decisions import Decision
from refit.artifacts.encoded import check_bucket, write_encoded
from refit.artifacts.files import as_text, write_json
from refit.artifacts.prepared import FORMAT, Color, DatasetInfo, Pixels, Weights, read_names, write_pixels
from refit.data.decided import as_decided, warning_of_gone
from refit.data.decoding import Decoded, Form, Outcome, Parts, decode_all
from refit.data.duplicates import find_near_duplicates, groups_of
from refit.data.images import BadImageError, decode
from refit.data.sources.open import open_source
from refit.data.sources.source import SPLITS, Item, Source, SplitName
from refit.data.splits import assign_splits, find_label_conflicts
from refit.params import DataParams
from refit.params.data import Resize
from refit.runtime.errors import UserError

LISTED = 50  # images that cannot be used, in an error


class Packed(NamedTuple):
    info: DatasetInfo
    report: dict[str, int | float]
    """Counts."""
    left_out: list[dict[str, object]]
    """A row for each file of the source that is not in the data set: its name, and why."""
    obeyed: Sequence[Decision]
    near_duplicates: Sequence[Sequence[str]] | None
    """Groups of the names of near-duplicates, identical images among them; None if they were not looked for."""


def pack(
    source: Source,
    data: DataParams,
    seed: int,
    folder: Path,
    decisions: Sequence[Decision] = (),
    decoded_in: Path | None = None,
) -> Packed:
    """Write the prepared data set to `folder`, as people decided about single images.

    The decoded images are in `decoded_in` until they are written: what an interrupted call with the same parameters has
    left there is not decoded again. None: in a folder that is removed.

    Warns of decisions about files that the source does not have. Raises UserError that lists all images that cannot be
    decoded or have two labels, unless `data.bad_images` is skip; and as as_decided and find_near_duplicates.
    """
    if data.shards:
        check_bucket(data.shards)  # before hours of decoding
    listing, obeyed, gone_files = as_decided(source.list_images(), decisions)
    if gone_files:
        print(warning_of_gone(gone_files, listing.items, obeyed), file=sys.stderr)
    items, classes = listing.items, listing.classes
    bad = _BadImages(data)
    for gone in listing.left_out:
        if gone.fault:
            bad.add([gone.name], gone.why)
    with nullcontext(decoded_in) if decoded_in else tempfile.TemporaryDirectory(dir=folder.parent) as decoded:
        outcomes, parts = decode_all(items, data, Path(decoded))
        listing.check_unchanged()
        images = _without_conflicts(_usable(items, outcomes, data, bad), bad)
        bad.raise_if_any()
        hashes = [image.digest.sha256 for image in images]
        near = _near_duplicates(images, parts) if data.group_duplicates else None
        assigned = assign_splits([image.item for image in images], hashes, data, seed, near or ())
        splits = {
            name: [image for image, split in zip(images, assigned, strict=True) if split == name] for name in SPLITS
        }
        _check_classes(classes, splits, data)
        for name, members in splits.items():
            _write_split(folder, name, members, parts, data.shards)
    _write_weights(folder / "train_weights.npy", splits["train"])
    _write_manifest(folder / "manifest.parquet", classes, splits)
    info = _describe(data.source, classes, splits, parts.form)
    write_json(folder / "dataset.json", info.as_json())
    train_classes = Counter(image.item.label for image in splits["train"])
    left_out = [(gone.name, gone.why) for gone in listing.left_out if not gone.fault]
    left_out += [*bad.found, *_copies_left_out(images, assigned)]
    report = {
        **info.counts,
        "skipped": len(bad.found),
        "duplicates": len(hashes) - len(set(hashes)),
        "left_out_copies": assigned.count(None),
        "left_out": len(left_out),
        "decisions": len(obeyed),
        "imbalance": round(max(train_classes.values()) / min(train_classes.values()), 4),
    }
    rows: list[dict[str, object]] = [{"file": as_text(name), "why": why} for name, why in sorted(left_out)]
    return Packed(info, report, rows, obeyed, None if near is None else _groups(images, near, assigned))


def _groups(images: Sequence[Decoded], numbers: Sequence[int], assigned: Sequence[SplitName | None]) -> list[list[str]]:
    """The names of the images of each group of two or more in the data set."""
    groups: dict[int, list[str]] = {}
    for image, number, split in zip(images, numbers, assigned, strict=True):
        if split:
            groups.setdefault(number, []).append(as_text(image.item.name))
    return [group for group in groups.values() if len(group) > 1]


def _near_duplicates(images: Sequence[Decoded], parts: Parts) -> list[int] | None:
    """For each image the number of its group of near-duplicates; None, after a warning, if no split is drawn."""
    if {image.item.split for image in images} >= {"val", "test"}:
        print("warning: data.group_duplicates changes nothing, because the source has its own splits; make audit lists "
              "near-duplicates across them", file=sys.stderr)  # fmt: skip
        return None
    pairs = find_near_duplicates(lambda i: parts.pixels(images[i].place), len(images))
    print(f"{len(pairs):,} pairs of near-duplicates or identical images get the same split each")
    return [int(group) for group in groups_of(pairs, len(images))]


def _copies_left_out(images: Sequence[Decoded], assigned: Sequence[SplitName | None]) -> Iterator[tuple[str, str]]:
    held_out = {
        image.digest.sha256: (image.item.name, split) for image, split in zip(images, assigned, strict=True) if split
    }
    for image, split in zip(images, assigned, strict=True):
        if split is None:
            name, other = held_out[image.digest.sha256]
            yield image.item.name, f"a copy of {as_text(name)}, which is in the {other} split"


def decode_again(split: str, data: DataParams, color: Color, size: tuple[int, int], resize: Resize) -> Pixels:
    """Decode the images of a prepared split again, for another model's input: uint8 (N, C, *size), in order.

    Raises UserError if the source no longer has an image, or an image cannot be decoded.
    """
    items = {as_text(item.name): item for item in open_source(data).list_images().items}
    names = read_names(split)
    for name in names:
        if name not in items:
            raise UserError(f"{name} is no longer in data.root = {data.root!r}; run: dvc repro")

    def decode_one(name: str) -> Pixels:
        try:
            with items[name].open() as image:
                return decode(image, color, size, resize)
        except BadImageError as error:
            raise UserError(f"{name}: {error}; run: dvc repro") from None

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return np.stack(list(pool.map(decode_one, names)))


class _BadImages:
    """The images that cannot be used. If `data.bad_images` is skip, each is printed when it is found; otherwise all of
    them are listed in one error."""

    def __init__(self, data: DataParams) -> None:
        self.skip = data.bad_images == "skip"
        self.found: list[tuple[str, str]] = []
        """Name and reason."""
        self.lines: list[str] = []

    def add(self, names: Sequence[str], reason: object) -> None:
        """Add one image, or several with the same fault."""
        reason = as_text(str(reason))
        line = f"{' and '.join(map(as_text, names))}: {reason}"
        self.found += [(name, reason) for name in names]
        if not self.skip:
            self.lines.append(line)
        elif len(self.found) <= LISTED:
            print(f"skipped {line}", flush=True)

    def raise_if_any(self) -> None:
        if len(self.lines) == 1:
            raise UserError(f"{self.lines[0]}; repair or remove it, or set data.bad_images to skip")
        if self.lines:
            more = [f"and {len(self.lines) - LISTED:,} more"] if len(self.lines) > LISTED else []
            remedy = "repair or remove them, or set data.bad_images to skip"
            lines = [f"{len(self.lines):,} images cannot be used; {remedy}:", *self.lines[:LISTED], *more]
            raise UserError("\n".join(lines))


def _usable(items: Sequence[Item], outcomes: Sequence[Outcome], data: DataParams, bad: _BadImages) -> list[Decoded]:
    """The images that were decoded. Raises UserError if no header could be read."""
    decoded = []
    for item, outcome in zip(items, outcomes, strict=True):
        if outcome.header is None or outcome.digest is None or outcome.place is None:
            bad.add([item.name], outcome.fault)
        else:
            decoded.append(Decoded(item, outcome.header, outcome.digest, outcome.place))
    if not any(outcome.header for outcome in outcomes):
        bad.raise_if_any()
        raise UserError(f"data.source = {data.source!r} has no readable image")
    return decoded


def _without_conflicts(images: list[Decoded], bad: _BadImages) -> list[Decoded]:
    """Leave out identical images with different labels: the correct label is unknown."""
    conflicts = find_label_conflicts([image.item for image in images], [image.digest.sha256 for image in images])
    for group in conflicts:
        bad.add([images[i].item.name for i in group], "identical images with different labels")
    left_out = {i for group in conflicts for i in group}
    return [image for i, image in enumerate(images) if i not in left_out]


def _check_classes(classes: Sequence[str], splits: dict[SplitName, list[Decoded]], data: DataParams) -> None:
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


def _write_split(folder: Path, name: str, members: Sequence[Decoded], parts: Parts, shards: str | None) -> None:
    labels = np.array([image.item.label for image in members], dtype=np.int64)
    np.save(folder / f"{name}_labels.npy", labels)
    contents, shape = parts.contents(image.place for image in members), (len(members), *parts.form.shape)
    if parts.form.encoded:
        write_encoded(folder, name, contents, shape, shards)
    else:
        write_pixels(folder, name, contents, shape)


def _weights(members: Sequence[Decoded]) -> Weights | None:
    """Those of the images, scaled to a mean of 1; None if all are the same, which is no weighting."""
    weights = np.array([image.item.weight for image in members])
    return None if np.all(weights == weights[0]) else (weights / weights.mean()).astype(np.float32)


def _write_weights(path: Path, train: Sequence[Decoded]) -> None:
    if (weights := _weights(train)) is not None:
        np.save(path, weights)
        print(f"the training loss weights the images: {weights.min():.3g} to {weights.max():.3g} times the mean")


def _write_manifest(path: Path, classes: Sequence[str], splits: dict[SplitName, list[Decoded]]) -> None:
    images = [image for members in splits.values() for image in members]
    columns = {
        "name": [as_text(image.item.name) for image in images],
        "split": [name for name, members in splits.items() for _ in members],
        "class": [classes[image.item.label] for image in images],
        "sha256": [image.digest.sha256 for image in images],
        "width": pa.array([image.header.width for image in images], pa.int32()),
        "height": pa.array([image.header.height for image in images], pa.int32()),
    }
    pq.write_table(pa.table(columns), path)


def _describe(source: str, classes: Sequence[str], splits: dict[SplitName, list[Decoded]], form: Form) -> DatasetInfo:
    mean, std = _channel_statistics(splits["train"], form)
    return DatasetInfo(
        format=FORMAT,
        source=source,
        classes=list(classes),
        color=form.color,
        shape=list(form.shape),
        counts={name: len(members) for name, members in splits.items()},
        mean=mean,
        std=std,
        sha256=_content_hash(classes, splits),
        resize=form.resize,
    )


def _channel_statistics(images: Sequence[Decoded], form: Form) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel, pixels scaled to 0..1; exact, as the sums are integers."""
    count = len(images) * math.prod(form.size)
    total, squares = (np.sum(values, axis=0) for values in zip(*(image.digest[1:] for image in images), strict=True))
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 1.0))  # at least one grey level: std is a divisor
    return (mean / 255).tolist(), (std / 255).tolist()


def _content_hash(classes: Sequence[str], splits: dict[SplitName, list[Decoded]]) -> str:
    lines = [f"class {name}" for name in classes]
    lines += [
        f"{name} {image.digest.sha256} {image.item.label}" for name, members in splits.items() for image in members
    ]
    if (weights := _weights(splits["train"])) is not None:
        lines += [f"weight {weight}" for weight in weights.tolist()]
    return hashlib.sha256("\n".join(lines).encode("utf-8", "backslashreplace")).hexdigest()
