"""`dvc repro` and its `fit` are killed, terminated and started twice, with real processes in a real repository."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from refit.runtime.warm import OWNER
from tests.fixtures.project import Project, copy_of, user_environment
from tests.processes import PATIENCE, alive, eventually

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux signals a process when its parent dies")

EPOCHS = 20


@pytest.fixture(scope="module")
def undisturbed(finished: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The project after an undisturbed fit, with dvc.lock committed. States are saved very often."""
    project = copy_of(finished, tmp_path_factory.mktemp("undisturbed"))
    project.set_param("fit.max_epochs", EPOCHS)
    project.set_param("fit.save_state_every", 0.05)
    project.set_param("model.width", 8)
    project.set_param("tracking.loggers", "[]")  # MLflow is tested in test_kill_rounds.py and test_distributed.py
    project.run("dvc", "repro", "fit")
    project.commit()
    return project


@pytest.fixture
def project(undisturbed: Project) -> Project:
    forget_fit(undisturbed)
    return undisturbed


def forget_fit(project: Project) -> None:
    """Restore the project to the state before the first `fit`."""
    project.restore()
    for made in ("data/model", "data/state", ".dvc/cache/runs"):
        shutil.rmtree(project.root / made, ignore_errors=True)
    known = locked(project)
    del known["stages"]["fit"]
    (project.root / "dvc.lock").write_text(yaml.safe_dump(known))


@pytest.fixture
def lock(undisturbed: Project) -> Any:
    """The content of dvc.lock after an undisturbed fit."""
    return yaml.safe_load(undisturbed.run("git", "show", "HEAD:dvc.lock").stdout)


def locked(project: Project) -> Any:
    return yaml.safe_load((project.root / "dvc.lock").read_text())


OWN_WARM, SHARED_WARM, PLAIN = {OWNER: ""}, {OWNER: str(os.getpid())}, {"REFIT_WARM": "0"}
"""Where a stage runs: as a fork of a warm process that belongs to its `dvc`; as a fork of a warm process that outlives
`dvc`, as in a flow, which saves start-up time in tests that do not kill `dvc`; or as a separate process."""


@contextmanager
def repro(project: Project, where: Mapping[str, str] = SHARED_WARM) -> Iterator["subprocess.Popen[str]"]:
    """`dvc` as the leader of the terminal's foreground process group."""
    process = subprocess.Popen(
        ["dvc", "repro", "fit"], cwd=project.root, env=user_environment(**where), text=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def states(project: Project) -> list[Path]:
    return sorted(project.root.glob("data/state/*/step-*.ckpt.sha256"))


def soon(condition: Callable[[], object], what: str, dvc: "subprocess.Popen[str]", every: float = 0.01) -> None:
    """Wait for the condition and check it every `every` seconds. Fail if `dvc` ends first."""
    seen = eventually(lambda: "seen" if condition() else dvc.poll() is not None, what, every=every)
    assert seen == "seen", f"dvc ended before {what}: {dvc.communicate()[0]}"


def fit_process(project: Project) -> int:
    """The process that runs the fit: it holds the lock of the state."""
    (holder,) = project.root.glob("data/state/*.lock")
    return int(holder.read_text())


def resumes_to_the_same_lock(project: Project, lock: Any) -> str:
    text = project.run("dvc", "repro", "fit").stdout
    assert re.search(rf"resuming from step \d+, in epoch \d+ of {EPOCHS}", text), text
    assert locked(project) == lock
    assert not list((project.root / "data/state").iterdir())
    return text


def test_the_fit_resumes_after_dvc_is_killed_twice_and_rerun_at_once(project: Project, lock: Any) -> None:
    """The second run does not wait until the first run's trainer has ended, and never trains at the same time."""
    steps: list[int] = []
    for _ in range(2):
        with repro(project, PLAIN) as dvc:
            reached = max(steps, default=0)
            soon(lambda: any(int(path.name[5:14]) > reached for path in states(project)), "a later state is kept", dvc)  # noqa: B023
            steps.append(int(states(project)[-1].name[5:14]))
            dvc.kill()
    assert steps == sorted(set(steps)), "no run got further than the one before"
    resumes_to_the_same_lock(project, lock)


def test_the_fit_resumes_after_the_trainer_is_killed_while_it_writes_a_state(project: Project, lock: Any) -> None:
    with repro(project) as dvc:
        soon(lambda: len(states(project)) == 2, "two states are kept", dvc)
        partial = lambda: list(project.root.glob("data/state/*/.step-*.partial"))  # noqa: E731
        soon(partial, "a state is being written", dvc, every=0.001)  # may take only ten milliseconds
        os.kill(fit_process(project), signal.SIGKILL)
        assert dvc.wait(timeout=PATIENCE) != 0
    assert "fit" not in locked(project)["stages"]
    resumes_to_the_same_lock(project, lock)


def first_state(project: Project, dvc: "subprocess.Popen[str]") -> Path:
    """The first state saved by the running fit. The next one follows a second later, unless the fit is asked to end."""
    soon(lambda: list(project.root.glob("data/state/*.lock")), "the fit began", dvc)
    soon(lambda: len(states(project)) == 1, "the first state is kept", dvc)
    return states(project)[0]


def resumes_from_a_later_state(first: Path, project: Project, lock: Any) -> None:
    newest = states(project)[-1]
    assert newest != first
    assert not (project.root / "data/model").exists()
    assert "fit" not in locked(project)["stages"]
    project.set_param("fit.save_state_every", 0.05)
    assert f"resuming from step {int(newest.name[5:14])}," in resumes_to_the_same_lock(project, lock)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_fit_after_the_current_step_and_its_state_is_saved(
    number: signal.Signals, code: int, project: Project, lock: Any
) -> None:
    project.set_param("fit.save_state_every", 1)
    with repro(project) as dvc:
        first = first_state(project, dvc)
        trainer = fit_process(project)
        os.kill(trainer, number)
        text = dvc.communicate(timeout=PATIENCE)[0]
    assert dvc.returncode != 0
    assert f"{number.name}: ending after this step and saving its state" in text
    assert f"exited with {code}" in text
    assert not alive(trainer)
    resumes_from_a_later_state(first, project, lock)


@pytest.mark.parametrize(
    ("where", "number", "also"),
    [
        (OWN_WARM, signal.SIGTERM, None),
        (OWN_WARM, signal.SIGKILL, None),
        (PLAIN, signal.SIGTERM, signal.SIGTERM),
    ],
    ids=["SIGTERM", "SIGKILL", "SIGTERM also to the stage"],
)
def test_if_dvc_ends_the_fit_ends_after_the_current_step_and_its_state_is_saved(
    where: Mapping[str, str], number: signal.Signals, also: signal.Signals | None, project: Project, lock: Any
) -> None:
    """DVC itself ends at once. A service manager sends the signal to both, in either order."""
    project.set_param("fit.save_state_every", 1)
    with repro(project, where) as dvc:
        first = first_state(project, dvc)
        trainer = fit_process(project)
        dvc.send_signal(number)
        if also is not None:
            os.kill(trainer, also)
        text = dvc.communicate(timeout=PATIENCE)[0]
        eventually(lambda: not alive(trainer), "the trainer is gone")
    assert dvc.returncode == -number
    assert ": ending after this step and saving its state" in text
    resumes_from_a_later_state(first, project, lock)


def test_ctrl_c_in_dvc_s_terminal_ends_the_fit_and_it_resumes(project: Project, lock: Any) -> None:
    """Ctrl-C reaches every process in the terminal's foreground process group."""
    with repro(project) as dvc:
        soon(lambda: len(states(project)) == 2, "two states are kept", dvc)
        trainer = fit_process(project)
        os.killpg(dvc.pid, signal.SIGINT)
        text = dvc.communicate(timeout=PATIENCE)[0]
    assert dvc.returncode != 0
    assert "SIGINT: ending after this step" in text
    assert not alive(trainer)
    assert "fit" not in locked(project)["stages"]
    resumes_to_the_same_lock(project, lock)


def test_a_second_trainer_of_the_same_fit_is_refused_and_the_error_names_the_first(project: Project, lock: Any) -> None:
    """For example one started by hand while `dvc` runs: DVC's lock does not prevent that."""
    with repro(project) as dvc:
        soon(lambda: len(states(project)) == 2, "two states are kept", dvc)
        first = fit_process(project)
        os.kill(first, signal.SIGSTOP)
        try:
            second = project.run(sys.executable, "-m", "stages.fit", ok=False)
        finally:
            os.kill(first, signal.SIGCONT)
        assert second.returncode == 2
        (line,) = [line for line in second.stderr.splitlines() if line.startswith("error: ")]
        assert line.startswith(f"error: process {first} trains this very fit")
        dvc.communicate(timeout=PATIENCE)
    assert dvc.returncode == 0
    assert locked(project) == lock
