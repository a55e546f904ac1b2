"""A folder with one folder per class, directly or in each of train/, val/ and test/."""

import os
from functools import partial
from pathlib import Path

from refit.artifacts.files import as_text
from refit.data.images import NO_IMAGE, find_images, find_others, open_image
from refit.data.sources.source import (
    LabelledImage,
    LeftOut,
    Listing,
    Source,
    Unlabelled,
    Watched,
    check_class_names,
    listed,
    root_folder,
)
from refit.data.sources.tree import read_tree
from refit.params import DataParams
from refit.runtime.errors import UserError

_LINK = "it is a link to a folder; these may form loops"


def folder(data: DataParams) -> Source:
    root, where = root_folder(data), f"data.root = {data.root!r}"
    classes = read_tree((), _subfolders(root)).classes
    if len(classes) < 2:
        found = "no class folder" if not classes else "one class folder"
        holds_images = not classes and any(read_tree([f"x/{file.name}"], ["x"]).members for file in root.iterdir())
        above = " (is the folder above it the one?)" if holds_images else ""
        raise UserError(f"{where} has {found}{above}; expected two or more, one per class, directly in it or in each "
                        "of train/ val/ test/")  # fmt: skip
    check_class_names(classes, where)
    return Source(lambda: classes, partial(_list_images, root, where))


def images_in_folder(root: Path) -> tuple[list[Unlabelled], list[LeftOut]]:
    """The image files below a folder, in whatever folders, and what is left out but for hidden files."""
    images = [Unlabelled(as_text(file.relative_to(root).as_posix()), partial(open_image, file))
              for file in find_images(root)]  # fmt: skip
    return images, [LeftOut(file.relative_to(root).as_posix(), NO_IMAGE) for file in find_others(root)]


def _subfolders(root: Path) -> list[str]:
    """The folders in `root` and in these, but for links, relative to it."""
    found = []
    for parent in _folders_in(root):
        found += [parent.name, *(f"{parent.name}/{child.name}" for child in _folders_in(parent))]
    return found


def _folders_in(folder: Path) -> list[Path]:
    try:
        return [path for path in folder.iterdir() if path.is_dir() and not path.is_symlink()]
    except OSError as error:
        raise _unreadable(error) from None


def _unreadable(error: OSError) -> UserError:
    return UserError(f"{as_text(str(error.filename))} cannot be read: {error.strerror}")


def _list_images(root: Path, where: str) -> Listing:
    files, folders, links = _walk(root)
    tree = read_tree(files, folders)
    if absent := sorted(set(tree.classes) - {member.label for member in tree.members}):
        raise UserError(f"{where}: class folder {absent[0]!r} has no image; add images, or remove it")
    watched = Watched({member.name: root / member.name for member in tree.members}, where)
    images = [
        LabelledImage(
            member.name,
            member.label,
            partial(open_image, root / member.name),
            member.split,
            version=watched.version(member.name),
        )
        for member in tree.members
    ]
    left_out = [*tree.left_out, *(LeftOut(name, _LINK) for name in links)]
    return listed(images, where, left_out, tree.classes, watched.check_unchanged)


def _walk(root: Path) -> tuple[list[str], list[str], list[str]]:
    """The files, the folders and the links to folders below `root`, relative to it."""
    files: list[str] = []
    folders: list[str] = []
    links: list[str] = []

    def refuse(error: OSError) -> None:  # os.walk would leave out the folder without a word
        raise _unreadable(error)

    for parent, names, contents in os.walk(root, onerror=refuse):
        below = "" if parent == str(root) else f"{os.path.relpath(parent, root)}/"
        for name in names:
            (links if Path(parent, name).is_symlink() else folders).append(f"{below}{name}")
        files += [f"{below}{name}" for name in contents]
    return files, folders, links
