"""What the unit tests share: quick parameters, and a prepared data set of real digits."""

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from pytorch_lightning.callbacks import Callback
from safetensors.torch import load_file
from torch import Tensor

from refit.artifacts.choices import BATCH, LEARNING_RATE, LEARNING_RATE_CURVE, BatchChoice, LearningRateChoice
from refit.artifacts.files import write_csv, write_json
from refit.artifacts.model import MODEL
from refit.data.pack import pack
from refit.data.sources import open_source
from refit.params import ModelParams, Params, check_params, load_params
from refit.training import train
from refit.training.trainer import make_trainer
from stages import fit, test

# Whatever params.yaml holds today, the tests run with these.
_VALUES: dict[str, Any] = {
    "seed": 0,
    "data": {
        "source": "digits", "root": "data/raw", "image_size": "auto", "color": "auto",
        "val": 0.15, "test": 0.2, "bad_images": "fail",
    },
    "augment": {
        "shift": 0, "flip": False, "cutout": 0, "crop_area": 1.0, "color_jitter": 0.0, "policy": "none", "mixup": 0.0,
        "cutmix": 0.0,
    },
    "model": {
        "system": "classifier", "system_arguments": {}, "network": "mlp", "network_arguments": {}, "weights": None,
        "embedding": 8, "width": 16, "dropout": 0.2, "test_time_flip": False,
    },
    "batch": {"size": "auto", "max_size": 64, "memory_budget": 1.0},
    "optimizer": {
        "name": "adamw", "learning_rate": "auto", "backbone_learning_rate": 1.0, "fallback_learning_rate": 0.001,
        "weight_decay": 0.05, "momentum": 0.9, "schedule": "one_cycle", "warm_up": 0.3,
        "plateau_factor": 0.1, "plateau_patience": 3,
    },
    "loss": {"label_smoothing": 0.0, "class_weights": "none"},
    "fit": {
        "max_epochs": 2, "monitor": "val_loss", "patience": None, "gradient_clip_val": 1.0,
        "gradient_clip_algorithm": "norm", "freeze_epochs": 0, "averaging": "none", "ema_decay": 0.9, "swa_start": 0.5,
        "save_state_every": 30.0,
    },
    "trainer": {
        "accelerator": "cpu", "devices": 1, "num_nodes": 1, "strategy": "auto", "sync_batchnorm": False,
        "precision": "32-true", "threads": 1, "deterministic": True, "compile": None,
    },
    "test": {"confidence": 0.95, "calibration_bins": 10, "worst_mistakes": 4},
    "predict": {"images": "data/new", "top_k": 3, "abstain_below": 0.5},
    "promote": {"min_accuracy": 0.0, "margin": 0.01},
    "debug": {
        "fast_dev_run": 0, "overfit_batches": 0, "limit_train_batches": 1.0, "limit_val_batches": 1.0,
        "limit_test_batches": 1.0, "val_check_interval": 1.0, "profiler": None, "detect_anomaly": False,
    },
    "tracking": {"loggers": ["mlflow"]},
    "pipelines": {"stage_time_limit": 1.0, "stage_retries": 0, "publish": "none"},
}  # fmt: skip

Values = Callable[[Mapping[str, object]], dict[str, Any]]
Fit = Callable[..., dict[str, Tensor]]
Changed = Callable[[Mapping[str, object]], Params]


def model_params(**keys: object) -> ModelParams:
    """The quick model section, with these keys changed."""
    return ModelParams.model_validate({**_VALUES["model"], **keys})


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def base_values() -> dict[str, Any]:
    """What a quick params.yaml holds. Not to be written to."""
    return _VALUES


@pytest.fixture
def values() -> Values:
    """What a quick params.yaml holds, with these dotted keys changed or added."""

    def change(keys: Mapping[str, object]) -> dict[str, Any]:
        values = deepcopy(_VALUES)
        for key, value in keys.items():
            *sections, name = key.split(".")
            holder = values
            for section in sections:
                holder = holder[section]
            holder[name] = value
        return values

    return change


@pytest.fixture
def changed(values: Values) -> Changed:
    """Quick parameters, with these dotted keys changed."""
    return lambda keys: check_params(values(keys))


@pytest.fixture
def params(changed: Changed) -> Params:
    return changed({})


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder a stage runs in, with no data yet."""
    (tmp_path / "data/raw").mkdir(parents=True)
    (tmp_path / "data/new").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits as `prepare` packs them. Not to be written to."""
    folder = tmp_path_factory.mktemp("digits")
    values = check_params({**_VALUES, "data": {**_VALUES["data"], "root": str(folder)}})
    pack(open_source(values.data), values.data, values.seed, folder)
    return folder


@pytest.fixture
def prepared_workspace(workspace: Path, digits: Path) -> Path:
    """The folder a stage runs in, with the prepared digits in data/prepared."""
    shutil.copytree(digits, workspace / "data/prepared")
    return workspace


@pytest.fixture
def fitted(prepared_workspace: Path, values: Values, monkeypatch: pytest.MonkeyPatch) -> Fit:
    """The weights that `fit` keeps with these keys changed, and batches of 64, each of micro-batches."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{prepared_workspace}/mlflow.db")
    monkeypatch.delenv("DVC_ROOT", raising=False)

    def run(micro_batch: int = 64, learning_rate: float = 0.01, **keys: object) -> dict[str, Tensor]:
        write_json(LEARNING_RATE, asdict(LearningRateChoice(learning_rate, "params", None)))
        write_json(BATCH, asdict(BatchChoice(64, micro_batch, 64 // micro_batch, "params", "cpu", None, [])))
        changed = values({"model.network": "cnn", "model.width": 4} | {k.replace("__", "."): keys[k] for k in keys})
        Path("params.yaml").write_text(yaml.safe_dump(changed), encoding="utf-8")
        fit.main(load_params().only(*fit.READS))
        return load_file(MODEL / "model.safetensors")

    return run


@contextmanager
def watched_by(*ours: Callback) -> Iterator[None]:
    """A fit's Trainer has these callbacks before its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            train, "make_trainer",
            lambda *args, callbacks, **options: make_trainer(*args, callbacks=[*ours, *callbacks], **options),
        )  # fmt: skip
        yield


def run_test() -> None:
    """The stage `test`, after a fit; the curve of a range test that was not run is made up."""
    write_csv(LEARNING_RATE_CURVE, [{"learning_rate": 0.001, "loss": 2.0}, {"learning_rate": 0.01, "loss": 1.0}])
    test.main(load_params().only(*test.READS))
