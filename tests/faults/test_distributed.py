"""`dvc repro` with a fit on two devices, ended in every possible way: one fit, one set of outputs, no process left."""

import os
import signal
import sqlite3
import sys
from pathlib import Path

import pytest
import yaml

from tests.faults.test_fit_killed import (
    EPOCHS,
    PLAIN,
    SHARED_WARM,
    fit_process,
    forget_fit,
    repro,
    resumes_to_the_same_lock,
    soon,
    states,
)  # fmt: skip
from tests.fixtures.project import Project, copy_of
from tests.processes import PATIENCE, alive, eventually, processes_in

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux signals a process when its parent dies")


@pytest.fixture(scope="module")
def project(finished: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The project after an undisturbed fit, with dvc.lock committed. States are saved very often, and the images are
    stored encoded."""
    project = copy_of(finished, tmp_path_factory.mktemp("two_devices"))
    project.set_param("fit.max_epochs", EPOCHS)
    project.set_param("fit.save_state_every", 0.05)
    project.set_param("model.width", 8)
    project.set_param("model.dropout", 0.2)  # each process draws its own random numbers
    project.set_param("trainer.accelerator", "cpu")
    project.set_param("trainer.devices", 2)
    project.set_param("data.storage", "encoded")
    project.run("dvc", "repro", "fit")
    project.commit()
    return project


def test_two_devices_give_one_mlflow_run_and_a_second_repro_runs_no_stage(project: Project) -> None:
    assert "Running stage" not in project.run("dvc", "repro", "fit").stdout
    assert runs(project) == [("FINISHED",)] * 2, "one run of the copied project and one of this project"
    assert len((project.root / "data/evaluation/history.csv").read_text().splitlines()) == 1 + EPOCHS
    assert not list((project.root / "data/state").iterdir())


def test_a_fit_ended_by_a_signal_or_a_killed_process_resumes_to_the_same_dvc_lock(
    project: Project,
) -> None:
    forget_fit(project)
    lock = yaml.safe_load(project.run("git", "show", "HEAD:dvc.lock").stdout)
    for how, where, said in (
        ("SIGTERM", SHARED_WARM, "exited with 143"),
        ("Ctrl-C", PLAIN, "SIGINT: ending after this step"),
        ("first process killed", SHARED_WARM, "failed to reproduce 'fit'"),
        ("other process killed", SHARED_WARM, "failed to reproduce 'fit'"),
    ):
        reached = max((int(path.name[5:14]) for path in states(project)), default=0)
        with repro(project, where) as dvc:
            soon(lambda: any(int(path.name[5:14]) > reached for path in states(project)), "a later state is kept", dvc)  # noqa: B023
            leader = fit_process(project)
            (other,) = Path(f"/proc/{leader}/task/{leader}/children").read_text().split()
            assert b"stages.fit" in Path(f"/proc/{other}/cmdline").read_bytes()
            servers = [command for command in processes_in(project.root) if "refit.runtime.warm" in command]
            assert len(servers) == 1 + (where is SHARED_WARM), "one for the warm process, one for its child, the leader"
            if how == "SIGTERM":
                os.kill(leader, signal.SIGTERM)
            elif how == "Ctrl-C":
                os.killpg(dvc.pid, signal.SIGINT)
            else:
                os.kill(leader if how == "first process killed" else int(other), signal.SIGKILL)
            text = dvc.communicate(timeout=PATIENCE)[0]
        assert dvc.returncode != 0
        assert said in text
        eventually(lambda: not alive(leader) and not alive(other), "both processes are gone")  # noqa: B023
        assert not (project.root / "data/model").exists()
    resumes_to_the_same_lock(project, lock)
    assert runs(project).count(("FINISHED",)) == 2, "it gives the same model, so no run is added"


def runs(project: Project) -> list[tuple[str]]:
    """The status of each run in MLflow."""
    with sqlite3.connect(project.root / "mlflow.db") as store:
        return store.execute("select status from runs where lifecycle_stage = 'active'").fetchall()
