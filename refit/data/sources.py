"""Sources of images. A source is a function of `DataParams` that lists labelled images without decoding them.

To add a source, write such a function and add it to `SOURCES`.
"""

import contextlib
import io
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from refit.artifacts.files import as_text
from refit.artifacts.paths import repository_root
from refit.data.images import find_images, open_image
from refit.params import DataParams, nearest
from refit.runtime.errors import UserError

SplitName = Literal["train", "val", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "val", "test")

_SPLIT_FOLDERS: dict[str, SplitName] = {
    "train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test",
}  # fmt: skip
_TORCHVISION_BY_FLAG = ("MNIST", "FashionMNIST", "KMNIST", "USPS", "CIFAR10", "CIFAR100")  # train=True or False
_TORCHVISION_BY_NAME = ("SVHN", "STL10")  # split="train" or "test"


@dataclass(frozen=True)
class Item:
    """One labelled image, not yet decoded."""

    name: str
    """Its name in the source: a path relative to data.root, a number, or split/number."""
    label: int
    split: SplitName | None
    """The split that the source assigns; None if the source has no splits."""
    open: Callable[[], Image.Image]


@dataclass(frozen=True)
class Source:
    classes: tuple[str, ...]
    list_items: Callable[[], Sequence[Item]]


def open_source(data: DataParams) -> Source:
    """Open the source that `data.source` names; downloads a torchvision data set that is not in `data.root`.

    Raises UserError if the source is unknown, or its images cannot be found or downloaded.
    """
    kind, _, name = data.source.partition(":")
    if kind not in SOURCES or bool(name) != (kind == "torchvision"):
        guess = nearest(data.source, [*SOURCES])
        raise UserError(f"data.source = {data.source!r} is unknown{guess}; expected digits, folder or torchvision:NAME")
    if not Path(data.root).is_dir():
        remedy = _remedy_in_copy(data.root) or "; create it or name the folder of the raw images"
        raise UserError(f"data.root = {data.root!r} is not a folder{remedy}")
    return SOURCES[kind](data)


def link_in_copy(root: str) -> None:
    """In an experiment's copy of the repository, link to the repository's own folder of images if git ignores it: DVC
    copies only what git tracks."""
    original = repository_root() / root
    if original.is_dir() and not Path(root).exists() and ".." not in Path(root).parts:
        Path(root).parent.mkdir(parents=True, exist_ok=True)
        Path(root).symlink_to(original)


def _remedy_in_copy(root: str) -> str:
    """The end of an error about a folder that an experiment's copy of the repository lacks or has without its images,
    as data/raw, which git tracks but for what is in it; empty outside such a copy."""
    original = repository_root() / root
    if not original.is_dir() or original == Path(root).resolve():
        return ""
    return (
        f" with images in this experiment's copy of the repository, as git ignores it; queue the experiment with "
        f"-S data.root={original}, or version the images first: dvc add {root}"
    )


def _digits(_: DataParams) -> Source:
    def list_items() -> list[Item]:
        from sklearn.datasets import load_digits  # a second of imports that only this source needs

        digits = load_digits()
        images = (digits.images * (255 / 16)).round().astype(np.uint8)  # 17 grey levels
        return [
            Item(f"{number:04}", int(label), None, partial(Image.fromarray, image))
            for number, (image, label) in enumerate(zip(images, digits.target, strict=True))
        ]

    return Source(tuple("0123456789"), list_items)


def _torchvision(data: DataParams) -> Source:
    name = data.source.partition(":")[2]
    known = [*_TORCHVISION_BY_FLAG, *_TORCHVISION_BY_NAME]
    if name not in known:
        guess = nearest(name, known, "torchvision:")
        raise UserError(f"data.source = {data.source!r} is unknown{guess}; expected one of {', '.join(known)}")
    splits: tuple[Literal["train", "test"], ...] = ("train", "test")
    sets = {split: _load_or_download(name, split, Path(data.root)) for split in splits}
    classes = getattr(sets["train"], "classes", None) or sorted({int(label) for label in _labels(sets["train"])})

    def list_items() -> list[Item]:
        return [
            Item(f"{split}/{number:05}", int(label), split, partial(_image_of, images, number))
            for split, images in sets.items()
            for number, label in enumerate(_labels(images))
        ]

    return Source(tuple(str(name) for name in classes), list_items)


def _load_or_download(name: str, split: Literal["train", "test"], root: Path) -> Any:
    from torchvision import datasets

    which = {"split": split} if name in _TORCHVISION_BY_NAME else {"train": split == "train"}
    load = partial(getattr(datasets, name), **which)
    # What torchvision raises if the data set is missing or one of its files is incomplete.
    with contextlib.suppress(RuntimeError, FileNotFoundError, ValueError, EOFError):
        return load(str(root))
    download = root / f".{name}.partial"  # so that a failed download leaves no incomplete data set
    print(f"downloading torchvision:{name} to {root}", flush=True)
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # hide its progress and its list of failed mirrors
            load(str(download), download=True)
        shutil.copytree(download, root, dirs_exist_ok=True)
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"data.source = 'torchvision:{name}' is not in data.root = {str(root)!r} and could not be downloaded "
            f"({reason}); copy it there, or check the network connection"
        ) from None
    finally:
        shutil.rmtree(download, ignore_errors=True)
    return load(str(root))


def _labels(images: Any) -> Any:
    return images.targets if hasattr(images, "targets") else images.labels


def _image_of(images: Any, number: int) -> Image.Image:
    image: Image.Image = images[number][0]
    return image


def _folder(data: DataParams) -> Source:
    root = Path(data.root)
    parents: list[tuple[Path, SplitName | None]] = [
        (folder, _SPLIT_FOLDERS[folder.name]) for folder in _subfolders(root) if folder.name in _SPLIT_FOLDERS
    ]
    if not any(split == "train" for _, split in parents):  # without a train folder, these are classes with such names
        parents = [(root, None)]
    class_folders = [(folder, split) for parent, split in parents for folder in _subfolders(parent)]
    # One list of classes over all splits: a class missing from one must not shift the labels of the others.
    classes = tuple(sorted({folder.name for folder, _ in class_folders}))
    for name in classes:
        if as_text(name) != name:
            raise UserError(
                f"data.root = {data.root!r}: the name of class folder {as_text(name)} is not UTF-8; rename it"
            )
    if len(classes) < 2:
        if not classes and (remedy := _remedy_in_copy(data.root)):
            raise UserError(f"data.root = {data.root!r} is not a folder{remedy}")
        found = "no class folder" if not classes else "one class folder"
        is_class = not classes and parents == [(root, None)] and any(find_images(root))
        above = " (is the folder above it the one?)" if is_class else ""
        raise UserError(f"data.root = {data.root!r} has {found}{above}; expected two or more, one per class, "
                         "directly in it or in each of train/ val/ test/")  # fmt: skip

    def list_items() -> list[Item]:
        items = [
            Item(path.relative_to(root).as_posix(), classes.index(folder.name), split, partial(open_image, path))
            for folder, split in class_folders
            for path in find_images(folder)
        ]
        labels = {item.label for item in items}
        for label, name in enumerate(classes):
            if label not in labels:
                raise UserError(
                    f"data.root = {data.root!r}: class folder {name!r} has no image; add images, or remove it"
                )
        return items

    return Source(classes, list_items)


def _subfolders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


SOURCES: dict[str, Callable[[DataParams], Source]] = {"digits": _digits, "torchvision": _torchvision, "folder": _folder}
