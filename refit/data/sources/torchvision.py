"""Torchvision's data sets with a class for each image, downloaded into data.root if they are not there."""

import contextlib
import io
import shutil
from functools import partial
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from refit.data.sources.source import LabelledImage, Listing, Source, listed, root_folder
from refit.params import DataParams, nearest
from refit.runtime.errors import UserError

_BY_FLAG = ("MNIST", "FashionMNIST", "KMNIST", "USPS", "CIFAR10", "CIFAR100")  # train=True or False
_BY_NAME = ("SVHN", "STL10")  # split="train" or "test"


def torchvision(data: DataParams) -> Source:
    name = data.source.partition(":")[2]
    known = [*_BY_FLAG, *_BY_NAME]
    if name not in known:
        guess = nearest(name, known, "torchvision:")
        raise UserError(f"data.source = {data.source!r} is unknown{guess}; expected one of {', '.join(known)}")
    splits: tuple[Literal["train", "test"], ...] = ("train", "test")
    sets = {split: _load_or_download(name, split, root_folder(data)) for split in splits}
    names = getattr(sets["train"], "classes", None) or sorted({int(label) for label in _labels(sets["train"])})
    classes = tuple(str(name) for name in names)

    def list_images() -> Listing:
        images = (
            LabelledImage(f"{split}/{number:05}", classes[int(label)], partial(_image_of, of_split, number), split)
            for split, of_split in sets.items()
            for number, label in enumerate(_labels(of_split))
        )
        return listed(images, f"data.source = {data.source!r}", classes=classes)

    return Source(lambda: classes, list_images)


def _load_or_download(name: str, split: Literal["train", "test"], root: Path) -> Any:
    from torchvision import datasets

    which = {"split": split} if name in _BY_NAME else {"train": split == "train"}
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
