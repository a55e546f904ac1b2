"""A real Dask scheduler and two worker processes decode images."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from distributed import LocalCluster

from refit.runtime.errors import UserError
from refit.runtime.workers import on_workers
from tests.fixtures import Changed
from tests.fixtures.sources import packed
from tests.unit.data.test_pack import contents, photos


@pytest.fixture(scope="module")
def scheduler() -> Iterator[str]:
    with LocalCluster(n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0") as cluster:
        yield cluster.scheduler_address


def test_workers_write_the_same_bytes(
    changed: Changed,
    scheduler: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    photos(tmp_path / "raw", count=60)
    packed(changed, "folder", tmp_path / "raw", tmp_path / "here")
    monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", scheduler)
    packed(changed, "folder", tmp_path / "raw", tmp_path / "there")
    assert f"2 workers of {scheduler}" in capsys.readouterr().out
    assert contents(tmp_path / "here") == contents(tmp_path / "there")


def test_an_image_that_cannot_be_decoded_is_the_same_error(
    changed: Changed, scheduler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos(tmp_path / "raw")
    (tmp_path / "raw/cat/03.png").write_bytes(b"")
    monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", scheduler)
    with pytest.raises(UserError, match=r"^cat/03.png: not a recognised image format; repair or remove it"):
        packed(changed, "folder", tmp_path / "raw", tmp_path / "there")


def test_a_worker_in_another_folder_is_refused(scheduler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", scheduler)
    here = Path.cwd()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"a Dask worker runs in {here}; start it in {tmp_path}"):
        list(on_workers(len, [["text"]], "prepare", "folder"))


def test_a_worker_with_other_code_is_refused(scheduler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", scheduler)
    assert list(on_workers(len, [["text"], ["it"]], "prepare", "folder")) == [4, 2]
    monkeypatch.setattr("refit.runtime.workers.code_of", lambda stage, source: {"refit/data/images.py": "new"})
    with pytest.raises(UserError, match=r"a Dask worker has another version of .*; restart the workers"):
        list(on_workers(len, [["text"]], "prepare", "folder"))


def test_a_scheduler_that_does_not_answer_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("refit.runtime.workers._PATIENCE", 0.2)
    monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", "tcp://127.0.0.1:9")
    with pytest.raises(UserError, match=r"DASK_SCHEDULER_ADDRESS = 'tcp://127.0.0.1:9' has no worker that answers"):
        list(on_workers(len, [["text"]], "prepare", "folder"))


def test_workers_on_another_file_system_are_refused(
    changed: Changed, scheduler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos(tmp_path / "raw")
    monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", scheduler)
    monkeypatch.setattr("refit.data.decoding.Parts.has", lambda parts, number: (parts.folder / "elsewhere").exists())
    with pytest.raises(UserError, match="run them on a file system that all share"):
        packed(changed, "folder", tmp_path / "raw", tmp_path / "there")


def test_a_worker_that_finds_another_file_is_an_error(
    changed: Changed, scheduler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos(tmp_path / "raw")
    monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", scheduler)
    monkeypatch.setattr("refit.data.sources.source.Watched.version", lambda files, name: "of another day")
    with pytest.raises(UserError, match=r"a Dask worker finds no cat/00.png, or another one"):
        packed(changed, "folder", tmp_path / "raw", tmp_path / "there")
