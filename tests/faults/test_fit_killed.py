"""`dvc repro` and its `fit`, really killed, terminated and started twice: real processes, a real repository."""

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

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process of its parent's death")

EPOCHS = 20


@pytest.fixture(scope="module")
def undisturbed(finished: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The project after a fit that nothing disturbed, its dvc.lock committed; states are saved all the time."""
    project = copy_of(finished, tmp_path_factory.mktemp("undisturbed"))
    project.set_param("fit.max_epochs", EPOCHS)
    project.set_param("fit.save_state_every", 0.05)
    project.set_param("model.width", 8)
    project.set_param("tracking.loggers", "[]")  # test_kill_rounds.py and test_distributed.py have MLflow
    project.run("dvc", "repro", "fit")
    project.commit()
    return project


@pytest.fixture
def project(undisturbed: Project) -> Project:
    forget_fit(undisturbed)
    return undisturbed


def forget_fit(project: Project) -> None:
    """As if `fit` had never run."""
    project.restore()
    for made in ("data/model", "data/state", ".dvc/cache/runs"):
        shutil.rmtree(project.root / made, ignore_errors=True)
    known = locked(project)
    del known["stages"]["fit"]
    (project.root / "dvc.lock").write_text(yaml.safe_dump(known))


@pytest.fixture
def lock(undisturbed: Project) -> Any:
    """What dvc.lock holds when nothing disturbs the fit."""
    return yaml.safe_load(undisturbed.run("git", "show", "HEAD:dvc.lock").stdout)


def locked(project: Project) -> Any:
    return yaml.safe_load((project.root / "dvc.lock").read_text())


OWN_WARM, SHARED_WARM, PLAIN = {OWNER: ""}, {OWNER: str(os.getpid())}, {"REFIT_WARM": "0"}
"""Where a stage runs: as a fork of its dvc's own warm process; of one that outlives dvc, as in a flow, which saves its
start where dvc is not what ends; or as a process of its own."""


@contextmanager
def repro(project: Project, where: Mapping[str, str] = SHARED_WARM) -> Iterator["subprocess.Popen[str]"]:
    """`dvc` as the leader of a terminal's foreground."""
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
    """Seen within `every` so many seconds. Fails where `dvc` ends first."""
    seen = eventually(lambda: "seen" if condition() else dvc.poll() is not None, what, every=every)
    assert seen == "seen", f"dvc ended before {what}: {dvc.communicate()[0]}"


def fit_process(project: Project) -> int:
    """Who is at work on the fit: the holder of its state."""
    (holder,) = project.root.glob("data/state/*.lock")
    return int(holder.read_text())


def goes_on_and_ends_the_same(project: Project, lock: Any) -> str:
    text = project.run("dvc", "repro", "fit").stdout
    assert re.search(rf"resuming from step \d+, in epoch \d+ of {EPOCHS}", text), text
    assert locked(project) == lock
    assert not list((project.root / "data/state").iterdir())
    return text


def test_dvc_killed_and_run_again_at_once_and_again(project: Project, lock: Any) -> None:
    """The second run does not wait for the first one's trainer to be gone, and never trains beside it."""
    steps: list[int] = []
    for _ in range(2):
        with repro(project, PLAIN) as dvc:
            reached = max(steps, default=0)
            soon(lambda: any(int(path.name[5:14]) > reached for path in states(project)), "further", dvc)  # noqa: B023
            steps.append(int(states(project)[-1].name[5:14]))
            dvc.kill()
    assert steps == sorted(set(steps)), "no run got further than the one before"
    goes_on_and_ends_the_same(project, lock)


def test_the_trainer_killed_while_it_writes_a_state(project: Project, lock: Any) -> None:
    with repro(project) as dvc:
        soon(lambda: len(states(project)) == 2, "two states are kept", dvc)
        partial = lambda: list(project.root.glob("data/state/*/.step-*.partial"))  # noqa: E731
        soon(partial, "a state is being written", dvc, every=0.001)  # it may be over in ten milliseconds
        os.kill(fit_process(project), signal.SIGKILL)
        assert dvc.wait(timeout=PATIENCE) != 0
    assert "fit" not in locked(project)["stages"]
    goes_on_and_ends_the_same(project, lock)


def first_state(project: Project, dvc: "subprocess.Popen[str]") -> Path:
    """The first state that the running fit keeps; unless it is asked to end, the next is a second away."""
    soon(lambda: list(project.root.glob("data/state/*.lock")), "the fit began", dvc)
    soon(lambda: len(states(project)) == 1, "the first state is kept", dvc)
    return states(project)[0]


def goes_on_from_the_state_after(first: Path, project: Project, lock: Any) -> None:
    newest = states(project)[-1]
    assert newest != first
    assert not (project.root / "data/model").exists()
    assert "fit" not in locked(project)["stages"]
    project.set_param("fit.save_state_every", 0.05)
    assert f"resuming from step {int(newest.name[5:14])}," in goes_on_and_ends_the_same(project, lock)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_fit_after_its_step_with_its_state_saved(
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
    goes_on_from_the_state_after(first, project, lock)


@pytest.mark.parametrize(
    ("where", "number", "also"),
    [
        (OWN_WARM, signal.SIGTERM, None),
        (OWN_WARM, signal.SIGKILL, None),
        (PLAIN, signal.SIGKILL, None),
        (PLAIN, signal.SIGTERM, signal.SIGTERM),
    ],
    ids=["SIGTERM", "SIGKILL", "SIGKILL, plain", "SIGTERM to its stage too"],
)
def test_when_dvc_ends_the_fit_ends_after_its_step_with_its_state_saved(
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
    goes_on_from_the_state_after(first, project, lock)


def test_ctrl_c_in_the_terminal_of_dvc(project: Project, lock: Any) -> None:
    """It reaches every process of the terminal's foreground."""
    with repro(project) as dvc:
        soon(lambda: len(states(project)) == 2, "two states are kept", dvc)
        trainer = fit_process(project)
        os.killpg(dvc.pid, signal.SIGINT)
        text = dvc.communicate(timeout=PATIENCE)[0]
    assert dvc.returncode != 0
    assert "SIGINT: ending after this step" in text
    assert not alive(trainer)
    assert "fit" not in locked(project)["stages"]
    goes_on_and_ends_the_same(project, lock)


def test_a_second_trainer_of_the_same_fit_is_refused_and_names_the_first(project: Project, lock: Any) -> None:
    """Such as one started by hand, beside a `dvc` whose lock does not hold it off."""
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
