"""What a source is: a function of `DataParams` that returns a `Source`. SOURCES in open.py names all of them."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from PIL import Image

from refit.artifacts.files import CONTROL, as_text
from refit.params import DataParams
from refit.runtime.errors import UserError

SplitName = Literal["train", "val", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "val", "test")
SPLIT_NAMES: dict[str, SplitName] = {
    "train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test",
}  # fmt: skip
"""What folders, tables and files call the splits."""

_FORMULA = re.compile(r"[=+\-@](?![\d.]+$)")  # a spreadsheet would compute such a text, unless it is a number


@dataclass(frozen=True)
class LabelledImage:
    """One image and its class, not yet decoded."""

    name: str
    """Its name in the source, which no other image has: a path, a number, or split/number."""
    label: str
    """Its class."""
    open: Callable[[], Image.Image]
    """Raises BadImageError if that fails."""
    split: SplitName | None = None
    """The split that the source assigns; None if the source has no splits."""
    group: str | None = None
    """Images of the same group get the same split, such as the photos of one person."""
    version: str | None = None
    """Another one if the image may have changed, such as the time of its file's last change. With it, an image that an
    interrupted run has decoded is not decoded again."""
    weight: float = 1.0
    """Above 0: how much a training image counts in the loss, beside the others."""


class Unlabelled(NamedTuple):
    """An image to classify, not yet decoded."""

    name: str
    open: Callable[[], Image.Image]
    """Raises BadImageError if that fails."""


@dataclass(frozen=True)
class Item:
    """A LabelledImage whose class is a number."""

    name: str
    label: int
    split: SplitName | None
    open: Callable[[], Image.Image]
    group: str | None = None
    version: str | None = None
    weight: float = 1.0


@dataclass(frozen=True)
class LeftOut:
    """A file of the source that is not one of its images."""

    name: str
    why: str
    fault: bool = False
    """Whether data.bad_images decides about it, as about an image that cannot be decoded."""


@dataclass(frozen=True)
class Listing:
    classes: tuple[str, ...]
    items: Sequence[Item]
    left_out: Sequence[LeftOut] = ()
    check_unchanged: Callable[[], None] = lambda: None
    """Raises UserError if the files have changed since they were listed."""


@dataclass(frozen=True)
class Source:
    read_classes: Callable[[], Sequence[str]]
    """The names of the classes, in order. Faster than `list_images`, where it can be."""
    list_images: Callable[[], Listing]
    """Both raise UserError."""


def listed(
    images: Iterable[LabelledImage],
    where: str,
    left_out: Sequence[LeftOut] = (),
    classes: Sequence[str] | None = None,
    check_unchanged: Callable[[], None] = lambda: None,
) -> Listing:
    """The listing of these images, whose classes are in alphabetical order unless `classes` gives another one. `where`
    begins an error, such as "data.root = 'data/raw'". Raises UserError for a class name that cannot be used, or for
    fewer than two classes."""
    images = list(images)
    _check_groups(images, where)
    names = tuple(sorted({image.label for image in images}) if classes is None else classes)
    check_class_names(names, where)
    number = {name: label for label, name in enumerate(names)}
    items = [Item(image.name, number[image.label], image.split, image.open, image.group, image.version, image.weight)
             for image in images]  # fmt: skip
    return Listing(names, items, left_out, check_unchanged)


def _check_groups(images: Sequence[LabelledImage], where: str) -> None:
    splits: dict[str, SplitName | None] = {}
    for image in images:
        if image.group is not None and splits.setdefault(image.group, image.split) != image.split:
            both = " and ".join(split or "no split" for split in (splits[image.group], image.split))
            raise UserError(f"{where}: group {as_text(image.group)!r} is in {both}; give all its images the same split")


class Watched:
    """Files, by their names, as they are now. `where` begins an error."""

    def __init__(self, files: Mapping[str, Path], where: str) -> None:
        self.files, self.where = files, where
        self._before = {name: _state(path) for name, path in files.items()}

    def version(self, name: str) -> str | None:
        """The version of the images in this file, for LabelledImage; None if the file is gone."""
        before = self._before[name]
        return f"{before[0]} {before[1]}" if before else None

    def check_unchanged(self) -> None:
        """Raises UserError if one of the files has changed since then, or is gone."""
        for name, path in self.files.items():
            if _state(path) != self._before[name]:
                raise UserError(f"{self.where}: {as_text(name)} was changed or removed while it was read; run again")


def _state(path: Path) -> tuple[int, int] | None:
    """Size and time of the last change; None if the file is gone."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


def root_folder(data: DataParams) -> Path:
    """data.root. Raises UserError unless it is a folder."""
    if not Path(data.root).is_dir():
        raise UserError(f"data.root = {data.root!r} is not a folder; create it or name the folder of the raw images")
    return Path(data.root)


def root_file(data: DataParams, expected: str) -> Path:
    """data.root. Raises UserError unless it is a file."""
    if not Path(data.root).is_file():
        found = "is a folder" if Path(data.root).is_dir() else "does not exist"
        raise UserError(f"data.root = {data.root!r} {found}; data.source = {data.source} expects {expected}")
    return Path(data.root)


def check_class_names(names: Sequence[str], where: str) -> None:
    """Raises UserError unless these are two or more names that tables, terminals and spreadsheets show as they are."""
    for name in names:
        if not name.strip() or CONTROL.search(name):
            raise UserError(f"{where}: the name of class {name!r} is empty or has a control character; rename it")
        if as_text(name) != name:
            raise UserError(f"{where}: the name of class {as_text(name)} is not UTF-8; rename it")
        if _FORMULA.match(name):
            raise UserError(
                f"{where}: the name of class {name!r} begins like a formula of a spreadsheet, which would compute it; "
                "rename it"
            )
    if len(names) < 2:
        found = f"one class, {names[0]!r}" if names else "no class"
        raise UserError(f"{where} has {found}; expected two or more")
