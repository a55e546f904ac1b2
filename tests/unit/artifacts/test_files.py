"""Files and folders are written completely or not at all."""

import csv
import errno
import json
import os
from pathlib import Path

import pytest

from refit.artifacts.files import read_json, whole_folder, write_bytes, write_csv, write_json
from refit.runtime.errors import UserError


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (None, "does not exist"),
        (b'{"a": 1', "is not JSON: "),
        (b"\xff", "is not JSON: "),
        (b"[" * 99_999, "is not JSON: "),
        (b"[]", "does not contain a JSON object"),
    ],
    ids=["missing", "truncated", "not UTF-8", "deeply nested", "a list"],
)
def test_a_broken_json_file_gives_a_one_line_error_that_names_it_and_its_stage(
    content: bytes | None, fault: str, tmp_path: Path
) -> None:
    path = tmp_path / "fit.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=rf"fit\.json {fault}.*; run: dvc repro fit$") as raised:
        read_json(path, "dvc repro fit")
    assert len(str(raised.value).splitlines()) == 1


def test_a_full_disk_leaves_the_old_file_unchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_bytes(path, b"old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old"


def test_missing_parent_folders_are_created(tmp_path: Path) -> None:
    write_bytes(tmp_path / "a/b/file", b"new")
    assert (tmp_path / "a/b/file").read_bytes() == b"new"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_json_with_nan_or_infinity_is_not_written(value: float, tmp_path: Path) -> None:
    write_json(tmp_path / "file.json", {"loss": 1.5, "class": "Größe"})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "file.json", {"loss": value})
    assert json.loads((tmp_path / "file.json").read_text(encoding="utf-8")) == {"loss": 1.5, "class": "Größe"}


def test_a_written_csv_reads_back_unchanged(tmp_path: Path) -> None:
    rows = [{"file": 'a, "b"\nc.png', "label": "ü"}, {"file": "d.png", "label": ""}]
    write_csv(tmp_path / "file.csv", rows)
    assert b"\r" not in (tmp_path / "file.csv").read_bytes()
    with (tmp_path / "file.csv").open(newline="", encoding="utf-8") as file:
        assert list(csv.DictReader(file)) == rows


def test_a_csv_without_rows_is_an_empty_file(tmp_path: Path) -> None:
    write_csv(tmp_path / "file.csv", [])
    assert (tmp_path / "file.csv").read_bytes() == b""


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/old").touch()
    with whole_folder(tmp_path / "out") as new:
        (new / "deep").mkdir()
        (new / "deep/file").write_text("new")
        assert (tmp_path / "out/old").exists()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["deep", "file", "out"]


def test_a_failed_write_leaves_the_folder_unchanged(tmp_path: Path) -> None:
    def fail() -> None:
        with whole_folder(tmp_path / "out") as new:
            (new / "half").touch()
            raise KeyboardInterrupt

    for there_before in (False, True):
        if there_before:
            (tmp_path / "out").mkdir()
            (tmp_path / "out/old").write_text("old")
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(KeyboardInterrupt):
            fail()
        assert sorted(tmp_path.rglob("*")) == before


def test_leftovers_of_a_killed_process_do_not_get_into_a_folder(tmp_path: Path) -> None:
    with whole_folder(tmp_path / "out") as new:
        leftover = new
    leftover.mkdir()
    (leftover / "half").touch()
    with whole_folder(tmp_path / "out") as new:
        (new / "file").touch()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["file"]
