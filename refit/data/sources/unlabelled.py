"""Images to classify: the value of predict.images."""

from collections.abc import Callable
from pathlib import Path

from refit.artifacts.files import as_text
from refit.data.sources.archive import ARCHIVES, images_in_archive
from refit.data.sources.folder import images_in_folder
from refit.data.sources.manifest import images_in_table
from refit.data.sources.source import LeftOut, Unlabelled
from refit.data.sources.tables import TABLES
from refit.runtime.errors import UserError


def check_unlabelled(images: str) -> None:
    """Raises UserError unless `images`, the value of predict.images, is a folder, an archive or a table."""
    _unlabelled_kind(images)


def unlabelled(images: str) -> tuple[list[Unlabelled], list[LeftOut]]:
    """The images in `images`, the value of predict.images: a folder, which may have none, an archive or a table. Raises
    UserError."""
    found, left_out = _unlabelled_kind(images)(Path(images))
    if not found and Path(images).is_file():  # the test split in its place would be a surprise
        first = f", such as {as_text(left_out[0].name)}: {left_out[0].why}" if left_out else ""
        raise UserError(f"predict.images = {images!r} has no image that can be read{first}")
    return found, left_out


def _unlabelled_kind(images: str) -> Callable[[Path], tuple[list[Unlabelled], list[LeftOut]]]:
    path = Path(images)
    if path.is_dir():
        return images_in_folder
    if not path.is_file():
        raise UserError(f"predict.images = {images!r} does not exist; create the folder, or set another one")
    if path.name.lower().endswith(ARCHIVES):
        return images_in_archive
    if path.name.lower().endswith(TABLES):
        return images_in_table
    raise UserError(f"predict.images = {images!r} is no folder, archive or table; expected a folder or a file that "
                    f"ends in {', '.join([*ARCHIVES, *TABLES])}")  # fmt: skip
