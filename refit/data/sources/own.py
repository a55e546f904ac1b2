"""A function of the user's own, by its dotted path: it takes data.root and returns the images."""

from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from refit.artifacts.files import as_text
from refit.data.images import BadImageError
from refit.data.sources.source import SPLITS, LabelledImage, Listing, Source, listed
from refit.params import DataParams
from refit.params.user_code import user_object
from refit.runtime.errors import UserError

_EXPECTED = "refit.data.sources.source.LabelledImage"


def own(data: DataParams) -> Source:
    where = f"data.source = {data.source!r}"
    function = user_object(data.source, "data.source", "function", callable)

    def list_images() -> Listing:
        images = function(Path(data.root))
        if not isinstance(images, Iterable):
            raise UserError(f"{where} returned {type(images).__name__}; expected several {_EXPECTED}")
        return listed(_checked(images, where), where)

    return Source(lambda: list_images().classes, list_images)


def _checked(images: Iterable[Any], where: str) -> list[LabelledImage]:
    """Raises UserError unless these are images with different names, whose labels, splits and groups can be used."""
    found: dict[str, LabelledImage] = {}
    for image in images:
        if not isinstance(image, LabelledImage):
            raise UserError(f"{where} gave {type(image).__name__}; expected {_EXPECTED}")
        for field in ("name", "label", *(["group"] if image.group is not None else [])):
            if not isinstance(value := getattr(image, field), str):
                raise UserError(f"{where} gave an image with {field} {value!r}; expected a text")
        if image.split not in (None, *SPLITS):
            raise UserError(f"{where} gave image {as_text(image.name)} split {image.split!r}; expected None or one of "
                            f"{', '.join(SPLITS)}")  # fmt: skip
        if image.name in found:
            raise UserError(f"{where} gave two images of the name {image.name!r}; each needs a name of its own")
        found[image.name] = replace(image, open=partial(_open, image, where))
    return list(found.values())


def _open(image: LabelledImage, where: str) -> Image.Image:
    """Raises BadImageError if it fails as Pillow's Image.open fails."""
    try:
        opened: object = image.open()
    except UserError:
        raise
    except (OSError, EOFError, ValueError, SyntaxError) as error:
        raise BadImageError(f"{type(error).__name__}: {error}") from None
    if not isinstance(opened, Image.Image):
        raise UserError(f"{where}: open() of image {as_text(image.name)} gave {type(opened).__name__}; expected "
                        "PIL.Image.Image")  # fmt: skip
    return opened
