"""MLflow becomes unreachable during a fit, and receives the missing data when it is back."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
from mlflow import MlflowClient
from pytorch_lightning.callbacks import Callback

from refit.artifacts.paths import OUTBOX
from refit.commands import sync
from refit.reports.summary import mlflow_facts
from refit.runtime.errors import UserError
from refit.runtime.locks import only_process
from refit.tracking.model_runs import find_run
from refit.tracking.outbox import models_in_outbox
from refit.tracking.runs import TrackedRun
from tests.fixtures import Fit, run_test, watched_by
from tests.processes import eventually

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType"),  # from a function in MLflow
]

PROJECT = Path(__file__).resolve().parents[2]
MEASURED = {"system/epoch_seconds", "system/images_per_second", "system/memory_gib", "first_step_seconds"}


class Server:
    """A real MLflow server with its own store; it can be restarted on the same port."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port), "--workers",
             "1", "--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db", "--artifacts-destination",
             f"{self.folder}/artifacts"],
            env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        eventually(self.answers, "the server answers", every=0.25)

    def answers(self) -> bool:
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", self.port)) == 0

    def kill(self) -> None:
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.process = None


@pytest.fixture
def server(
    tmp_path_factory: pytest.TempPathFactory,
    empty_store: Path,
    fitted_in_mlflow: Fit,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Server]:
    """The MLflow server of the fits, not yet started."""
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(empty_store, folder / "mlflow.db")
    server = Server(folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    yield server
    if server.process is not None:
        server.kill()


class KillsIn(Callback):
    """Kills the server at the start of an epoch, once the server has the previous epoch's metrics."""

    def __init__(self, server: Server, epoch: int) -> None:
        self.server, self.epoch = server, epoch

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch == self.epoch and self.server.process is not None:
            client = MlflowClient(self.server.url)
            eventually(
                lambda: any("val_loss" in run.data.metrics for run in client.search_runs(["1"])), "metrics arrived"
            )
            self.server.kill()


class PowerCutError(BaseException):
    pass


class CutsIn(Callback):
    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if trainer.current_epoch == self.epoch and batch_idx == 5:
            raise PowerCutError


def only_run(uri: str) -> dict[str, Any]:
    """The content of the only run in MLflow, without measurements, ids and times."""
    client = MlflowClient(uri)
    (run,) = client.search_runs(["1"])
    histories = {}
    for name in run.data.metrics:
        curve = client.get_metric_history(run.info.run_id, name)
        histories[name] = [(point.step, None if name in MEASURED else point.value) for point in curve]
    assert run.outputs is not None
    assert run.inputs is not None
    (output,) = run.outputs.model_outputs
    model = client.get_logged_model(output.model_id)
    files = {}
    for folder in client.list_artifacts(run.info.run_id):
        for file in client.list_artifacts(run.info.run_id, folder.path):
            files[file.path] = Path(client.download_artifacts(run.info.run_id, file.path)).read_bytes()
    return {
        "status": run.info.status,
        "name": run.info.run_name,
        "params": run.data.params,
        "tags": {name: value for name, value in run.data.tags.items() if name not in MEASURED},
        "data sets": [(one.dataset.name, one.dataset.digest) for one in run.inputs.dataset_inputs],
        "metrics": histories,
        "files": files,
        "model": (model.name, model.status, model.tags["model_sha256"]),
    }


KEYS = {"fit__max_epochs": 4}


def undisturbed(server: Server, fitted_in_mlflow: Fit) -> dict[str, Any]:
    """The content of a server that was up during the same fit and test."""
    whole = Server(server.folder.parent / "whole")
    whole.folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{whole.folder}/mlflow.db")
        fitted_in_mlflow(**KEYS)
        run_test()
        return only_run(f"sqlite:///{whole.folder}/mlflow.db")


def test_a_run_whose_end_mlflow_missed_is_completed_as_if_never_interrupted(
    server: Server, fitted_in_mlflow: Fit, capsys: pytest.CaptureFixture[str]
) -> None:
    server.start()
    with watched_by(KillsIn(server, epoch=2)):
        fitted_in_mlflow(**KEYS)
    assert server.process is None
    run_test()
    warned = [line for line in capsys.readouterr().err.splitlines() if "MLflow" in line]
    assert len(warned) == 2
    assert all("make sync" in line for line in warned)
    assert not server.answers()

    with pytest.raises(SystemExit) as still_down:
        sync.main()
    assert still_down.value.code == 1
    said = capsys.readouterr()
    assert said.out == ""
    (line,) = said.err.splitlines()
    assert server.url in line
    (model,) = models_in_outbox()

    server.start()
    client = MlflowClient(server.url)
    (half,) = client.search_runs(["1"])
    assert half.info.status == "RUNNING"
    sent = [point.step for point in client.get_metric_history(half.info.run_id, "val_loss")]
    assert sent in ([17], [17, 35]), "the second epoch's metrics may not have arrived"
    done = subprocess.run(
        [sys.executable, "-m", "refit.commands.sync"], env={**os.environ, "PYTHONPATH": str(PROJECT)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, f"sent the run of model {model[:12]} to MLflow\n", "")
    synced = only_run(server.url)
    assert models_in_outbox() == []
    capsys.readouterr()
    sync.main()
    assert capsys.readouterr().out == "the outbox is empty: MLflow has everything\n"
    assert only_run(server.url) == synced

    whole = undisturbed(server, fitted_in_mlflow)
    for part in whole:
        assert synced[part] == whole[part], part
    assert synced["status"] == "FINISHED"
    assert {"pictures/first_batch.png", "evaluation/history.csv", "evaluation/report.html"} <= set(synced["files"])


@pytest.fixture
def away_and_back(
    tmp_path_factory: pytest.TempPathFactory,
    empty_store: Path,
    fitted_in_mlflow: Fit,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[bool], str]:
    """A function that makes MLflow reachable or unreachable; at first it is unreachable."""
    store = tmp_path_factory.mktemp("store") / "mlflow.db"
    shutil.copy(empty_store, store)

    def reachable(there: bool) -> str:
        uri = f"sqlite:///{store}" if there else "http://127.0.0.1:1"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        return uri

    reachable(there=False)
    return reachable


def test_runs_that_mlflow_never_received_are_created_from_the_outbox(
    away_and_back: Callable[[bool], str], fitted_in_mlflow: Fit, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first model is no longer in data/ by then. The second fit is interrupted, and resumes without MLflow."""
    fitted_in_mlflow(**KEYS)
    run_test(report=False)
    second: dict[str, Any] = {**KEYS, "optimizer__weight_decay": 0.1, "fit__save_state_every": 0.01}
    with watched_by(CutsIn(epoch=2)), pytest.raises(PowerCutError):
        fitted_in_mlflow(**second)
    fitted_in_mlflow(**second)
    assert len(models_in_outbox()) == 2
    facts = mlflow_facts(find_run(models_in_outbox()[0]))
    assert facts[-1] == ("MLflow outbox", "2 models not sent; run: make sync", None)
    assert "resuming from step" in capsys.readouterr().out

    client = MlflowClient(away_and_back(True))
    sync.main()
    runs = {run.data.params["optimizer.weight_decay"]: run for run in client.search_runs(["1"])}
    assert set(runs) == {"0.05", "0.1"}
    for run in runs.values():
        assert run.info.status == "FINISHED"
        for name in ("val_loss", "system/epoch_seconds"):
            steps = [point.step for point in client.get_metric_history(run.info.run_id, name)]
            assert steps == [17, 35, 53, 71]
    assert "test/accuracy" in runs["0.05"].data.metrics
    assert "test/accuracy" not in runs["0.1"].data.metrics
    assert models_in_outbox() == []
    assert [fact.name for fact in mlflow_facts(find_run(runs["0.1"].data.tags["model_sha256"]))] == ["MLflow run"]

    away_and_back(False)
    run_test(report=False)  # tests the second model, whose run is in MLflow
    assert len(models_in_outbox()) == 1
    away_and_back(True)
    sync.main()
    (run,) = [run for run in client.search_runs(["1"]) if run.data.params["optimizer.weight_decay"] == "0.1"]
    tested = json.loads(Path("data/evaluation/test.json").read_text())
    assert run.data.metrics["test/accuracy"] == tested["accuracy"]


def test_an_interrupted_sync_is_repeated_without_a_second_run(
    away_and_back: Callable[[bool], str], fitted_in_mlflow: Fit, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted_in_mlflow(**KEYS)
    uri = away_and_back(True)

    def cut_off(*_: object) -> None:
        raise PowerCutError

    with monkeypatch.context() as patch:
        patch.setattr(TrackedRun, "_log_model", cut_off)
        with pytest.raises(PowerCutError):
            sync.main()
    assert len(models_in_outbox()) == 1
    sync.main()
    held = only_run(uri)
    assert [step for step, _ in held["metrics"]["val_loss"]] == [17, 35, 53, 71]
    assert models_in_outbox() == []


def test_an_unreadable_model_in_the_outbox_does_not_block_the_others(
    away_and_back: Callable[[bool], str], fitted_in_mlflow: Fit, capsys: pytest.CaptureFixture[str]
) -> None:
    for decay in (0.05, 0.1):
        fitted_in_mlflow(**KEYS, optimizer__weight_decay=decay)
    first, second = models_in_outbox()
    (OUTBOX / first / "fit/model/model.json").write_text("{}")
    client = MlflowClient(away_and_back(True))
    with pytest.raises(SystemExit) as ended:
        sync.main()
    assert ended.value.code == 1
    assert f"error: model {first[:12]} stays in the outbox: " in capsys.readouterr().err
    assert models_in_outbox() == [first]
    (run,) = client.search_runs(["1"])
    assert run.data.tags["model_sha256"] == second


def test_a_second_concurrent_sync_is_refused(away_and_back: object, fitted_in_mlflow: Fit) -> None:
    fitted_in_mlflow(**KEYS)
    with only_process(sync.LOCK, "runs"), pytest.raises(UserError, match=f"process {os.getpid()} sends the outbox"):
        sync.main()
