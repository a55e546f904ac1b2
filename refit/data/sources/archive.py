"""An archive of class folders, zip or tar, read where it is: nothing in it is written to a path that it names.

A compressed tar has to be decompressed to be read in any order: it goes into one temporary file, which has no name.
"""

import os
import posixpath
import re
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from lzma import LZMAError
from pathlib import Path, PurePosixPath
from struct import error as StructError  # noqa: N812
from typing import BinaryIO, NamedTuple, cast
from zlib import error as ZlibError  # noqa: N812

from PIL import Image

from refit.artifacts.files import as_text
from refit.data.images import BadImageError, open_image
from refit.data.sources.source import (
    LabelledImage,
    LeftOut,
    Listing,
    Source,
    Unlabelled,
    Watched,
    listed,
    root_file,
)
from refit.data.sources.tree import HIDDEN, is_hidden, read_tree
from refit.params import DataParams
from refit.runtime.errors import UserError

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst")
MOST_FILES = 5_000_000
MOST_BYTES = 2**30  # of one file
MOST_GROWTH = 200  # of more than a tenth of MOST_BYTES: how many times the compressed size; photos hardly grow

_DAMAGED = (OSError, EOFError, ValueError, IndexError, ArithmeticError, ZlibError, LZMAError, StructError,
            tarfile.TarError, zipfile.BadZipFile, NotImplementedError, RuntimeError)  # fmt: skip
"""What the standard library raises for a file that is damaged, encrypted, or compressed in an unusual way."""


_OF_WINDOWS = re.compile(r"\\|[A-Za-z]:[\\/]")  # a path with a drive, or from the root of one


class _Member(NamedTuple):
    name: str
    read: Callable[[], bytes]
    """Raises BadImageError."""
    fault: str | None
    """Why it cannot be read."""


class _Content(NamedTuple):
    members: list[_Member]
    folders: list[str]


def archive(data: DataParams) -> Source:
    path = root_file(data, f"an archive: {', '.join(ARCHIVES)}")
    where = f"data.root = {data.root!r}"
    if not path.name.lower().endswith(ARCHIVES):
        raise UserError(f"{where} is no archive that Refit reads; expected {', '.join(ARCHIVES)}")
    return Source(lambda: _list_images(path, where).classes, partial(_list_images, path, where))


def images_in_archive(path: Path) -> tuple[list[Unlabelled], list[LeftOut]]:
    """The image files of an archive, in whatever folders, and what is left out. Raises UserError."""
    content = _read(path, str(path))
    # As if all were in one class folder, so that nothing is in none.
    tree = read_tree([f"all/{member.name}" for member in content.members], ["all"])
    members = {member.name: member for member in content.members}
    left_out = [LeftOut(gone.name.partition("/")[2], gone.why) for gone in tree.left_out]
    images = [members[member.name.partition("/")[2]] for member in tree.members]
    left_out += [LeftOut(member.name, member.fault, fault=True) for member in images if member.fault]
    return [Unlabelled(as_text(member.name), partial(_open, member)) for member in images if not member.fault], left_out


def _list_images(path: Path, where: str) -> Listing:
    """The names are relative to the common folder, so that the splits are those of the same images in a folder."""
    watched = Watched({path.name: path}, where)
    version = watched.version(path.name)
    content = _read(path, where)
    top = _common_folder(content)
    members = {member.name.removeprefix(top): member for member in content.members if member.name.startswith(top)}
    tree = read_tree(members, [name.removeprefix(top) for name in content.folders if name.startswith(top)])
    if absent := sorted(set(tree.classes) - {member.label for member in tree.members}):
        raise UserError(f"{where}: class folder {as_text(absent[0])!r} has no image; add images, or remove it")
    beside = (member.name for member in content.members if not member.name.startswith(top))
    images, left_out = [], [*tree.left_out, *(LeftOut(posixpath.relpath(name, top), HIDDEN) for name in beside)]
    for name, label, split in ((member.name, member.label, member.split) for member in tree.members):
        if fault := members[name].fault:
            left_out.append(LeftOut(name, fault, fault=True))
        else:
            images.append(LabelledImage(name, label, partial(_open, members[name]), split, version=version))
    return listed(images, where, left_out, tree.classes, watched.check_unchanged)


def _open(member: _Member) -> Image.Image:
    return open_image(member.read())


def _read(path: Path, where: str) -> _Content:
    """Raises UserError if the archive is damaged, or has a member that no archive of images has."""
    try:
        content = _of_zip(path, where) if path.name.lower().endswith(".zip") else _of_tar(path, where)
    except UserError:
        raise
    except _DAMAGED as error:
        reason = as_text(str(error)) or type(error).__name__
        raise UserError(f"{where} cannot be read: {reason}; it may be incomplete: copy or download it again") from None
    seen: set[str] = set()
    for member in content.members:
        if member.name in seen:
            raise UserError(f"{where}: {as_text(member.name)} is in it twice; make it anew")
        seen.add(member.name)
    return content


def _common_folder(content: _Content) -> str:
    """The path of the folder that holds everything visible, with a / at its end: many archives have a single folder at
    the top. If that folder in turn holds a single folder, the path goes on into it. Empty if there is no such folder.
    A single folder train/ is that of a split, so the path ends above it."""
    top = ""
    while True:
        names = {name.removeprefix(top) for name in [*content.folders, *(member.name for member in content.members)]
                 if name.startswith(top) and name != top}  # fmt: skip
        visible = {first for name in names if not is_hidden([first := name.partition("/")[0]])}
        nested = {name.partition("/")[0] for name in names if "/" in name}
        only = visible.pop() if len(visible) == 1 else None
        if only is None or only not in nested or only == "train":
            return top
        top += f"{only}/"


def _checked_name(name: str, where: str) -> str:
    """The name of a member. Raises UserError if it points out of the archive."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\0" in name or _OF_WINDOWS.match(name):
        raise UserError(f"{where}: {as_text(name)!r} is a path out of the archive; it was not made for images only")
    return str(path)


def _folders_above(names: Iterator[str]) -> list[str]:
    found: set[str] = set()
    for name in names:
        for parent in PurePosixPath(name).parents:
            if str(parent) == "." or str(parent) in found:
                break
            found.add(str(parent))
    return sorted(found)


def _too_large(size: int) -> str | None:
    return f"its {size:,} bytes exceed the limit of {MOST_BYTES:,}" if size > MOST_BYTES else None


def _grows_too_much(size: int, compressed: int) -> bool:
    return size > MOST_BYTES // 10 and size > MOST_GROWTH * max(compressed, 1)


# Zip


class _Zip:
    """Reads a zip file, which each process opens for itself: a position in an open file is shared with forks."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.process = 0
        self.opened: zipfile.ZipFile | None = None

    def file(self) -> zipfile.ZipFile:
        if self.opened is None or self.process != os.getpid():
            self.opened, self.process = zipfile.ZipFile(self.path), os.getpid()
        return self.opened

    def read(self, info: zipfile.ZipInfo) -> bytes:
        try:
            with self.file().open(info) as file:
                return file.read(info.file_size)  # no more, whatever its compressed bytes become
        except _DAMAGED as error:
            raise BadImageError(f"it cannot be read from the archive: {error or type(error).__name__}") from None


def _of_zip(path: Path, where: str) -> _Content:
    reader = _Zip(path)
    infos = reader.file().infolist()
    if len(infos) > MOST_FILES:
        raise UserError(f"{where} has {len(infos):,} files, more than {MOST_FILES:,}")
    members, folders = [], []
    for info in infos:
        # Not info.filename, which ends before a NUL; with a backslash, as some programs for Windows write it.
        given = info.orig_filename.replace("\\", "/")
        name = _checked_name(given, where)
        kind = info.external_attr >> 28  # of a file that was archived on Unix
        if kind not in (0, 0x4, 0x8):
            raise UserError(f"{where}: {as_text(name)} is a link or a device; archive the files themselves")
        if given.endswith("/"):
            folders.append(name)
            continue
        fault = None
        if info.flag_bits & 1:
            fault = "it is encrypted"
        elif info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            fault = f"it is compressed by method {info.compress_type}; expected none, or Deflate as zip uses"
        elif _too_large(info.file_size):
            fault = _too_large(info.file_size)
        elif _grows_too_much(info.file_size, info.compress_size):
            fault = f"it is a decompression bomb: {info.compress_size:,} bytes become {info.file_size:,}"
        members.append(_Member(name, partial(reader.read, info), fault))
    return _Content(members, [*folders, *_folders_above(member.name for member in members)])


# Tar


class _Tar:
    """Reads an uncompressed tar, which stays open until its last member is gone."""

    def __init__(self, file: BinaryIO) -> None:
        self.descriptor = os.dup(file.fileno())

    def __del__(self) -> None:
        os.close(self.descriptor)

    def read(self, start: int, size: int) -> bytes:
        """Without a position, which forks and threads would share."""
        content = os.pread(self.descriptor, size, start)
        if len(content) < size:
            raise BadImageError("the archive ends within it")
        return content


def _of_tar(path: Path, where: str) -> _Content:
    members, folders = [], []
    with _uncompressed(path, where) as file, tarfile.open(fileobj=file, mode="r:") as tar:
        reader = _Tar(file)
        for number, info in enumerate(tar):
            name = _checked_name(info.name, where)
            if info.size < 0:
                raise tarfile.TarError(f"the size of {as_text(name)} is negative")  # tarfile would go back to its start
            if number == MOST_FILES:
                raise UserError(f"{where} has more than {MOST_FILES:,} files")
            if info.issparse():
                raise UserError(f"{where}: {as_text(name)} is a sparse file; archive it without --sparse")
            if info.isdir():
                if name != ".":
                    folders.append(name)
            elif info.isreg():
                fault = _too_large(info.size)
                members.append(_Member(name, partial(reader.read, info.offset_data, info.size), fault))
            else:
                raise UserError(f"{where}: {as_text(name)} is a link or a device; archive the files themselves")
            tar.members = []  # type: ignore[attr-defined]  # or tarfile keeps all of them in memory
        _check_end(file, tar.offset)
    return _Content(members, [*folders, *_folders_above(member.name for member in members)])


def _check_end(file: BinaryIO, end: int) -> None:
    """Raises TarError unless only zeros follow the last member: tarfile ends at a damaged header as at the end."""
    file.seek(end)
    rest = file.read(2**20)
    if not rest:
        raise tarfile.TarError("it has no end")
    while rest:
        if rest.count(0) < len(rest):
            raise tarfile.TarError(f"it is damaged after {end:,} bytes, or two archives in one file")
        rest = file.read(2**20)


@contextmanager
def _uncompressed(path: Path, where: str) -> Iterator[BinaryIO]:
    """The tar itself, or what it decompresses to, in a temporary file that is gone when it is no longer open."""
    if path.name.lower().endswith(".tar"):
        with path.open("rb") as file:
            yield file
        return
    compressed, size = path.stat().st_size, 0
    with tempfile.TemporaryFile() as file:
        with _decompressor(path) as stream:
            while block := stream.read(2**20):
                if size % 2**28 < 2**20 and shutil.disk_usage(tempfile.gettempdir()).free < 2**28:
                    raise UserError(f"{where} needs more space than {tempfile.gettempdir()} has to be decompressed; "
                                    "set TMPDIR to a folder on a larger disk, or use an uncompressed .tar")  # fmt: skip
                size += len(block)
                if _grows_too_much(size, compressed):
                    raise UserError(f"{where} is a decompression bomb: {compressed:,} bytes become more than {size:,}")
                file.write(block)
        file.seek(0)
        yield cast(BinaryIO, file)


def _decompressor(path: Path) -> BinaryIO:
    if path.name.lower().endswith((".zst", ".tzst")):
        import pyarrow as pa

        return cast(BinaryIO, pa.input_stream(str(path), compression="zstd"))
    import bz2
    import gzip
    import lzma

    suffix = path.suffix.lower()
    if suffix in (".bz2", ".tbz2"):
        return cast(BinaryIO, bz2.open(path))
    return cast(BinaryIO, lzma.open(path) if suffix in (".xz", ".txz") else gzip.open(path))
