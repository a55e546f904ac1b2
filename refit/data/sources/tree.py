"""Images in one folder per class, directly or in each of train/, val/ and test/: for folders and archives alike."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from refit.data.images import NO_IMAGE, has_image_suffix
from refit.data.sources.source import SPLIT_NAMES, LeftOut, SplitName

HIDDEN = "it or its folder is hidden, as its name begins with a dot or is __MACOSX"
_NO_CLASS = "it is in no class folder"
_OTHER = "it is in none of the split folders"


@dataclass(frozen=True)
class Member:
    """An image file in a class folder."""

    name: str
    label: str
    split: SplitName | None


@dataclass(frozen=True)
class Tree:
    classes: tuple[str, ...]
    """The names of the class folders, in alphabetical order."""
    members: Sequence[Member]
    """Files of a folder come before those of its subfolders, each in alphabetical order."""
    left_out: Sequence[LeftOut]
    has_splits: bool


def read_tree(files: Iterable[str], folders: Iterable[str]) -> Tree:
    """The classes and splits of `files`, which are paths below the root, with / between their parts. `folders` has the
    paths of the folders, of which some may be empty.

    If there is a folder train/, it and the other folders with names of splits hold the class folders; without it, such
    a name is that of a class. One list of classes is for all splits: a class that is missing from one does not change
    the labels of the others.
    """
    paths = [tuple(folder.split("/")) for folder in folders]
    tops = {path[0] for path in paths}
    has_splits = "train" in tops
    depth = 1 if has_splits else 0  # of a class folder
    parents = tops & SPLIT_NAMES.keys() if has_splits else tops
    classes = {
        path[depth] for path in paths if len(path) > depth and path[0] in parents and not is_hidden(path[: depth + 1])
    }
    members, left_out = [], []
    for parts in sorted((tuple(file.split("/")) for file in files), key=_files_first):
        name = "/".join(parts)
        if is_hidden(parts):
            left_out.append(LeftOut(name, HIDDEN))
        elif len(parts) > 1 and has_splits and parts[0] not in parents:
            left_out.append(LeftOut(name, _OTHER))
        elif not has_image_suffix(name):
            left_out.append(LeftOut(name, NO_IMAGE))
        elif len(parts) < depth + 2:
            left_out.append(LeftOut(name, _NO_CLASS))
        else:
            members.append(Member(name, parts[depth], SPLIT_NAMES[parts[0]] if has_splits else None))
    return Tree(tuple(sorted(classes)), members, left_out, has_splits)


def is_hidden(parts: Sequence[str]) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in parts)


def _files_first(parts: tuple[str, ...]) -> list[tuple[int, str]]:
    return [*((1, folder) for folder in parts[:-1]), (0, parts[-1])]
