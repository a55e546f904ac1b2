"""A function of the user's own, by its dotted path: it takes data.root and returns the images."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from refit.data.sources.source import LabelledImage, Listing, Source, listed
from refit.params import DataParams
from refit.params.user_code import user_object
from refit.runtime.errors import UserError


def own(data: DataParams) -> Source:
    where = f"data.source = {data.source!r}"
    function = user_object(data.source, "data.source", "function", callable)

    def list_images() -> Listing:
        return listed(_checked(function(Path(data.root)), where), where)

    return Source(lambda: list_images().classes, list_images)


def _checked(images: Iterable[Any], where: str) -> list[LabelledImage]:
    """Raises UserError unless these are images with different names."""
    found: dict[str, LabelledImage] = {}
    for image in images:
        if not isinstance(image, LabelledImage):
            raise UserError(f"{where} gave {type(image).__name__}; expected refit.data.sources.source.LabelledImage")
        if image.name in found:
            raise UserError(f"{where} gave two images of the name {image.name!r}; each needs a name of its own")
        found[image.name] = image
    return list(found.values())
