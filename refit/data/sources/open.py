"""Open the source that data.source names."""

from collections.abc import Callable
from pathlib import Path

from refit.artifacts.paths import repository_root
from refit.data.sources.archive import archive
from refit.data.sources.digits import digits
from refit.data.sources.folder import folder
from refit.data.sources.manifest import manifest
from refit.data.sources.own import own
from refit.data.sources.source import Source
from refit.data.sources.torchvision import torchvision
from refit.params import DataParams, nearest
from refit.runtime.errors import UserError

SOURCES: dict[str, Callable[[DataParams], Source]] = {
    "digits": digits, "torchvision": torchvision, "folder": folder, "archive": archive, "manifest": manifest,
}  # fmt: skip


def open_source(data: DataParams) -> Source:
    """Open the source that `data.source` names; downloads a torchvision data set that is not in `data.root`.

    Raises UserError if the source is unknown, or its images cannot be found or downloaded.
    """
    kind, _, name = data.source.partition(":")
    is_own = "." in kind and not name
    if not is_own and (kind not in SOURCES or bool(name) != (kind == "torchvision")):
        guess = nearest(data.source, [*SOURCES])
        raise UserError(f"data.source = {data.source!r} is unknown{guess}; expected digits, folder, archive, manifest, "
                        "torchvision:NAME, or a dotted path to a function of your own")  # fmt: skip
    try:
        return (own if is_own else SOURCES[kind])(data)
    except UserError:
        if remedy := _remedy_in_copy(data.root):
            raise UserError(f"data.root = {data.root!r} is not a folder or file{remedy}") from None
        raise


def stores_photos(source: str) -> bool:
    """Whether a source has images of whatever size, and not a data set of small images that all have the same one."""
    return source.partition(":")[0] not in ("digits", "torchvision")


def link_in_copy(root: str) -> None:
    """In an experiment's copy of the repository, link to the repository's own raw images if git ignores them: DVC
    copies only what git tracks."""
    original = repository_root() / root
    if original.exists() and not Path(root).exists() and ".." not in Path(root).parts:
        Path(root).parent.mkdir(parents=True, exist_ok=True)
        Path(root).symlink_to(original)


def _remedy_in_copy(root: str) -> str:
    """The end of an error about raw images that an experiment's copy of the repository lacks or has without its images,
    as data/raw, which git tracks but for what is in it; empty outside such a copy."""
    original = repository_root() / root
    if not original.exists() or original == Path(root).resolve():
        return ""
    return (
        f" with images in this experiment's copy of the repository, as git ignores it; queue the experiment with "
        f"-S data.root={original}, or version the images first: dvc add {root}"
    )
