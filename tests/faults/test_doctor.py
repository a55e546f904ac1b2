"""`make doctor` after interrupted runs, in real DVC repositories with real processes."""

import hashlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fixtures.project import ROOT, Project, user_environment
from tests.processes import eventually

GRAPH = """\
stages:
  slow:
    cmd: exec sleep 60
    outs: [data/slow]
"""


@pytest.fixture
def project(tmp_path: Path) -> Project:
    project = Project(tmp_path)
    (tmp_path / "dvc.yaml").write_text(GRAPH)
    (tmp_path / "data").mkdir()
    project.run("git", "init", "--quiet")
    project.run("dvc", "init", "--quiet")
    return project


Doctor = Callable[[], tuple[int, str]]


@pytest.fixture
def doctor(project: Project) -> Doctor:
    def run() -> tuple[int, str]:
        done = project.run(sys.executable, "-m", "pipelines.tools.doctor", ok=False, PYTHONPATH=str(ROOT))
        return done.returncode, done.stdout + done.stderr

    return run


def test_an_intact_project_needs_no_repair(doctor: Doctor) -> None:
    assert doctor() == (0, "all else is well\n")


def test_an_unknown_key_in_params_yaml_is_reported_with_its_line(project: Project, doctor: Doctor) -> None:
    (project.root / "params.yaml").write_text("fit:\n  max_epochs: 3\n  max_epoch: 3\n")
    line = "params.yaml: fit.max_epoch is not a known key; did you mean fit.max_epochs? Rename it or delete line 3"
    assert doctor() == (2, f"error: {line}\n")


def test_a_truncated_dvc_rwlock_is_removed(project: Project, doctor: Doctor) -> None:
    rwlock = project.root / ".dvc/tmp/rwlock"
    rwlock.parent.mkdir(exist_ok=True)
    for content in ("", '{"read": {', '{"read": {}, "write": {"a": 1}}'):
        rwlock.write_text(content)
        assert project.run("dvc", "repro", "--dry", ok=False).returncode != 0, f"DVC accepts {content!r}"
        code, text = doctor()
        assert code == 0
        assert "removed  .dvc/tmp/rwlock: DVC's record of locks was cut short" in text
    project.run("dvc", "repro", "--dry")


def test_nothing_is_removed_while_dvc_runs_and_its_locks_are_removed_after_it_is_killed(
    project: Project, doctor: Doctor
) -> None:
    half, rwlock = project.root / "data/.slow.partial", project.root / ".dvc/tmp/rwlock"
    half.mkdir()
    dvc = subprocess.Popen(["dvc", "repro"], cwd=project.root, env=user_environment(), stdout=subprocess.DEVNULL)
    try:
        eventually(lambda: rwlock.is_file() and str(dvc.pid) in rwlock.read_text(), "dvc holds its locks")
        code, text = doctor()
        assert code == 0
        assert f"at work  process {dvc.pid}: " in text
        assert "left     data/.slow.partial: half-written" in text
        assert str(dvc.pid) in rwlock.read_text()
        assert half.is_dir()
    finally:
        dvc.kill()
        dvc.wait()
    code, text = doctor()
    assert code == 0
    assert f"removed  .dvc/tmp/rwlock: locks of process {dvc.pid}, which is no dvc at work here" in text
    assert "removed  data/.slow.partial: half-written" in text
    assert not half.exists()
    assert doctor() == (0, "all else is well\n")


def test_half_written_files_are_removed_and_saved_states_are_kept(project: Project, doctor: Doctor) -> None:
    state, store = project.root / "data/state/0123", project.root / "mlruns/tmp_1/mlflow.db"
    kept = project.root / "data/state/mlflow/4567/.fit.partial/opening.json"
    for file in (
        state / "inputs.json", state / "step-000000007.ckpt", state / ".step-000000008.ckpt.partial", store, kept
    ):  # fmt: skip
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"{}")
    code, text = doctor()
    assert code == 0
    assert "removed  data/state/0123/.step-000000008.ckpt.partial: half-written" in text
    assert "removed  data/state/mlflow/4567/.fit.partial: half-written" in text
    assert "removed  mlruns/tmp_1: a half-made MLflow store" in text
    assert "state    data/state/0123: 1 state, 0.0 MB; step-000000007.ckpt is not intact" in text
    assert sorted(path.name for path in state.iterdir()) == ["inputs.json", "step-000000007.ckpt"]
    digest = hashlib.sha256(b"{}").hexdigest()
    (state / "step-000000007.ckpt.sha256").write_text(digest)
    assert "step-000000007.ckpt is intact. Not wanted" in doctor()[1]
    (state / "diverged.json").write_text("{}")
    assert "step-000000007.ckpt is intact. Its loss was not finite: diverged.json in it says where. " in doctor()[1]
    assert not store.parent.exists()


GRAPH_WITH_INPUT = """\
stages:
  copy:
    cmd: echo ran >> log && cp input output
    deps: [input]
    outs: [output]
"""


def test_a_truncated_dvc_lock_is_restored_from_the_last_commit_and_nothing_runs_twice(
    project: Project, doctor: Doctor
) -> None:
    root = project.root
    (root / "dvc.yaml").write_text(GRAPH_WITH_INPUT)
    for content in ("first", "second"):
        (root / "input").write_text(content)
        project.run("dvc", "repro")
        if content == "first":
            project.run("git", "add", "dvc.lock")
            project.run("git", "-c", "user.name=A", "-c", "user.email=a@b.c", "commit", "--quiet", "-m", "first")
    whole, lock = (root / "dvc.lock").read_text(), root / "dvc.lock"
    for length in (0, 5, 30):
        lock.write_text(whole[:length])
        assert project.run("dvc", "repro", ok=False).returncode != 0, "DVC accepts the broken file"
        code, text = doctor()
        assert code == 0
        assert "restored dvc.lock: was cut short" in text
        assert lock.read_text() == project.run("git", "show", "HEAD:dvc.lock").stdout != whole
    project.run("dvc", "repro")
    assert lock.read_text() == whole
    assert (root / "log").read_text() == "ran\n" * 2
    assert (root / "output").read_text() == "second"


def test_make_repro_repairs_first_and_prints_nothing_if_all_is_in_order(project: Project) -> None:
    root = project.root
    (root / "dvc.yaml").write_text(GRAPH_WITH_INPUT)
    (root / "input").write_text("first")
    (root / "Makefile").write_bytes((ROOT / "Makefile").read_bytes())

    def make_repro() -> list[str]:
        """The lines printed before the summary. The summary has no run to show here."""
        make = ("make", "--old-file=.venv/ready", "repro")
        done = project.run(*make, ok=False, PYTHONPATH=str(ROOT))
        return done.stdout.partition("python -m refit.commands.summary")[0].splitlines()

    assert make_repro()[0] == "dvc repro"
    whole = (root / "dvc.lock").read_text()
    (root / "dvc.lock").write_text(whole[:30])
    head, command, *_ = make_repro()
    assert head == "removed dvc.lock: was cut short; what has run since the last commit is in DVC's cache of runs"
    assert command == "dvc repro"
    assert (root / "dvc.lock").read_text() == whole
    assert (root / "log").read_text() == "ran\n"


def test_a_truncated_dvc_lock_without_a_commit_is_removed(project: Project, doctor: Doctor) -> None:
    (project.root / "dvc.lock").write_text("schema: '2.0'\nsta")
    assert doctor() == (
        0,
        "removed  dvc.lock: was cut short; what has run since the last commit is in DVC's cache of runs\n"
        "all else is well\n",
    )
    assert not (project.root / "dvc.lock").exists()


def test_a_dvc_lock_with_merge_conflicts_is_reported_and_not_changed(project: Project, doctor: Doctor) -> None:
    (project.root / "dvc.lock").write_text("<<<<<<< HEAD\nstages:\n=======\n")
    code, text = doctor()
    assert code == 1
    assert "error: dvc.lock holds both sides of a merge" in text
    assert "git checkout HEAD -- dvc.lock" in text
    assert (project.root / "dvc.lock").read_text() == "<<<<<<< HEAD\nstages:\n=======\n"
