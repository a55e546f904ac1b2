"""Tracking, with real stores, real servers and real fits."""

import json
import os
import random
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from mlflow import MlflowClient
from mlflow.entities import Run
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from refit.artifacts import model as artifacts
from refit.artifacts.model import model_sha256
from refit.artifacts.prepared import DatasetInfo
from refit.commands import register as register_command
from refit.inference.predictor import read_model
from refit.runtime.errors import UserError
from refit.systems import networks
from refit.systems.build import blueprint_of, build_system
from refit.tracking.model_runs import find_run, log_to_model_run
from refit.tracking.registry import Version, fetch, find_champion, make_champion, register
from refit.tracking.runs import TrackedRun
from refit.tracking.store import EXPERIMENT, tracking_uri
from tests.fixtures import model_params
from tests.processes import PATIENCE, answers, eventually

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType"),
]

PROJECT = Path(__file__).resolve().parents[2]
PARAMS = {"seed": 0, "data": {"source": "digits", "root": "data/raw"}, "model": {"network": "cnn", "width": None}}
IMAGES = torch.randint(0, 256, (32, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(32) % 10


class System(pl.LightningModule):
    """uint8 images to logits, with layers that behave differently in training."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.network = nn.Sequential(
            nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Dropout(0.5), nn.Linear(288, 10)
        )

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images.float() / 255)
        return logits

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        self.log("train_loss", loss, on_step=False, on_epoch=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(logger: TrackedRun | bool, epochs: int = 2, callbacks: list[pl.Callback] | None = None) -> System:
    system = System()
    trainer = pl.Trainer(
        max_epochs=epochs, logger=logger, callbacks=callbacks, accelerator="cpu", enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=1000,
    )  # fmt: skip
    trainer.fit(system, DataLoader(TensorDataset(IMAGES, LABELS), batch_size=16))
    return system


INFO = DatasetInfo(
    format=1, source="digits", classes=list("0123456789"), color="grey", shape=[1, 8, 8],
    counts={"train": 9, "val": 3, "test": 3}, mean=[0.3], std=[0.4], sha256="of the data",
)  # fmt: skip


def write_model(folder: Path, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    params = model_params(network="mlp", width=4)
    weights = build_system(params, INFO).state_dict()
    artifacts.write_model(
        weights, blueprint_of(params, INFO), data_sha256=INFO.sha256, batch_size=16, params={}, folder=folder
    )
    return folder


def tracked(model: Path) -> str:
    """Finish a run of this model; returns the model's sha256."""
    TrackedRun(PARAMS, {}).finish(model, IMAGES)
    return model_sha256(model)


def runs(uri: str | None = None) -> list[Run]:
    client = MlflowClient(uri or tracking_uri())
    experiment = client.get_experiment_by_name("refit")
    return list(client.search_runs([experiment.experiment_id])) if experiment else []


@pytest.fixture(autouse=True)
def repository(tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty repository with a local store; the test runs in it."""
    root = tmp_path / "repository"
    root.mkdir()
    shutil.copy(empty_store, root / "mlflow.db")
    monkeypatch.chdir(root)
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "DVC_ROOT", "DVC_EXP_NAME", "PREFECT__FLOW_RUN_ID"):
        monkeypatch.setenv(name, "")  # so that values set by a test or by MLflow are undone
    return root


def test_a_run_has_the_params_the_curves_the_commit_the_files_and_the_model(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_EXP_NAME", "calm-fern")
    monkeypatch.setenv("PREFECT__FLOW_RUN_ID", "flow-1")
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    subprocess.run([*git, "init", "-q"], check=True)
    (repository / "params.yaml").write_text("seed: 0")
    subprocess.run([*git, "add", "params.yaml"], check=True)
    subprocess.run([*git, "commit", "-qm", "first"], check=True)
    commit = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    picture = repository / "data/tuning/curve.png"
    picture.parent.mkdir(parents=True)
    picture.write_bytes(b"picture")

    logger = TrackedRun(PARAMS, {"data_sha256": "d1"}, info=INFO)
    fit(logger, epochs=3)
    logger.log_metrics({"images_per_second": 9.5}, step=5)
    logger.log_metrics({"best_epoch": 2, "best_val_loss": 0.123456789})
    logger.log_files(picture.relative_to(repository))
    model = write_model(repository / "data/model")
    logger.finish(model, IMAGES)

    (run,) = runs()
    sha256 = model_sha256(model)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "digits / calm-fern"
    assert run.data.params == {
        "seed": "0", "data.source": "digits", "data.root": "data/raw", "model.network": "cnn", "model.width": "None"
    }  # fmt: skip
    wanted = {
        "data_sha256": "d1", "model_sha256": sha256, "dvc_experiment": "calm-fern", "prefect_flow_run_id": "flow-1",
        "mlflow.source.git.commit": commit, "git_dirty": "false", "mlflow.source.name": "stages/fit.py",
        "best_epoch": "2", "best_val_loss": "0.123457",
    }  # fmt: skip
    assert wanted.items() <= run.data.tags.items()
    assert set(run.data.metrics) == {"train_loss", "system/images_per_second"}
    assert run.inputs is not None
    (data,) = run.inputs.dataset_inputs
    assert (data.dataset.name, data.dataset.digest, data.tags[0].value) == ("digits", "of the data", "training")
    assert json.loads(data.dataset.profile or "")["images"] == INFO.counts
    client = MlflowClient(tracking_uri())
    assert [point.step for point in client.get_metric_history(run.info.run_id, "train_loss")] == [1, 3, 5]
    assert [file.path for file in client.list_artifacts(run.info.run_id, "tuning")] == ["tuning/curve.png"]
    assert run.outputs is not None
    assert len(run.outputs.model_outputs) == 1
    link = find_run(sha256)
    assert link is not None
    assert link.run_id == run.info.run_id


def test_the_logged_model_gives_the_same_answers_in_a_process_without_the_project(
    repository: Path, tmp_path: Path
) -> None:
    TrackedRun(PARAMS, {}).finish(write_model(repository / "data/model"), IMAGES)
    system, _ = read_model(repository / "data/model")
    (run,) = runs()
    assert run.outputs is not None
    np.save(tmp_path / "images.npy", IMAGES.numpy())
    program = """
import sys, importlib.util, numpy as np, torch, mlflow
assert importlib.util.find_spec("refit") is None
uri, folder = sys.argv[1:]
images = np.load(folder + "/images.npy")
native, generic = mlflow.pytorch.load_model(uri), mlflow.pyfunc.load_model(uri)
assert mlflow.models.get_model_info(uri).metadata == {"classes": list("0123456789")}
for count in (1, 7):
    np.save(f"{folder}/native{count}.npy", native(torch.from_numpy(images[:count])).detach().numpy())
    np.save(f"{folder}/generic{count}.npy", generic.predict(images[:count]))
"""
    uri = f"models:/{run.outputs.model_outputs[0].model_id}"
    environment = {**os.environ, "MLFLOW_TRACKING_URI": tracking_uri(), "MLFLOW_DEFAULT_PREDICTION_DEVICE": "cpu"}
    subprocess.run([sys.executable, "-I", "-c", program, uri, str(tmp_path)], cwd=tmp_path, env=environment, check=True)
    for count in (1, 7):
        with torch.no_grad():
            expected = system(IMAGES[:count]).numpy()
        assert expected.dtype == np.float32
        for kind in ("native", "generic"):
            np.testing.assert_array_equal(np.load(tmp_path / f"{kind}{count}.npy"), expected)


def test_the_same_model_trained_again_adds_no_run_and_another_model_does(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = tracked(write_model(repository / "data/model"))
    kept = find_run(first)
    assert kept is not None
    capsys.readouterr()
    tracked(repository / "data/model")
    assert [run.info.run_id for run in runs()] == [kept.run_id]
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 1
    assert kept.run_id in said[0]

    tracked(write_model(repository / "other", seed=1))
    assert len(runs()) == 2


def test_test_results_go_to_the_model_s_own_run_and_a_repeat_replaces_them(repository: Path) -> None:
    tracked(write_model(repository / "other", seed=1))
    sha256 = tracked(write_model(repository / "data/model"))
    plot = repository / "data/evaluation/confusion.png"
    plot.parent.mkdir(parents=True)
    client = MlflowClient(tracking_uri())

    for accuracy, picture in ((0.9, b"first"), (0.9, b"first"), (0.8, b"second")):
        plot.write_bytes(picture)
        log_to_model_run(sha256, {"test_accuracy": accuracy}, [plot])

    (run,) = (run for run in runs() if "test/accuracy" in run.data.metrics)
    assert run.data.tags["model_sha256"] == sha256
    assert run.data.metrics["test/accuracy"] == 0.8
    assert [point.value for point in client.get_metric_history(run.info.run_id, "test/accuracy")] == [0.9, 0.8]
    (artifact,) = client.list_artifacts(run.info.run_id, "evaluation")
    assert Path(client.download_artifacts(run.info.run_id, artifact.path)).read_bytes() == b"second"
    assert run.info.status == "FINISHED"


@pytest.mark.parametrize("uri", ["", "http://127.0.0.1:1"])
def test_test_results_without_a_run_or_a_store_give_one_warning(
    uri: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    log_to_model_run("0" * 64, {"test_accuracy": 0.9}, [])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: MLflow at {tracking_uri()} ")
    assert find_run("0" * 64) is None


def test_in_a_temporary_dvc_workspace_the_main_repositorys_store_is_used(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = tmp_path / "workspace"
    workspace.mkdir()
    monkeypatch.chdir(workspace)
    monkeypatch.setenv("DVC_ROOT", str(repository))
    sha256 = tracked(write_model(workspace / "data/model"))
    assert sorted(path.name for path in workspace.iterdir()) == ["data"]
    assert any((repository / "mlruns").rglob("model.pt2"))

    monkeypatch.chdir(repository)
    monkeypatch.setenv("DVC_ROOT", "")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    assert find_run(sha256) is not None


@pytest.mark.parametrize("chosen", [None, "genai_development"])
def test_a_store_of_an_earlier_version_keeps_its_run_and_champion_and_accepts_new_runs(
    chosen: str | None, repository: Path
) -> None:
    """That store had one experiment without tags, whose runs had other names and no data set."""
    sha256 = tracked(write_model(repository / "data/model"))
    client = MlflowClient(tracking_uri())
    experiment = client.get_experiment("1")
    for tag in experiment.tags:
        client.delete_experiment_tag(experiment.experiment_id, tag)
    if chosen:  # by a person in MLflow's UI
        client.set_experiment_tag(experiment.experiment_id, "mlflow.experimentKind", chosen)
    (earlier,) = runs()
    client.update_run(earlier.info.run_id, name=f"digits cnn {sha256[:12]}")
    client.log_metric(earlier.info.run_id, "test_accuracy", 0.9)
    version, _ = register(repository / "data/model", "refit")
    make_champion(version, "the first")

    tracked(write_model(repository / "other", seed=1))
    link = find_run(sha256)
    assert link is not None
    assert (link.run_id, link.name) == (earlier.info.run_id, f"digits cnn {sha256[:12]}")
    assert link.url.endswith(f"/#/experiments/1/runs/{link.run_id}?workflowType=machine_learning")
    assert find_champion("refit") == version._replace(was_champion=True)
    log_to_model_run(sha256, {"test_accuracy": 0.9}, [])
    assert client.get_run(link.run_id).data.metrics == {"test_accuracy": 0.9, "test/accuracy": 0.9}
    tags = client.get_experiment(experiment.experiment_id).tags
    assert tags["mlflow.experimentKind"] == (chosen or "custom_model_development")
    assert "metrics.`test/accuracy`" in json.loads(tags["mlflow.sharedViewState.refit"])["selectedColumns"]


@pytest.mark.parametrize(
    ("data", "tags", "name"),
    [
        ({"source": "digits", "root": "data/raw"}, {}, "digits / cnn"),
        ({"source": "folder", "root": "/a/b/clothing/"}, {"dvc_experiment": "lr3"}, "clothing / lr3"),
        ({"source": "torchvision:FashionMNIST", "root": "data/raw"}, {"dvc_experiment": "x"}, "FashionMNIST / x"),
    ],
)
def test_a_run_is_named_after_its_data_and_experiment(data: dict[str, str], tags: dict[str, str], name: str) -> None:
    TrackedRun({"data": data, "model": {"network": "cnn"}}, tags).fail()
    assert runs()[0].info.run_name == name


def test_looking_up_a_run_creates_no_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    assert find_run("0" * 64) is None
    assert sorted(tmp_path.iterdir()) == before


RUN = "from refit.tracking.runs import TrackedRun; run = TrackedRun({}, {}); run.log_metrics({'a': 1}, 0); run.fail()"


def start_run(folder: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    return subprocess.Popen([sys.executable, "-c", RUN], cwd=folder, env=environment, stderr=subprocess.PIPE, text=True)


def creates_a_store(process: subprocess.Popen[str], folder: Path) -> None:
    """Wait until the process creates the store in this folder."""
    while not any(database.stat().st_size for database in folder.rglob("mlflow.db")):
        assert process.poll() is None
        time.sleep(0.01)


def run_here(capsys: pytest.CaptureFixture[str]) -> None:
    """The run of `start_run`, in this process and folder."""
    capsys.readouterr()
    run = TrackedRun({}, {})
    run.log_metrics({"a": 1}, 0)
    run.fail()
    assert "warning: " not in capsys.readouterr().err


def test_two_concurrent_first_runs_are_both_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    other = start_run(fresh)
    creates_a_store(other, fresh)
    monkeypatch.chdir(fresh)
    run_here(capsys)
    assert other.communicate(timeout=PATIENCE)[1] == ""
    assert [run.data.metrics for run in runs()] == [{"a": 1}, {"a": 1}]


def test_a_first_run_killed_while_it_creates_the_store_leaves_no_broken_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    killed = start_run(fresh)
    creates_a_store(killed, fresh)
    killed.kill()
    killed.communicate()
    assert not (fresh / "mlflow.db").exists()
    monkeypatch.chdir(fresh)
    run_here(capsys)
    assert [run.data.metrics for run in runs()] == [{"a": 1}]


@contextmanager
def silent_server() -> Iterator[str]:
    """Accepts connections and never answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield f"http://someone:secret@127.0.0.1:{listener.getsockname()[1]}"


@contextmanager
def unreachable(kind: str, folder: Path) -> Iterator[str]:
    if kind == "silent":
        with silent_server() as uri:
            yield uri
        return
    (folder / "folder.db").mkdir()
    (folder / "text.db").write_text("not a database" * 100)
    yield {
        "connection refused": "http://127.0.0.1:1",
        "no such host": "http://no-such-host.invalid",
        "invalid URI": "http://[::1",
        "no such database driver": "postgresql+psycopg2://someone:secret@localhost/mlflow",
        "cannot be opened": f"sqlite:///{folder}/folder.db",
        "not a database": f"sqlite:///{folder}/text.db",
    }[kind]


@pytest.mark.parametrize(
    "kind",
    [
        "connection refused",
        "no such host",
        "silent",
        "invalid URI",
        "no such database driver",
        "cannot be opened",
        "not a database",
    ],
)
def test_an_unreachable_store_costs_a_few_seconds_and_one_warning(
    kind: str, repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")  # seconds; each request is tried twice
    with unreachable(kind, repository) as uri:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        started = time.monotonic()
        logger = TrackedRun(PARAMS, {})
        fit(logger)
        logger.log_files(repository / "mlflow.db")
        logger.finish(write_model(repository / "data/model"), IMAGES)
        assert time.monotonic() - started < 90, "MLflow's own timeouts are minutes"
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "MLflow" in line]
    assert line.startswith("warning: MLflow at ")
    assert "training goes on" in line
    assert "secret" not in line
    assert logger.run_id is None


def test_a_store_whose_files_cannot_be_written_gives_one_warning_for_any_client_error(
    repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The errors of S3's client are no OSError, nor one of MLflow's."""
    for name, value in (
        ("MLFLOW_S3_ENDPOINT_URL", "http://127.0.0.1:9"),
        ("AWS_ACCESS_KEY_ID", "us"),
        ("AWS_SECRET_ACCESS_KEY", "secret"),
        ("AWS_MAX_ATTEMPTS", "1"),
    ):
        monkeypatch.setenv(name, value)
    uri = f"sqlite:///{repository}/other.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    MlflowClient(uri).create_experiment(EXPERIMENT, artifact_location="s3://nobody/here")
    logger = TrackedRun(PARAMS, {})
    fit(logger)
    logger.log_files(repository / "mlflow.db")
    logger.finish(write_model(repository / "data/model"), IMAGES)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning:")]
    assert re.search(r"ConnectionRefusedError: .*training goes on", line)


def start_server(folder: Path) -> tuple[subprocess.Popen[bytes], str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
         "--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", f"{folder}/artifacts"],
        env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    eventually(lambda: answers(f"{url}/health") or server.poll() is not None, "the server answers", every=0.25)
    assert server.poll() is None, "the server ended"
    return server, url


class Kill(pl.Callback):
    """Kills the server after the second epoch, once it has the run's metrics."""

    def __init__(self, server: subprocess.Popen[bytes], url: str) -> None:
        self.server, self.url = server, url

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch != 2:
            return
        eventually(lambda: "train_loss" in runs(self.url)[0].data.metrics, "the metrics arrived")
        os.killpg(self.server.pid, signal.SIGKILL)
        self.server.wait()


def test_a_server_stores_the_run_and_killing_it_during_a_fit_changes_no_weight(
    repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server, url = start_server(repository)
    try:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
        sha256 = tracked(write_model(repository / "data/model"))
        log_to_model_run(sha256, {"test_accuracy": 0.9}, [])
        link = find_run(sha256)
        assert link is not None
        assert link.url.startswith(url)
        version, new = register(repository / "data/model", "refit")
        assert (version, new) == (Version("refit", "1", sha256, link.run_id, was_champion=False), True)
        assert find_champion("refit") is None
        make_champion(version, "the first")
        monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "another")
        assert find_champion("refit") == version._replace(was_champion=True)
        model_dir, seen, predicted = fetch(version, repository)
        assert (seen, predicted) == (None, {})
        for name in ("model.safetensors", "model.json"):
            assert (model_dir / name).read_bytes() == (repository / "data/model" / name).read_bytes()
        monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME")

        logger = TrackedRun(PARAMS, {})
        capsys.readouterr()
        system = fit(logger, epochs=6, callbacks=[Kill(server, url)])
        logger.finish(write_model(repository / "data/model", seed=2), IMAGES)
    finally:
        if server.poll() is None:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "MLflow" in line]
    assert url in line
    assert "training goes on" in line

    undisturbed = fit(False, epochs=6)
    assert all(torch.equal(a, b) for a, b in zip(system.parameters(), undisturbed.parameters(), strict=True))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    broken_off, finished = sorted(runs(), key=lambda run: run.info.status != "RUNNING")
    assert broken_off.info.status == "RUNNING"
    assert "train_loss" in broken_off.data.metrics
    assert finished.data.metrics == {"test/accuracy": 0.9}


def test_a_locked_store_delays_no_step_and_loses_no_metric(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logger = TrackedRun(PARAMS, {})
    logger.log_metrics({"loss": 1.0}, 0)
    logger._wait()
    with sqlite3.connect(repository / "mlflow.db", isolation_level=None) as other:
        other.execute("BEGIN EXCLUSIVE")
        for step in range(1, 50):
            logger.log_metrics({"loss": 1.0}, step)  # would fail if it waited, because the store is locked
        other.rollback()
    other.close()
    logger.fail()
    assert capsys.readouterr().err == ""
    history = MlflowClient(tracking_uri()).get_metric_history(runs()[0].info.run_id, "loss")
    assert [point.step for point in history] == list(range(50))


@pytest.mark.parametrize(
    ("error", "status"), [(ValueError("bad"), "FAILED"), (SystemExit(), "KILLED"), (KeyboardInterrupt(), "KILLED")]
)
def test_the_status_of_an_interrupted_run_is_failed_or_killed(error: BaseException, status: str) -> None:
    run = TrackedRun(PARAMS, {})
    try:
        raise error
    except BaseException:  # noqa: BLE001  # as in a stage, which then re-raises it
        run.fail()
    assert runs()[0].info.status == status


def test_tracking_changes_no_random_state(repository: Path) -> None:
    def states() -> list[Any]:
        return [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()]  # type: ignore[index]

    before = states()
    run = TrackedRun(PARAMS, {})
    run.log_metrics({"loss": 1.0}, 0)
    run.log_files(repository / "mlflow.db")
    run._wait()
    assert states() == before


def test_a_model_is_registered_once_and_loads_by_its_name(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sha256 = tracked(write_model(repository / "data/model"))
    tested = repository / "data/evaluation/test.json"
    tested.parent.mkdir(parents=True)
    tested.write_text(json.dumps({"tested": sha256[:12]}))
    register_command.main("refit")
    register_command.main("refit")
    said = capsys.readouterr()
    assert "has not been tested" not in said.err
    first, second = said.out.splitlines()
    assert first == f"model {sha256[:12]} is now models:/refit/1"
    assert second == f"model {sha256[:12]} was already models:/refit/1"
    other = tracked(write_model(repository / "data/model", seed=1))
    register_command.main("refit")
    lack = f"warning: model {other[:12]} has not been tested; to test it, run: dvc repro\n"
    assert lack in capsys.readouterr().err

    versions = MlflowClient(tracking_uri()).search_model_versions("name = 'refit'")
    assert sorted(int(version.version) for version in versions) == [1, 2]
    import mlflow.pytorch

    assert mlflow.pytorch.load_model("models:/refit/1")(IMAGES[:3]).shape == (3, 10)


def test_an_impossible_registration_fails_with_a_one_line_error(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=r"data/model/model.json does not exist; run: dvc repro fit"):
        register_command.main("refit")
    write_model(repository / "data/model")
    with pytest.raises(UserError, match="holds no run of model"):
        register_command.main("refit")
    tracked(repository / "data/model")
    with pytest.raises(UserError, match=r"^MLflow at sqlite:.*\n?.*name"):
        register(repository / "data/model", "a/b")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    with pytest.raises(UserError, match=r"^MLflow at http://127.0.0.1:1: .*refused"):
        register(repository / "data/model", "refit")


class Undecided(nn.Module):
    """Its branch depends on the pixels, which cannot be exported as one graph."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, images: Tensor) -> Tensor:
        pixels = images.flatten(1) * self.scale
        return pixels[:, :10] if pixels.sum() > 0 else pixels[:, 10:20]


def test_a_run_whose_network_cannot_be_exported_finishes_with_a_warning(
    repository: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(networks._OURS, "mlp", lambda pixels, outputs, width=4, dropout=0.0: Undecided())
    model = write_model(repository / "data/model")
    TrackedRun(PARAMS, {}).finish(model, IMAGES)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "MLflow" in line]
    assert line.startswith("warning: MLflow's run holds no model")
    assert runs()[0].info.status == "FINISHED"
    with pytest.raises(UserError, match="holds no model"):
        register(model, "refit")


def test_tracking_imports_torch_and_mlflow_only_when_used() -> None:
    program = (
        "import sys, refit.commands.summary, refit.commands.register; "
        "print(sorted({'torch', 'mlflow'} & set(sys.modules)))"
    )
    answer = subprocess.run([sys.executable, "-c", program], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
