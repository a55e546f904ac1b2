"""A folder of class folders: the images that it lists, and its errors."""

import os
import re
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from PIL import Image

from refit.data.sources.open import open_source
from refit.runtime.errors import UserError
from tests.fixtures import Changed
from tests.fixtures.sources import animals, fill, left_out, listed, opened, packed, pixels, png, write_files


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "raw").mkdir()
    return tmp_path / "raw"


class TestFolder:
    @pytest.fixture(autouse=True)
    def _open(self, changed: Changed, root: Path) -> None:
        self.data = changed({"data.source": "folder", "data.root": str(root)}).data

    def test_with_class_folders_at_the_top_refit_draws_the_splits(self, root: Path) -> None:
        fill(root, "dog/1.png", "cat/b/2.png", "cat/1.png")
        assert listed(open_source(self.data)) == [
            ("cat/1.png", "cat", None), ("cat/b/2.png", "cat", None), ("dog/1.png", "dog", None)
        ]  # fmt: skip

    def test_split_folders_define_the_splits(self, root: Path) -> None:
        fill(root, "train/cat/1.png", "train/dog/1.png", "val/cat/2.png", "test/dog/3.png")
        assert listed(open_source(self.data)) == [
            ("test/dog/3.png", "dog", "test"),
            ("train/cat/1.png", "cat", "train"),
            ("train/dog/1.png", "dog", "train"),
            ("val/cat/2.png", "cat", "val"),
        ]

    def test_train_and_val_alone_give_two_splits(self, root: Path) -> None:
        fill(root, "train/cat/1.png", "train/dog/1.png", "val/cat/2.png", "val/dog/2.png")
        assert {split for _, _, split in listed(open_source(self.data))} == {"train", "val"}

    @pytest.mark.parametrize("name", ["val", "valid", "validation"])
    def test_the_validation_folder_can_have_any_usual_name(self, name: str, root: Path) -> None:
        fill(root, "train/cat/1.png", "train/dog/1.png", f"{name}/cat/2.png")
        assert (f"{name}/cat/2.png", "cat", "val") in listed(open_source(self.data))

    def test_a_class_missing_in_one_split_does_not_shift_the_labels_of_the_others(self, root: Path) -> None:
        fill(root, "train/ant/1.png", "train/bee/1.png", "train/cat/1.png", "test/cat/2.png", "test/bee/2.png")
        source = open_source(self.data)
        assert source.read_classes() == ("ant", "bee", "cat")
        for item in source.list_images().items:
            assert source.read_classes()[item.label] == Path(item.name).parent.name

    def test_folders_next_to_the_split_folders_are_not_classes(self, root: Path) -> None:
        fill(root, "train/cat/1.png", "train/dog/1.png", "masks/1.png", ".cache/1.png", "train/.hidden/1.png", "1.png")
        assert open_source(self.data).read_classes() == ("cat", "dog")
        assert len(listed(open_source(self.data))) == 2

    def test_classes_can_be_called_test_and_val(self, root: Path) -> None:
        fill(root, "test/1.png", "val/1.png")
        assert open_source(self.data).read_classes() == ("test", "val")

    def test_items_open_their_own_image(self, root: Path) -> None:
        fill(root, "cat/1.png", "dog/1.png")
        assert [pixels(item).max() for item in open_source(self.data).list_images().items] == [0, 1]

    @pytest.mark.parametrize(
        ("names", "found"),
        [
            ([], "no class folder;"),
            (["cat/1.png"], "one class folder;"),
            (["1.png"], "no class folder (is the folder above it the one?);"),
        ],
    )
    def test_fewer_than_two_classes_are_refused(self, names: Iterable[str], found: str, root: Path) -> None:
        fill(root, *names)
        with pytest.raises(UserError, match=re.escape(f"has {found} expected two or more")):
            open_source(self.data)

    def test_a_class_whose_name_is_not_utf_8_is_refused(self, root: Path) -> None:
        fill(root, "cat/1.png", os.fsdecode(b"caf\xe9/2.png"))
        with pytest.raises(UserError, match=r"the name of class caf\\udce9 is not UTF-8"):
            open_source(self.data)

    def test_a_class_without_an_image_fails_with_an_error_that_names_it(self, root: Path) -> None:
        fill(root, "cat/1.png", "dog/1.png")
        (root / "emu").mkdir()
        (root / "emu/notes.txt").touch()
        with pytest.raises(UserError, match="class folder 'emu' has no image"):
            open_source(self.data).list_images()

    def test_a_class_folder_without_an_image_is_named(self, root: Path) -> None:
        fill(root, "train/cat/1.png", "train/dog/1.png", "test/emu/notes.png")
        (root / "test/emu/notes.png").rename(root / "test/emu/notes.txt")
        with pytest.raises(UserError, match="class folder 'emu' has no image; add images, or remove it"):
            open_source(self.data).list_images()


def test_each_file_that_is_no_image_is_left_out_with_its_reason(changed: Changed, root: Path) -> None:
    write_files(root, animals() | {"1.png": b"", "cat/a.txt": b"", ".git/1.png": b"", "__MACOSX/cat/1.png": b""})
    (root / "cat/more").symlink_to(root / "dog")
    hidden = "it or its folder is hidden, as its name begins with a dot or is __MACOSX"
    gone = left_out(opened(changed, "folder", root))
    assert gone.pop("cat/a.txt").startswith("its name does not end in")
    assert gone == {
        "1.png": "it is in no class folder",
        ".git/1.png": hidden,
        "__MACOSX/cat/1.png": hidden,
        "cat/more": "it is a link to a folder; these may form loops",
    }


def test_files_beside_the_split_folders_are_left_out(changed: Changed, root: Path) -> None:
    write_files(root, {f"train/{name}": content for name, content in animals().items()} | {"masks/cat/1.png": b""})
    assert left_out(opened(changed, "folder", root)) == {"masks/cat/1.png": "it is in none of the split folders"}


def test_a_link_to_a_class_folder_is_no_class(changed: Changed, root: Path) -> None:
    write_files(root, {f"train/{name}": content for name, content in animals().items()})
    (root / "train/emu").symlink_to(root / "train/cat")
    source = opened(changed, "folder", root)
    assert source.read_classes() == source.list_images().classes == ("cat", "dog")


def pipe(path: Path) -> None:
    os.mkfifo(path)


def broken_link(path: Path) -> None:
    path.symlink_to("gone.png")


def loop(path: Path) -> None:
    path.symlink_to(path)


def half_jpeg(path: Path) -> None:
    Image.effect_noise((64, 64), 90).save(path, "JPEG")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def pixel_bomb(path: Path) -> None:
    """A header that states 100,000 x 100,000 pixels."""
    size = (100_000).to_bytes(4, "big") * 2
    content = png(0)
    chunk = b"IHDR" + size + content[24:29]
    checked = chunk + zlib.crc32(chunk).to_bytes(4, "big")
    path.write_bytes(content[:12] + checked + content[33:])


BAD_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a pipe": (pipe, "it is no regular file"),
    "a broken link": (broken_link, "No such file or directory"),
    "a link to itself": (loop, "Too many levels of symbolic links"),
    "zero bytes": (lambda path: path.write_bytes(b""), "not a recognised image format"),
    "text": (lambda path: path.write_text("hello"), "not a recognised image format"),
    "half a JPEG": (half_jpeg, r"image file is truncated \(\d+ bytes not processed\)"),
    "too many pixels": (pixel_bomb, r".*\(?10000000000 pixels.*exceed"),
    "an HTML page": (lambda path: path.write_text("<!doctype html><p>404"), "not a recognised image format"),
    "an SVG": (lambda path: path.write_text("<svg xmlns='http://www.w3.org/2000/svg'/>"), "not a recognised image"),
    "EPS, which would start Ghostscript": (lambda path: path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n"), "not a recog"),
}


@pytest.mark.parametrize(
    ("fault", "name"),
    [
        *((fault, "9.jpg") for fault in BAD_FILES),
        *(("text", name) for name in ("9\n1.jpg", os.fsdecode(b"\xe9\x1b[31m.jpg"), "9\u2028.jpg", "9\x85.jpg")),
    ],
)
def test_a_bad_file_fails_with_one_line_that_names_it_or_is_left_out(
    fault: str, name: str, changed: Changed, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil, message = BAD_FILES[fault]
    shown = name.encode("unicode_escape").decode().replace("\\xe9", "\\udce9").replace("\x1b", "\\x1b")
    spoil(write_files(root, animals()) / "dog" / name)
    with pytest.raises(
        UserError, match=rf"^dog/{re.escape(shown)}: {message}.*; repair or remove it, or set"
    ) as raised:
        packed(changed, "folder", root, tmp_path / "failed")
    assert len(str(raised.value).splitlines()) == 1
    capsys.readouterr()
    result = packed(changed, "folder", root, tmp_path / "packed", bad_images="skip")
    assert [row["file"] for row in result.left_out] == [f"dog/{shown}"]
    assert "skipped dog/" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("=cmd", "the name of class '=cmd' begins like a formula of a spreadsheet"),
        ("@SUM", "begins like a formula"),
        ("+x", "begins like a formula"),
        ("-x", "begins like a formula"),
        ("a\nb", r"the name of class 'a\\nb' is empty or has a control character; rename it"),
        ("a\tb", r"control character"),
        ("a\x1b[31m", r"control character"),
        ("a\x9bm", r"control character"),
        ("a\u2028b", r"control character"),
        (" ", "the name of class ' ' is empty"),
        ("\u3000", "is empty"),
        (os.fsdecode(b"caf\xe9"), r"the name of class caf\\udce9 is not UTF-8; rename it"),
    ],
)
def test_a_class_name_that_a_table_would_not_show_as_it_is_is_refused(
    name: str, message: str, changed: Changed, root: Path
) -> None:
    write_files(root, animals() | {f"{name}/1.png": png(99)})
    with pytest.raises(UserError, match=message) as raised:
        opened(changed, "folder", root)
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize("name", ["-1", "+2.5", "7", "café", "猫", "a=b", "two words", "a\u00a0b", "👩‍🔬"])
def test_other_class_names_are_kept(name: str, changed: Changed, root: Path) -> None:
    write_files(root, animals() | {f"{name}/1.png": png(99)})
    assert name in opened(changed, "folder", root).read_classes()


@pytest.mark.parametrize("change", ["longer", "gone", "touched"])
def test_an_image_that_changes_while_it_is_read_is_an_error(change: str, changed: Changed, root: Path) -> None:
    path = write_files(root, animals()) / "dog/3.png"
    listing = opened(changed, "folder", root).list_images()
    listing.check_unchanged()
    if change == "longer":
        path.write_bytes(path.read_bytes() + b"\0")
    elif change == "touched":
        os.utime(path, ns=(0, 0))
    else:
        path.unlink()
    with pytest.raises(UserError, match=r"dog/3\.png was changed or removed while it was read; run again"):
        listing.check_unchanged()


def test_a_folder_that_cannot_be_read_is_an_error(
    changed: Changed, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """os.walk would leave it out without a word. Root may read any, so the refusal is made up."""
    write_files(root, animals() | {"cat/more/1.png": png(99)})
    source = opened(changed, "folder", root)
    scan = os.scandir

    def refuse(path: str) -> object:
        if str(path).endswith("more"):
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match=r"cat/more cannot be read: Permission denied"):
        source.list_images()


def test_items_have_the_pixels_of_their_files(changed: Changed, root: Path) -> None:
    write_files(root, animals())
    assert [pixels(item)[0, 0] for item in opened(changed, "folder", root).list_images().items] == list(range(12))
    assert [name for name, _, _ in listed(opened(changed, "folder", root))] == list(animals())
