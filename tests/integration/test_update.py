"""The update of an import from an S3 server, in a real DVC repository."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.fixtures.project import ROOT, Project
from tests.fixtures.s3 import Bucket, Downloads

FILE = "raw/photos.dvc"
KILLED = """
import os, signal
from pipelines.tools import update
update.Stage.save_outs = lambda _: os.kill(os.getpid(), signal.SIGKILL)
update.main({file!r})
"""


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory, bucket: Bucket) -> Project:
    """A DVC repository that imports three files."""
    project = Project(tmp_path_factory.mktemp("imported"))
    project.run("git", "init", "--quiet")
    project.run("dvc", "init", "--quiet")
    (project.root / "raw").mkdir()
    for name in ("cat/1.png", "cat/2.png", "dog/1.png"):
        bucket.put(f"photos/{name}", name.encode())
    bucket.add_remote(project, "photos")
    project.run("dvc", "import-url", "remote://photos", "raw/photos")
    return project


def update(project: Project, file: str = FILE) -> subprocess.CompletedProcess[str]:
    return project.run(sys.executable, "-m", "pipelines.tools.update", file, ok=False, PYTHONPATH=str(ROOT))


def files(project: Project) -> dict[str, bytes]:
    root = project.root / "raw/photos"
    return {file.relative_to(root).as_posix(): file.read_bytes() for file in root.rglob("*") if file.is_file()}


def test_an_update_downloads_only_what_is_new_and_its_result_is_that_of_dvc(
    imported: Project, bucket: Bucket, downloads: Downloads
) -> None:
    kept = files(imported)["cat/1.png"]
    bucket.put("photos/cat/2.png", b"changed")
    bucket.put("photos/owl/", b"")  # S3's console makes it for a new folder
    bucket.put("photos/owl/1.png", b"new")
    bucket.delete("photos/dog/1.png")
    done = update(imported)
    assert done.stdout == "raw/photos: 2 new or changed, 1 removed, 3 files\n", done.stderr
    assert downloads.taken() == ["photos/cat/2.png", "photos/owl/1.png"]
    assert files(imported) == {"cat/1.png": kept, "cat/2.png": b"changed", "owl/1.png": b"new"}
    assert not (imported.root / "raw/photos/dog").exists(), "an empty folder would be a class without images"

    assert update(imported).stdout == "raw/photos: nothing is new, 3 files\n"
    record = (imported.root / FILE).read_bytes()
    imported.run("dvc", "import-url", "--force", "remote://photos", "raw/photos")
    assert (imported.root / FILE).read_bytes() == record


def test_if_an_update_fails_the_images_stay_and_the_next_one_fetches_what_is_new(
    imported: Project, bucket: Bucket
) -> None:
    before, record = files(imported), (imported.root / FILE).read_bytes()
    bucket.put("photos/owl/2.png", b"later")
    bucket.stop()
    done = update(imported)
    assert done.returncode == 1, "not 2, which would say that another try is pointless"
    assert done.stderr.startswith(
        "error: remote://photos cannot be fetched, nothing has changed here: Could not connect to the endpoint URL: "
        f'"{bucket.address}/photos/photos"'
    )
    assert done.stderr.count("\n") == 1
    assert (files(imported), (imported.root / FILE).read_bytes()) == (before, record)
    bucket.start()
    assert update(imported).stdout.startswith("raw/photos: 1 new or changed, 0 removed, ")
    assert files(imported) == {**before, "owl/2.png": b"later"}


def test_an_update_that_is_killed_is_undone_before_the_next_one(imported: Project, bucket: Bucket) -> None:
    before = files(imported)
    bucket.put("photos/owl/3.png", b"later still")
    bucket.delete("photos/cat/1.png")
    imported.run(sys.executable, "-c", KILLED.format(file=FILE), ok=False, PYTHONPATH=str(ROOT))
    assert "cat/1.png" not in files(imported), "it is half done: the new files, the old record"
    (imported.root / "dvc.yaml").write_text("stages: {}\n")
    said = imported.run(sys.executable, "-m", "pipelines.tools.doctor", PYTHONPATH=str(ROOT)).stdout
    assert said.startswith("restored .dvc/tmp/refit-update: an import's update was cut short")
    assert files(imported) == before
    assert update(imported).stdout.startswith("raw/photos: 1 new or changed, 1 removed, ")


def test_an_emptied_source_and_a_file_that_is_no_import_are_errors(imported: Project, bucket: Bucket) -> None:
    before = files(imported)
    for name in before:
        bucket.delete(f"photos/{name}")
    done = update(imported)
    assert done.returncode == 1
    assert done.stderr == "error: remote://photos cannot be fetched, nothing has changed here: it has no files\n"
    assert files(imported) == before
    (imported.root / "mine").write_text("mine")
    imported.run("dvc", "add", "mine")
    for file, why in {"mine.dvc": "is not an import", "away.dvc": "cannot be read"}.items():
        done = update(imported, file)
        assert done.returncode == 2
        assert done.stderr.startswith(f"error: {file} {why}")
        assert not (Path(imported.root) / ".dvc/tmp/refit-update").exists()
