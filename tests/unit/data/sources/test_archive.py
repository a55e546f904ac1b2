"""Archives: the same images as in a folder, and one clear error for each that is damaged, odd or hostile."""

import gzip
import os
import shutil
import struct
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refit.data.images import BadImageError
from refit.data.parallel import in_parallel
from refit.data.sources import archive
from refit.runtime.errors import UserError
from tests.fixtures import Changed
from tests.fixtures.sources import (
    Files,
    add_to_tar,
    animals,
    left_out,
    listed,
    opened,
    packed,
    pixels,
    png,
    pngs,
    tar_of,
    write_archive,
    write_files,
)

KINDS = ("zip", "tar", "tar.gz", "tar.bz2", "tar.xz", "tar.zst")
SPLITS = pngs(f"{split}/{name}/{n}.png" for split in ("train", "val", "test") for name in ("cat", "dog") for n in "12")
TRAIN_ALONE = {f"train/{name}": content for name, content in animals().items()}
HIDDEN = {"photos/.DS_Store": b"x", ".DS_Store": b"x", "__MACOSX/photos/._1.png": b"x"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("files", [animals(), SPLITS, TRAIN_ALONE], ids=["drawn", "given", "train alone"])
def test_an_archive_gives_the_same_data_set_as_its_folder(
    kind: str, files: Files, changed: Changed, tmp_path: Path
) -> None:
    folder = write_files(tmp_path / "raw", files)
    in_folder, in_archive = opened(changed, "folder", folder), opened(
        changed, "archive", write_archive(tmp_path / f"photos.{kind}", dict(reversed(list(files.items()))))
    )  # fmt: skip
    assert listed(in_archive) == listed(in_folder)
    assert in_archive.read_classes() == in_folder.read_classes() == ("cat", "dog")
    for ours, theirs in zip(in_archive.list_images().items, in_folder.list_images().items, strict=True):
        assert np.array_equal(pixels(ours), pixels(theirs))
    of_folder = packed(changed, "folder", folder, tmp_path / "1").info
    of_archive = packed(changed, "archive", tmp_path / f"photos.{kind}", tmp_path / "2").info
    assert of_archive.sha256 == of_folder.sha256
    assert (tmp_path / "1/manifest.parquet").read_bytes() == (tmp_path / "2/manifest.parquet").read_bytes()


@pytest.mark.parametrize("kind", ["zip", "tar"])
@pytest.mark.parametrize("top", ["photos/", "photos/2026/"])
def test_a_common_top_folder_changes_neither_names_nor_splits(
    kind: str, top: str, changed: Changed, tmp_path: Path
) -> None:
    inside = {f"{top}{name}": content for name, content in animals().items()}
    with_top = opened(changed, "archive", write_archive(tmp_path / f"top.{kind}", inside | HIDDEN))
    assert listed(with_top) == listed(opened(changed, "folder", write_files(tmp_path / "raw", animals())))
    up = "../" * top.count("/")
    assert {f"{up}.DS_Store", f"{up}__MACOSX/photos/._1.png"} <= set(left_out(with_top))


MORE = {"photos/1.png": b"", "photos/notes.txt": b"x"}


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_each_file_beside_the_images_is_left_out_with_its_reason(kind: str, changed: Changed, tmp_path: Path) -> None:
    inside = {f"photos/{name}": content for name, content in animals().items()}
    source = opened(changed, "archive", write_archive(tmp_path / f"top.{kind}", inside | HIDDEN | MORE))
    gone = left_out(source)
    assert set(gone) == {".DS_Store", "../.DS_Store", "../__MACOSX/photos/._1.png", "notes.txt", "1.png"}
    assert "hidden" in gone["../__MACOSX/photos/._1.png"]
    assert "hidden" in gone[".DS_Store"]
    assert "does not end in" in gone["notes.txt"]
    assert gone["1.png"] == "it is in no class folder"


def _row_of_pixels(items: Any, number: int) -> list[int]:
    found: list[int] = pixels(items[number]).ravel().tolist()
    return found


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_forked_processes_and_threads_read_each_their_own_image(kind: str, changed: Changed, tmp_path: Path) -> None:
    files = animals(100)
    items = opened(changed, "archive", write_archive(tmp_path / f"photos.{kind}", files)).list_images().items
    expected = [[n] * 16 for n in sorted(range(200), key=lambda n: list(files)[n])]
    assert list(in_parallel(lambda n: _row_of_pixels(items, n), len(items))) == expected
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda n: _row_of_pixels(items, n), range(len(items)))) == expected
    assert list(in_parallel(lambda n: _row_of_pixels(items, n), len(items))) == expected


def test_backslashes_of_windows_are_folders_in_a_zip(changed: Changed, tmp_path: Path) -> None:
    files = {name.replace("/", "\\"): content for name, content in animals().items()} | {"cat\\": b""}
    assert len(listed(opened(changed, "archive", write_archive(tmp_path / "photos.zip", files)))) == 12


def test_a_name_that_is_not_utf_8_is_listed_and_escaped_in_the_tables(changed: Changed, tmp_path: Path) -> None:
    files = animals() | {os.fsdecode(b"cat/caf\xe9.png"): png(99), os.fsdecode(b"cat/\xe9.txt"): b""}
    result = packed(changed, "archive", write_archive(tmp_path / "photos.tar", files), tmp_path / "packed")
    assert sum(result.info.counts.values()) == 13
    assert [row["file"] for row in result.left_out] == [r"cat/\udce9.txt"]


# Archives that are refused: what is written, and the promised message


def tar_with(info: tarfile.TarInfo, path: Path, **format: int) -> Path:
    with tarfile.open(path, "w", **format) as tar:  # type: ignore[call-overload]
        add_to_tar(tar, animals())
        tar.addfile(info)
    return path


def special(kind: bytes, target: str = "cat/0.png") -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        info = tarfile.TarInfo("cat/odd.png")
        info.type, info.linkname = kind, target
        return tar_with(info, folder / "photos.tar")

    return write


def zip_mode(mode: int) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        path = write_archive(folder / "photos.zip", animals())
        info = zipfile.ZipInfo("cat/odd.png")
        info.external_attr = mode << 16
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(info, b"/etc/passwd")
        return path

    return write


def named(kind: str, name: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        return write_archive(folder / f"photos.{kind}", animals() | {name: png(99)})

    return write


def raw(name: str, content: bytes) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return write


def zip_with_name(name: bytes) -> Callable[[Path], Path]:
    """Written over a name of the same length, because Python's own writer would change it."""

    def write(folder: Path) -> Path:
        path = write_archive(folder / "photos.zip", animals() | {"Q" * len(name): png(99)})
        path.write_bytes(path.read_bytes().replace(b"Q" * len(name), name))
        return path

    return write


def zip_not_utf_8(folder: Path) -> Path:
    path = write_archive(folder / "photos.zip", animals() | {"cat/caf\xe9.png": png(99)})
    path.write_bytes(path.read_bytes().replace(b"caf\xc3\xa9", b"caf\xff\xff"))
    return path


def empty_name(folder: Path) -> Path:
    path = folder / "photos.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(zipfile.ZipInfo(""), b"x")
    return path


def cut(kind: str, part: float) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        path = write_archive(folder / f"photos.{kind}", animals())
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * part)])
        return path

    return write


def flipped(kind: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        path = write_archive(folder / f"photos.{kind}", {"cat/0.png": np.random.default_rng(0).bytes(9999)} | animals())
        content = bytearray(path.read_bytes())
        content[len(content) // 2 : len(content) // 2 + 8] = b"\xff" * 8
        path.write_bytes(content)
        return path

    return write


def tar_blocks(change: Callable[[bytes], bytes]) -> Callable[[Path], Path]:
    return raw("photos.tar", change(tar_of(animals())))


def negative_size(folder: Path) -> Path:
    """A header that leads back to itself, so that tarfile would read it for ever."""
    info = tarfile.TarInfo("cat/odd.png")
    info.size = -512
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    end = 12 * 1024  # after the 12 images
    content = tar_of(animals())
    (folder / "photos.tar").write_bytes(content[:end] + bytes(block) + content[end:])
    return folder / "photos.tar"


def pax_name(name: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        info = tarfile.TarInfo("cat/odd.png")
        info.pax_headers = {"path": name}
        return tar_with(info, folder / "photos.tar", format=tarfile.PAX_FORMAT)

    return write


def sparse(folder: Path) -> Path:
    info = tarfile.TarInfo("cat/odd.png")
    info.pax_headers = {"GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.map": "0,1"}
    return tar_with(info, folder / "photos.tar", format=tarfile.PAX_FORMAT)


def bomb(folder: Path) -> Path:
    (folder / "photos.tar.gz").write_bytes(gzip.compress(bytes(2**24)))
    return folder / "photos.tar.gz"


OUT, LINK = r"is a path out of the archive", r"cat/odd\.png is a link or a device; archive the files themselves"
DAMAGED = r"cannot be read: .+; it may be incomplete: copy or download it again$"
REFUSED: dict[str, tuple[Callable[[Path], Path], str]] = {
    "a symbolic link in a tar": (special(tarfile.SYMTYPE, "/etc/passwd"), LINK),
    "a hard link in a tar": (special(tarfile.LNKTYPE), LINK),
    "a character device in a tar": (special(tarfile.CHRTYPE), LINK),
    "a block device in a tar": (special(tarfile.BLKTYPE), LINK),
    "a pipe in a tar": (special(tarfile.FIFOTYPE), LINK),
    "an unknown type in a tar": (special(b"Z"), LINK),
    "a sparse file in a tar": (sparse, "is a sparse file; archive it without --sparse"),
    "a symbolic link in a zip": (zip_mode(0o120777), LINK),
    "a pipe in a zip": (zip_mode(0o010644), LINK),
    "a character device in a zip": (zip_mode(0o020644), LINK),
    "a block device in a zip": (zip_mode(0o060644), LINK),
    "a socket in a zip": (zip_mode(0o140644), LINK),
    "a parent folder in a zip": (named("zip", "../cat/9.png"), rf"'\.\./cat/9\.png' {OUT}"),
    "a parent folder in a tar": (named("tar", "cat/../../9.png"), OUT),
    "a parent folder of Windows": (zip_with_name(b"..\\cat\\9.png"), OUT),
    "an absolute path in a zip": (named("zip", "/cat/9.png"), OUT),
    "an absolute path in a tar": (named("tar", "/cat/9.png"), OUT),
    "a drive in a zip": (named("zip", "C:/cat/9.png"), OUT),
    "a drive and a backslash in a zip": (zip_with_name(b"C:\\cat\\9.png"), OUT),
    "a drive in a tar": (named("tar", "c:\\cat\\9.png"), OUT),
    "a network path in a tar": (named("tar", "\\\\host\\9.png"), OUT),
    "a NUL byte in a zip": (zip_with_name(b"cat/9.png\0.txt"), rf"'cat/9\.png\\\\x00\.txt' {OUT}"),
    "a NUL byte in a tar": (pax_name("cat/9.png\0.txt"), OUT),
    "a parent folder and a newline": (named("tar", "../a\nb.png"), rf"'\.\./a\\\\nb\.png' {OUT}"),
    "the same name twice in a tar": (named("tar", "cat/./0.png"), r"cat/0\.png is in it twice; make it anew"),
    "the same name twice in a zip": (zip_with_name(b"cat//0.png"), r"cat/0\.png is in it twice; make it anew"),
    "a name in a zip that is not UTF-8 as it states": (zip_not_utf_8, DAMAGED),
    "an empty name in a zip": (empty_name, "has no class; expected two or more"),
    "an empty file called zip": (raw("photos.zip", b""), DAMAGED),
    "an empty file called tar": (raw("photos.tar", b""), DAMAGED),
    "an empty file called tar.gz": (raw("photos.tar.gz", b""), DAMAGED),
    "an empty file called tar.bz2": (raw("photos.tar.bz2", b""), DAMAGED),
    "an empty file called tar.xz": (raw("photos.tar.xz", b""), DAMAGED),
    "an empty file called tar.zst": (raw("photos.tar.zst", b""), DAMAGED),
    "text called zip": (raw("photos.zip", b"hello " * 999), DAMAGED),
    "text called tar": (raw("photos.tar", b"hello " * 999), DAMAGED),
    "text called tar.xz": (raw("photos.tar.xz", b"hello " * 999), DAMAGED),
    "text called tar.zst": (raw("photos.tar.zst", b"hello " * 999), DAMAGED),
    "a zip called tar": (
        lambda folder: write_archive(folder / "a.zip", animals()).rename(folder / "photos.tar"), DAMAGED
    ),
    "a tar called zip": (
        lambda folder: write_archive(folder / "a.tar", animals()).rename(folder / "photos.zip"), DAMAGED
    ),
    **{f"half of a {kind}": (cut(kind, 0.5), DAMAGED) for kind in KINDS},
    **{f"a {kind} without its end": (cut(kind, 0.98), DAMAGED) for kind in KINDS if kind != "tar"},
    "a tar that ends after a member": (tar_blocks(lambda content: content[: 6 * 1024]), DAMAGED),
    "a tar that ends within a member": (tar_blocks(lambda content: content[: 6 * 1024 - 100]), DAMAGED),
    "a tar with a damaged header": (
        tar_blocks(lambda content: content[: 6 * 1024] + b"?" * 512 + content[6 * 1024 + 512 :]), DAMAGED
    ),
    "two tars in one file": (tar_blocks(lambda content: content + tar_of({"emu/1.png": png(9)})), DAMAGED),
    "a member of negative size": (negative_size, r"the size of cat/odd\.png is negative"),
    **{f"flipped bytes in a {kind}": (flipped(kind), DAMAGED) for kind in KINDS[2:]},
    "one class": (lambda folder: write_archive(folder / "photos.zip", pngs(["a/b/1.png", "a/2.png"])), "has one class"),
    "an empty class folder": (
        lambda folder: write_archive(folder / "photos.tar", animals() | {"emu/notes.txt": b""}),
        "class folder 'emu' has no image; add images, or remove it",
    ),
    "a class that is a formula": (named("zip", "=1+1/1.png"), "begins like a formula of a spreadsheet"),
    "a class with a newline": (named("tar", "a\nb/1.png"), r"class 'a\\nb' is empty or has a control character"),
    "a class with a line separator": (named("tar", "a\u2028b/1.png"), r"class 'a\\u2028b' is empty or has a control"),
    "a blank class": (named("zip", " /1.png"), "class ' ' is empty or has a control character; rename it"),
    "a class that is not UTF-8": (named("tar", os.fsdecode(b"caf\xe9/1.png")), r"class caf\\udce9 is not UTF-8"),
    "no archive": (raw("photos.rar", b"Rar!"), r"is no archive that Refit reads; expected \.zip, \.tar"),
    "a folder": (lambda folder: folder, r"is a folder; data\.source = archive expects an archive"),
    "a file that does not exist": (lambda folder: folder / "gone.zip", r"does not exist; data\.source = archive"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_refused_archive_gives_one_line_that_names_it_and_the_fault(
    case: str, changed: Changed, tmp_path: Path
) -> None:
    write, message = REFUSED[case]
    path = write(tmp_path)
    with pytest.raises(UserError, match=message) as raised:
        opened(changed, "archive", path).list_images()
    assert str(raised.value).startswith(f"data.root = {str(path)!r}")
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("limit", "value", "write", "message"),
    [
        ("MOST_FILES", 11, named("zip", "cat/9.png"), r"has 13 files, more than 11"),
        ("MOST_FILES", 11, named("tar", "cat/9.png"), r"has more than 11 files"),
        ("MOST_BYTES", 1000, bomb, r"is a decompression bomb: [\d,]+ bytes become more than [\d,]+$"),
    ],
)
def test_a_bomb_is_refused_before_it_fills_the_disk(
    limit: str,
    value: int,
    write: Callable[[Path], Path],
    message: str,
    changed: Changed,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(archive, limit, value)
    with pytest.raises(UserError, match=message):
        opened(changed, "archive", write(tmp_path)).list_images()


def test_folders_count_against_the_limit_of_a_tar(
    changed: Changed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "MOST_FILES", 20)
    with tarfile.open(tmp_path / "photos.tar", "w") as tar:
        for number in range(21):
            info = tarfile.TarInfo(f"{number}")
            info.type = tarfile.DIRTYPE
            tar.addfile(info)
    with pytest.raises(UserError, match="has more than 20 files"):
        opened(changed, "archive", tmp_path / "photos.tar").list_images()


# Members that cannot be read, while the others can


def with_flag(path: Path) -> None:
    """Mark the last member as encrypted, in the list at the end of the zip."""
    content = bytearray(path.read_bytes())
    content[content.rindex(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)


def with_method(path: Path) -> None:
    content = bytearray(path.read_bytes())
    struct.pack_into("<H", content, content.rindex(b"PK\x01\x02") + 10, 99)
    path.write_bytes(content)


def with_damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    place = content.rindex(b"PK\x03\x04") + 30 + len("dog/9.png") + 20
    content[place : place + 8] = b"\xff" * 8
    path.write_bytes(content)


def with_other_name(path: Path) -> None:
    content = path.read_bytes()
    place = content.rindex(b"PK\x03\x04") + 30
    path.write_bytes(content[:place] + b"dog/a\nb.p" + content[place + 9 :])


BAD_MEMBERS: dict[str, tuple[Callable[[Path], object], bytes, str]] = {
    "encrypted": (with_flag, png(99), r"^dog/9\.png: it is encrypted;"),
    "of an unknown compression": (with_method, png(99), r"^dog/9\.png: it is compressed by method 99; expected none"),
    "damaged": (with_damage, png(99), r"^dog/9\.png: it cannot be read from the archive: "),
    "with two names": (with_other_name, png(99), r"^dog/9\.png: it cannot be read from the archive: File name in"),
    "of zero bytes": (lambda _: None, b"", r"^dog/9\.png: not a recognised image format;"),
    "with text": (lambda _: None, b"hello", r"^dog/9\.png: not a recognised image format;"),
    "cut in half": (lambda _: None, png(999)[:45], r"^dog/9\.png: .*; repair or remove it, or set data\.bad_images"),
}


@pytest.mark.parametrize("fault", BAD_MEMBERS)
def test_a_bad_member_fails_with_its_name_or_is_left_out(fault: str, changed: Changed, tmp_path: Path) -> None:
    spoil, content, message = BAD_MEMBERS[fault]
    path = write_archive(tmp_path / "photos.zip", animals() | {"dog/9.png": content})
    spoil(path)
    with pytest.raises(UserError, match=message) as raised:
        packed(changed, "archive", path, tmp_path / "failed")
    assert len(str(raised.value).splitlines()) == 1
    result = packed(changed, "archive", path, tmp_path / "packed", bad_images="skip")
    assert [row["file"] for row in result.left_out] == ["dog/9.png"]
    assert sum(result.info.counts.values()) == 12
    assert result.report["skipped"] == result.report["left_out"] == 1


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_a_member_that_is_too_large_is_named(
    kind: str, changed: Changed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "MOST_BYTES", 1000)
    path = write_archive(tmp_path / f"photos.{kind}", animals() | {"dog/9.png": np.random.default_rng(0).bytes(1001)})
    with pytest.raises(UserError, match=r"^dog/9\.png: its 1,001 bytes exceed the limit of 1,000; repair or remove"):
        packed(changed, "archive", path, tmp_path / "packed")


def test_a_member_that_grows_a_thousandfold_is_a_bomb(
    changed: Changed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "MOST_BYTES", 2**20)
    path = write_archive(tmp_path / "photos.zip", animals() | {"dog/9.png": bytes(2**20)})
    with pytest.raises(UserError, match=r"^dog/9\.png: it is a decompression bomb: [\d,]+ bytes become 1,048,576;"):
        packed(changed, "archive", path, tmp_path / "packed")


def test_no_more_of_a_member_is_decompressed_than_the_zip_states(changed: Changed, tmp_path: Path) -> None:
    path = write_archive(tmp_path / "photos.zip", animals() | {"dog/9.png": bytes(2**24)})
    content = bytearray(path.read_bytes())
    struct.pack_into("<I", content, content.rindex(b"PK\x01\x02") + 24, 100)  # its size
    path.write_bytes(content)
    items = opened(changed, "archive", path).list_images().items
    tracemalloc.start()
    with pytest.raises(BadImageError, match="Bad CRC-32"):
        items[-1].open()
    assert tracemalloc.get_traced_memory()[1] < 2**23
    tracemalloc.stop()


@pytest.mark.parametrize("mode", ["fail", "skip"])
def test_a_class_of_which_all_images_are_faulty_is_an_error(mode: str, changed: Changed, tmp_path: Path) -> None:
    path = write_archive(tmp_path / "photos.zip", animals() | {"emu/1.png": png(99)})
    with_flag(path)
    message = {"fail": r"^emu/1\.png: it is encrypted", "skip": "no training image of class 'emu'"}[mode]
    with pytest.raises(UserError, match=message):
        packed(changed, "archive", path, tmp_path / "packed", bad_images=mode)


@pytest.mark.parametrize("kind", ["zip", "tar"])
@pytest.mark.parametrize("change", ["longer", "gone"])
def test_an_archive_that_changes_while_it_is_read_is_an_error(
    kind: str, change: str, changed: Changed, tmp_path: Path
) -> None:
    path = write_archive(tmp_path / f"photos.{kind}", animals())
    listing = opened(changed, "archive", path).list_images()
    listing.check_unchanged()
    if change == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(UserError, match=rf"photos\.{kind} was changed or removed while it was read; run again"):
        listing.check_unchanged()


def test_a_tar_cut_while_it_is_read_names_the_image(changed: Changed, tmp_path: Path) -> None:
    path = write_archive(tmp_path / "photos.tar", animals())
    items = opened(changed, "archive", path).list_images().items
    path.write_bytes(path.read_bytes()[:6000])
    with pytest.raises(UserError, match="the archive ends within it"):
        items[-1].open()


def test_a_decompressed_tar_needs_space_in_the_temporary_folder(
    changed: Changed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_archive(tmp_path / "photos.tar.gz", animals())
    full = shutil.disk_usage(tmp_path)._replace(free=2**27)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: full)
    with pytest.raises(UserError, match=r"set TMPDIR to a folder on a larger disk, or use an uncompressed \.tar"):
        opened(changed, "archive", path).list_images()


def test_a_temporary_file_is_gone_after_an_error(changed: Changed, tmp_path: Path) -> None:
    """pytest makes an error of a file that is not closed."""
    before = len(list(Path("/proc/self/fd").iterdir()))
    for number in range(3):
        path = tmp_path / f"{number}.tar.gz"
        path.write_bytes(gzip.compress(tar_of(animals()))[:-9])
        with pytest.raises(UserError, match=DAMAGED):
            opened(changed, "archive", path).list_images()
    assert len(list(Path("/proc/self/fd").iterdir())) == before
