"""Images to classify: predict.images is a folder, an archive or a table."""

import csv
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from refit.artifacts.files import csv_text
from refit.batches.new_images import NewImages
from refit.data.sources.unlabelled import check_unlabelled, unlabelled
from refit.runtime.errors import UserError
from tests.fixtures.sources import pngs, write_archive, write_files, write_parquet

NAMES = ["1.png", "b/2.png", "b/c/3.png"]
FILES = pngs(NAMES)


def write_csv(path: Path, *rows: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("path",), *((row,) for row in rows)])
    return path


KINDS: dict[str, Callable[[Path], Path]] = {
    "folder": lambda root: write_files(root / "new", FILES),
    "zip": lambda root: write_archive(root / "new.zip", FILES),
    "tar": lambda root: write_archive(root / "new.tar", FILES),
    "tar.gz": lambda root: write_archive(root / "new.tar.gz", FILES),
    "csv": lambda root: write_csv(write_files(root / "new", FILES) / "t.csv", *NAMES),
    "CSV": lambda root: write_csv(write_files(root / "new", FILES) / "t.CSV", *NAMES),
    "parquet of paths": lambda root: write_parquet(write_files(root / "new", FILES) / "t.parquet", {"path": NAMES}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_gives_the_same_images(kind: str, tmp_path: Path) -> None:
    path = KINDS[kind](tmp_path)
    check_unlabelled(str(path))
    found, left_out = unlabelled(str(path))
    assert [image.name for image in found] == NAMES
    assert left_out == []
    images = NewImages(found, "grey", (4, 4), "crop", 2)
    assert [int(image[0, 0, 0]) for batch in images for image in batch] == [0, 1, 2]


def test_a_parquet_file_of_bytes_needs_no_labels(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "t.parquet", {"bytes": list(FILES.values())}, 2)
    found, _ = unlabelled(str(path))
    assert [image.name for image in found] == ["t.parquet/0", "t.parquet/1", "t.parquet/2"]
    images = NewImages(found, "grey", (4, 4), "crop", 2)
    assert [int(image[0, 0, 0]) for batch in images for image in batch] == [0, 1, 2]


def test_labels_and_splits_of_a_table_to_classify_are_not_read(tmp_path: Path) -> None:
    columns = {"bytes": list(FILES.values()), "label": [[1]] * 3, "split": ["", "x", "y"]}
    found, left_out = unlabelled(str(write_parquet(tmp_path / "t.parquet", columns)))
    assert (len(found), left_out) == (3, [])


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_hidden_files_and_others_of_an_archive_are_left_out(kind: str, tmp_path: Path) -> None:
    more = {"notes.txt": b"", ".DS_Store": b"", "__MACOSX/._1.png": b""}
    found, left_out = unlabelled(str(write_archive(tmp_path / f"new.{kind}", FILES | more)))
    assert [image.name for image in found] == NAMES
    assert {gone.name for gone in left_out} == set(more)


def test_rows_that_name_no_image_are_left_out(tmp_path: Path) -> None:
    path = write_csv(write_files(tmp_path / "new", FILES) / "t.csv", *NAMES, "gone.png", "../t.png", "1.png")
    found, left_out = unlabelled(str(path))
    assert [image.name for image in found] == NAMES
    assert {gone.name: gone.why.partition(": ")[2] or gone.why for gone in left_out} == {
        "gone.png": "there is no such file",
        "../t.png": "it is not below the folder of the table",
        "line 7 of t.csv": "it names 1.png, as line 2 of t.csv does",
    }


@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_a_name_can_be_written_into_the_table_of_predictions(kind: str, tmp_path: Path) -> None:
    files = pngs([os.fsdecode(b"\xe9.png"), "a\nb.png"])
    path = write_files(tmp_path / "new", files) if kind == "folder" else write_archive(tmp_path / "new.tar", files)
    found, _ = unlabelled(str(path))
    assert sorted(image.name for image in found) == [r"\udce9.png", r"a\nb.png"]
    csv_text([{"file": image.name} for image in found]).encode()


@pytest.mark.parametrize("kind", ["zip", "csv"])
def test_a_file_without_a_readable_image_is_an_error_and_not_the_test_split(kind: str, tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    path = tmp_path / f"new/t.{kind}"
    write_archive(path, {"a.txt": b""}) if kind == "zip" else write_csv(path, "a")
    with pytest.raises(UserError, match=rf"predict\.images = '.*t\.{kind}' has no image that can be read, such as a"):
        unlabelled(str(path))


def test_an_empty_folder_has_no_image(tmp_path: Path) -> None:
    assert unlabelled(str(tmp_path)) == ([], [])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gone", r"predict\.images = '.*gone' does not exist; create the folder, or set another one"),
        (
            "a.txt",
            r"predict\.images = '.*a\.txt' is no folder, archive or table; expected a folder or a file that ends",
        ),
    ],
)
def test_what_is_neither_is_an_error(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").touch()
    with pytest.raises(UserError, match=message):
        check_unlabelled(str(tmp_path / name))


@pytest.mark.parametrize("name", ["new.zip", "new.tar", "new.tar.zst", "new.parquet", "new.csv"])
def test_a_damaged_file_gives_one_line_that_names_it(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"\xff\xfehello" * 99)
    with pytest.raises(UserError, match=name) as raised:
        unlabelled(str(tmp_path / name))
    assert len(str(raised.value).splitlines()) == 1
