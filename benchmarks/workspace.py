"""A temporary workspace with generated data, in which the project's own `fit` runs unchanged."""

import contextlib
import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import numpy as np
import pytorch_lightning as pl
import yaml

import refit.training.train
import stages.fit
from benchmarks.rivals import Clock
from refit.artifacts.choices import BatchChoice, LearningRateChoice
from refit.artifacts.files import write_json
from refit.artifacts.paths import BATCH, LEARNING_RATE, PREPARED
from refit.artifacts.prepared import FORMAT, DatasetInfo, Split
from refit.params import TrainerParams, check_params
from refit.params.reads import READS
from refit.training.trainer import hardware_class, make_trainer


@contextlib.contextmanager
def empty_workspace() -> Iterator[None]:
    """Change to a temporary folder with its own MLflow store."""
    with (
        TemporaryDirectory() as folder,
        patch.dict(os.environ, {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}),
        contextlib.chdir(folder),
    ):
        yield


@contextlib.contextmanager
def workspace(train: Split, val: Split, batch_size: int) -> Iterator[None]:
    """Change to a temporary folder that contains the outputs of all stages before `fit`."""
    with empty_workspace():
        PREPARED.mkdir(parents=True)
        for name, split in {"train": train, "val": val, "test": val}.items():
            np.save(PREPARED / f"{name}_images.npy", split.images)
            np.save(PREPARED / f"{name}_labels.npy", split.labels)
        shape = list(train.images.shape[1:])
        info = DatasetInfo(
            FORMAT, "made", [str(number) for number in range(10)], "grey" if shape[0] == 1 else "rgb", shape,
            {"train": len(train.labels), "val": len(val.labels), "test": len(val.labels)},
            [0.5] * shape[0], [0.25] * shape[0], "0" * 64,
        )  # fmt: skip
        write_json(PREPARED / "dataset.json", info.as_json())
        write_tuning(batch_size, learning_rate=1e-3)
        del train, val  # `fit` reads its own
        yield


def write_tuning(batch_size: int, learning_rate: float) -> None:
    hardware = hardware_class(TrainerParams())
    write_json(BATCH, asdict(BatchChoice(batch_size, batch_size, 1, "params", hardware, None, [])))
    write_json(LEARNING_RATE, asdict(LearningRateChoice(learning_rate, "params", None)))


def fit(
    epochs: int = 1, callbacks: Sequence[pl.Callback] = (), params: Mapping[str, Any] | None = None, **changes: Any
) -> float:
    """Seconds of the training in the project's own `fit`, with `params` (None: the defaults) and `changes` to them
    (`section__key`)."""
    values = deepcopy(dict(params or {}))
    for name, value in {"fit__max_epochs": epochs, **changes}.items():
        section, key = name.split("__")
        values.setdefault(section, {})[key] = value
    Path("params.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    clock = Clock()
    with (
        patch.object(refit.training.train, "make_trainer", _with(clock, *callbacks)),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        stages.fit.main(check_params(values).only(*READS["fit"]))
    return clock.seconds


def _with(*more: pl.Callback) -> Callable[..., pl.Trainer]:
    def watched(*args: Any, callbacks: list[pl.Callback], **options: Any) -> pl.Trainer:
        return make_trainer(*args, callbacks=[*more, *callbacks], **options)

    return watched
