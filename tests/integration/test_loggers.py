"""Loggers: the content that a fit and a test log, read back with each logger's own reader."""

import csv
import io
import json
import os
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import wandb
import yaml
from mlflow import MlflowClient
from numpy.typing import NDArray
from PIL import Image
from pytorch_lightning.callbacks import Callback
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata, plugin_data_pb2
from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]

from refit.artifacts.checked import stage_params
from refit.artifacts.prepared import read_split
from refit.params import load_params
from refit.tracking import watchers
from stages import fit
from tests.fixtures import Fit, run_test, watched_by
from tests.processes import eventually

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType"),  # from a function in MLflow
    pytest.mark.filterwarnings("ignore:.*unclosed:ResourceWarning"),  # from W&B's socket
]
OF_LIGHTNING = ["tensorboard", "csv", "wandb"]
ALL = ["mlflow", *OF_LIGHTNING]
SUMS = ("train_loss", "train_accuracy", "val_loss", "val_accuracy")


@pytest.fixture(autouse=True)
def _wandb_offline(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    yield
    wandb.teardown()  # it reads its environment only once per process


def logs() -> Path:
    """The logs of the model in data/model."""
    return Path("data/logs") / str(json.loads(Path("data/model/model.json").read_text())["sha256"])[:16]


def history() -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(Path("data/evaluation/history.csv").read_text())))


def tensorboard(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder), size_guidance={"histograms": 0, "images": 0, "scalars": 0})
    events.Reload()
    return events


def wandb_records(kind: str) -> list[Any]:
    """From all files of the model's W&B run."""
    records = [
        Record.FromString(content)
        for file in sorted((logs() / "wandb").glob("offline-run-*/*.wandb"))
        for content in leveldb_log(file.read_bytes())
    ]
    return [getattr(record, kind) for record in records if record.HasField(kind)]


def leveldb_log(content: bytes) -> Iterator[bytes]:
    """The records of a file in LevelDB's log format. W&B uses it, with its own file header."""
    place, record = 7, b""
    while place < len(content):
        left = 2**15 - place % 2**15
        if left < 7:  # too little space for a header: the rest of the block is padding
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", content, place)
        record += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a complete record, or the last part of one
            yield record
            record = b""


def wandb_told() -> dict[str, Any]:
    """The last value of each key in the history and the summary."""
    return {
        item.key or ".".join(item.nested_key): json.loads(item.value_json)
        for kind, of in (("history", "item"), ("summary", "update"))
        for record in wandb_records(kind)
        for item in getattr(record, of)
    }


def outputs() -> dict[str, bytes]:
    folders = [Path("data/model"), Path("data/evaluation")]
    return {str(path): path.read_bytes() for folder in folders for path in folder.rglob("*") if path.is_file()}


def test_the_choice_of_loggers_changes_no_output(fitted_in_mlflow: Fit) -> None:
    fitted_in_mlflow(tracking__loggers=[])
    alone = outputs()
    assert not Path("data/logs").exists()
    fitted_in_mlflow(tracking__loggers=ALL)
    assert outputs() == alone
    assert sorted(path.name for path in logs().iterdir()) == ["csv", "tensorboard", "wandb"]
    (run,) = MlflowClient().search_runs(["1"])
    assert run.info.status == "FINISHED"


def test_each_logger_gets_the_curves_the_parameters_and_the_best_epoch(fitted: Fit) -> None:
    fitted(tracking__loggers=OF_LIGHTNING, fit__max_epochs=3)
    rows, best = history(), json.loads(Path("data/evaluation/fit.json").read_text())
    curves = {name: [float(row[name]) for row in rows] for name in (*SUMS, "learning_rate")}
    steps = [17, 35, 53]
    params = load_params().model_dump()

    with (logs() / "csv/metrics.csv").open() as file:
        told = list(csv.DictReader(file))
    assert [int(row["step"]) for row in told] == steps
    assert {name: [float(row[name]) for row in told] for name in curves} == curves
    assert float(told[-1]["best_val_loss"]) == best["val_loss"]
    assert all(float(row["images_per_second"]) > 0 for row in told)
    assert json.loads((logs() / "csv/params.json").read_text()) == params

    events = tensorboard(logs() / "tensorboard")
    for name, curve in curves.items():
        assert [scalar.step for scalar in events.Scalars(name)] == steps
        assert [scalar.value for scalar in events.Scalars(name)] == pytest.approx(curve, rel=1e-6)

    told_wandb = wandb_told()
    assert told_wandb["val_loss"] == curves["val_loss"][-1]
    assert told_wandb["best_val_loss"] == best["val_loss"]
    losses = [
        json.loads(item.value_json)
        for record in wandb_records("history")
        for item in record.item
        if (item.key or item.nested_key[0]) == "val_loss"
    ]
    assert losses == curves["val_loss"]
    config = {item.key: json.loads(item.value_json) for record in wandb_records("config") for item in record.update}
    assert config["optimizer"] == params["optimizer"]


def test_tensorboard_s_hparams_tab_has_the_parameters_and_the_best_value_of_the_monitor(fitted: Fit) -> None:
    fitted(tracking__loggers=["tensorboard"], fit__monitor="val_accuracy", fit__max_epochs=3)
    events = tensorboard(logs() / "tensorboard")
    best = max(float(row["val_accuracy"]) for row in history())
    assert [scalar.value for scalar in events.Scalars("hp_metric")] == pytest.approx([best])
    content = events.PluginTagToContent(metadata.PLUGIN_NAME)
    experiment, session = (
        plugin_data_pb2.HParamsPluginData.FromString(content[tag])
        for tag in (metadata.EXPERIMENT_TAG, metadata.SESSION_START_INFO_TAG)
    )
    assert [info.name.tag for info in experiment.experiment.metric_infos] == ["hp_metric"]
    hparams = session.session_start_info.hparams
    assert hparams["fit/max_epochs"].number_value == 3
    assert hparams["optimizer/weight_decay"].number_value == 0.05
    assert hparams["fit/monitor"].string_value == "val_accuracy"


def pixels(png: bytes) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(png)).convert("L"))


def test_each_logger_with_pictures_shows_the_first_batch_as_the_network_sees_it(fitted_in_mlflow: Fit) -> None:
    seen: list[NDArray[np.uint8]] = []

    class Notes(Callback):
        def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
            network = pl_module.network
            assert isinstance(network, torch.nn.Module)
            network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].numpy().copy()))

    with watched_by(Notes()):
        fitted_in_mlflow(tracking__loggers=ALL, augment__shift=3, augment__cutout=3)
    (in_wandb,) = (logs() / "wandb").glob("offline-run-*/files/media/images/first_batch*.png")
    (in_tensorboard,) = tensorboard(logs() / "tensorboard").Images("first_batch")
    assert in_tensorboard.step == 0
    client = MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
    (run,) = client.search_runs(["1"])
    in_mlflow = Path(client.download_artifacts(run.info.run_id, "pictures/first_batch.png"))
    for png in (in_wandb.read_bytes(), in_tensorboard.encoded_image_string, in_mlflow.read_bytes()):
        picture = pixels(png)
        for number in range(watchers.MOST_SHOWN):
            top, left = (1 + 9 * (number // 8)), (1 + 9 * (number % 8))
            np.testing.assert_array_equal(picture[top : top + 8, left : left + 8], seen[0][number, 0])
    raw = {image.tobytes() for image in read_split("train").images}
    assert sum(image.tobytes() in raw for image in seen[0]) < len(seen[0]) / 2


def test_histograms_show_the_weights_and_last_gradients_of_each_epoch(fitted: Fit) -> None:
    at_end: dict[str, torch.Tensor] = {}

    class Notes(Callback):
        def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: object) -> None:
            for name, weight in pl_module.named_parameters():
                assert weight.grad is not None
                if trainer.global_step == 17:
                    at_end[f"gradients/{name}"] = weight.grad.clone()

        def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            for name, weight in pl_module.named_parameters():
                at_end.setdefault(f"weights/{name}", weight.detach().clone())

    with watched_by(Notes()):
        fitted(tracking__loggers=["tensorboard", "wandb"], fit__gradient_clip_val=None)
    events = tensorboard(logs() / "tensorboard")
    assert sorted(events.Tags()["histograms"]) == sorted(at_end)
    told = wandb_told()
    for name, values in at_end.items():
        first = events.Histograms(name)[0]
        assert (first.step, first.histogram_value.num) == (17, values.numel())
        assert first.histogram_value.min == pytest.approx(values.min().item())
        assert first.histogram_value.sum == pytest.approx(values.sum().item(), rel=1e-4, abs=1e-5)
        assert told[f"{name}._type"] == "histogram"
        assert sum(told[f"{name}.values"]) == values.numel()


def test_a_killed_and_resumed_fit_logs_each_epoch_once(fitted: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    """A real process is killed, so nothing is flushed at its end."""
    fitted(tracking__loggers=["csv", "tensorboard"], fit__max_epochs=1)
    shutil.rmtree("data/logs")
    params = load_params().model_dump()
    params["fit"] |= {"max_epochs": 5, "save_state_every": 0.05}
    params["model"]["width"] = 32
    Path("params.yaml").write_text(yaml.safe_dump(params))
    command = [sys.executable, "-m", "stages.fit"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}

    def step_saved() -> int:
        states = Path("data/state").glob("*/step-*.ckpt.sha256")
        return max((int(state.name[5:14]) for state in states), default=0)

    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    eventually(lambda: step_saved() > 2 * 18, "two epochs are logged and in a state", every=0.01)
    process.kill()
    process.wait()
    fit.main(stage_params("fit"))
    said = capsys.readouterr().out
    first, of_all = map(int, re.findall(r"resuming from step .* in epoch (\d+) of (\d+)", said)[0])
    assert 2 <= first < of_all

    rows = history()
    with (logs() / "csv/metrics.csv").open() as file:
        told = list(csv.DictReader(file))
    events = tensorboard(logs() / "tensorboard")
    for name in ("val_loss", "train_loss", "learning_rate"):
        assert [float(row[name]) for row in told] == [float(row[name]) for row in rows]
        assert [scalar.step for scalar in events.Scalars(name)] == [18 * epoch - 1 for epoch in range(1, 6)]
    assert len(events.Scalars("epoch_seconds")) == 5


def test_a_test_adds_its_metrics_and_pictures_to_each_logger_and_a_repeat_replaces_them(fitted: Fit) -> None:
    fitted(tracking__loggers=OF_LIGHTNING)
    run_test()
    run_test()
    metrics = json.loads(Path("data/evaluation/test.json").read_text())
    drawn = {path.stem: path.read_bytes() for path in Path("data/evaluation/pictures").iterdir()}
    assert {"confusion", "mistakes", "learning_rate"} <= set(drawn)

    events = tensorboard(logs() / "tensorboard/test")
    assert [scalar.value for scalar in events.Scalars("test_accuracy")] == pytest.approx([metrics["accuracy"]])
    assert set(drawn) <= set(events.Tags()["images"])
    for name, png in drawn.items():
        (image,) = events.Images(name)
        np.testing.assert_array_equal(pixels(image.encoded_image_string), pixels(png))

    (row,) = csv.DictReader(io.StringIO((logs() / "csv/test.csv").read_text()))
    assert float(row["test_accuracy"]) == metrics["accuracy"]

    assert wandb_told()["test_accuracy"] == metrics["accuracy"]
    for name, png in drawn.items():
        copies = list((logs() / "wandb").glob(f"offline-run-*/files/media/images/{name}_*.png"))
        assert copies
        np.testing.assert_array_equal(pixels(copies[0].read_bytes()), pixels(png))
    assert {record.run_id for record in wandb_records("run")} == {(logs() / "wandb/run_id").read_text()}


def test_a_test_logs_only_to_the_chosen_loggers(fitted_in_mlflow: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    fitted_in_mlflow(tracking__loggers=["csv"])
    run_test(report=False)
    assert "warning" not in capsys.readouterr().err
    assert not MlflowClient(os.environ["MLFLOW_TRACKING_URI"]).search_experiments(filter_string="name = 'refit'")
    assert sorted(path.name for path in logs().iterdir()) == ["csv"]


def test_the_same_model_trained_again_keeps_its_logs_and_its_test(fitted: Fit) -> None:
    fitted(tracking__loggers=["csv"])
    run_test(report=False)
    before = {path: path.read_bytes() for path in logs().rglob("*") if path.is_file()}
    fitted(tracking__loggers=["csv", "tensorboard"])
    assert {path: path.read_bytes() for path in before} == before
    assert len(tensorboard(logs() / "tensorboard").Scalars("val_loss")) == 2
    assert [path.name for path in Path("data/logs").iterdir()] == [logs().name]


def test_unreachable_wandb_gives_one_warning_and_changes_no_weight(
    fitted: Fit, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    alone = fitted()
    wandb.teardown()
    for name, value in {"WANDB_MODE": "online", "WANDB_API_KEY": "", "HOME": str(tmp_path), "WANDB_BASE_URL":
                        "http://127.0.0.1:1"}.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    capfd.readouterr()
    weights = fitted(tracking__loggers=["wandb"])
    (line,) = [line for line in capfd.readouterr().err.splitlines() if "W&B" in line]
    assert line.startswith("warning: W&B failed (")
    assert "WANDB_MODE=offline" in line
    assert all(torch.equal(weights[name], alone[name]) for name in alone)
