"""Sections `data` and `augment`: the images."""

from pathlib import PurePath
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from refit.params.types import NOT_BOOL, Fraction, Section, real

Resize = Literal["crop", "squash", "pad"]


class DataParams(Section):
    source: Annotated[str, Field(min_length=1)] = "digits"
    """Where the images come from. folder: data.root, with one folder per class. archive: the same in a zip or tar file,
    which is data.root. manifest: a table with a row for each image, which is data.root: a CSV or Parquet file, or a
    folder of them, also as Hugging Face writes them. digits: bundled. torchvision:NAME. Or the dotted path of your own
    function, such as refit.data.own.images, which takes data.root. See docs/own_images.md."""
    root: Annotated[str, Field(min_length=1)] = "data/raw"
    """The raw images: a folder, or for data.source archive and manifest a file. It must exist. Torchvision's data sets
    are downloaded into it if they are not there yet."""
    image_size: Literal["auto"] | Annotated[int, Field(ge=4, le=1024)] = "auto"
    """Side of the square images that prepare writes, in pixels. auto: for a network of torchvision or timm with
    model.weights, the size of the images that these weights were trained on (for a file: that of the network's usual
    weights), unless data.source is digits or torchvision. Otherwise the size of the raw images if all have the same
    one, else 128. So digits and torchvision's data sets, of 8 to 96 pixels, keep their size also with such weights:
    enlarged to 224 they would take up to 49 times the space, and each step as many times the work. Set a number to do
    that."""
    resize: Resize = "crop"
    """How an image that is not square becomes one of image_size, in prepare and for new images. crop: resized until it
    covers the square, then cropped at the centre. squash: resized to the square, so its aspect ratio is lost. pad:
    resized until all of it fits inside the square, with a black border, as augment.shift fills its border."""
    color: Literal["auto", "grey", "rgb"] = "auto"
    """Colour mode of the images that prepare writes. auto: grey if every raw image is grey, else rgb."""
    val: Fraction = 0.15
    """Fraction of the training images held out for validation. Ignored if the source has its own validation split."""
    test: Fraction = 0.2
    """Fraction of the training images held out for testing. Ignored if the source has its own test split."""
    bad_images: Literal["fail", "skip"] = "fail"
    """What to do with an image that cannot be decoded or has two labels. fail: stop and name it. skip: leave it out and
    count it."""

    storage: Literal["auto", "pixels", "encoded"] = "auto"
    """How prepare stores the images. pixels: as they are in memory, in a file that is mapped if it is large. encoded:
    as lossless WebP, decoded for each batch; photos take a third of the space, and the model has the same bits. auto:
    encoded if the pixels of all images take more than 16 GiB. See docs/own_images.md."""

    shards: Annotated[str, Field(pattern=r"^[a-z0-9]+://\S")] | None = None
    """Where encoded images lie: an address such as s3://bucket/shards, from which each batch is read, so that no disk
    of this machine has to hold them. It needs storage: encoded. null: in data/prepared. See docs/large_data.md."""

    group_duplicates: bool = False
    """Whether near-duplicates get the same split where Refit draws splits, as identical images always do: images that
    are re-saved, rescaled, cropped by a few percent, brighter or mirrored copies of each other. Splits of the source
    are kept. true needs the extra audit, and takes some seconds for a few thousand images. See docs/audit.md."""

    @model_validator(mode="after")
    def _shards_are_encoded(self) -> Self:
        if self.shards and self.storage != "encoded":
            raise ValueError(f"shards = {self.shards!r} has no effect with storage = {self.storage}; set storage to "
                             "encoded, or shards to null")  # fmt: skip
        return self

    @model_validator(mode="after")
    def _some_images_remain_for_training(self) -> Self:
        if self.val + self.test >= 1:
            raise ValueError(
                f"val + test = {self.val + self.test:g} leaves no images for training; expected less than 1"
            )
        return self


def data_name(source: str, root: str) -> str:
    """What people call the data: the folder's own name, or that of torchvision's data set, such as FashionMNIST."""
    if source in ("folder", "archive", "manifest"):
        return PurePath(root).name.partition(".")[0] or source
    return source.rpartition(":")[2].rpartition(".")[2]


class AugmentParams(Section):
    train_size: Annotated[int, Field(ge=4, le=1024)] | None = None
    """Side of the images that the network is trained on, in pixels: each image, or its random crop, is resized to it.
    Validation, test and prediction use all of data.image_size. A smaller size trains faster, and a network is often
    more accurate at a somewhat larger size than it was trained at (Touvron et al. 2019). The shorter side, if the
    images are not square. null: that of the prepared images."""
    shift: Annotated[int, Field(ge=0, le=64)] = 0
    """Largest random shift of a training image along each axis, in pixels of the size that it is trained at; the border
    is filled with zeros. 0: off."""
    flip: bool = False
    """Mirror each training image left to right with probability 0.5."""
    cutout: Annotated[int, Field(ge=0, le=512)] = 0
    """Side of a square set to zero at a random place of each training image, in pixels of the size that it is trained
    at. 0: off."""
    crop_area: Annotated[float, real(gt=0, le=1), NOT_BOOL] = 1.0
    """Smallest fraction of a training image's area that a random crop covers. The crop's aspect ratio is between 3:4
    and 4:3, and it is resized to train_size, or to the full image size (Szegedy et al. 2015). 1: off."""
    color_jitter: Fraction = 0.0
    """Multiply brightness, contrast and saturation of each training image, in this order, by random factors between
    1 - color_jitter and 1 + color_jitter, as torchvision's ColorJitter does. Grey images have no saturation. 0: off."""
    policy: Literal["none", "randaugment", "trivialaugment"] = "none"
    """Random operations on each training image. randaugment: two of 14 operations, at magnitude 9 of 30 (Cubuk et al.
    2020). trivialaugment: one of them, at a random magnitude of the wide range (Müller and Hutter 2021)."""
    mixup: Annotated[float, real(ge=0, le=100), NOT_BOOL] = 0.0
    """Blend each training image and its label with another image and its label (Zhang et al. 2018). The value is alpha
    of Beta(alpha, alpha), from which the blending weight is drawn, such as 0.2. 0: off. If cutmix is on too, one of the
    two is drawn for each image."""
    cutmix: Annotated[float, real(ge=0, le=100), NOT_BOOL] = 0.0
    """Paste a random rectangle of another training image over each image, and mix the labels by area (Yun et al. 2019).
    The value is alpha of Beta(alpha, alpha), from which the area is drawn, such as 1. 0: off."""
