"""A fit on two devices, which are processes of this machine. faults/test_distributed.py kills them."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

import stages.fit
from refit.artifacts.checked import stage_params
from refit.artifacts.choices import BatchChoice, LearningRateChoice
from refit.artifacts.files import write_json
from refit.artifacts.paths import BATCH, LEARNING_RATE
from refit.artifacts.prepared import read_split
from tests.fixtures import store_encoded, watched_by
from tests.integration.fit_on_two_devices import Witness
from tests.integration.test_resume import same
from tests.processes import PATIENCE, processes_in

ROOT = Path(__file__).resolve().parents[2]
STEPS_AN_EPOCH = 18
EFFECTIVE_BATCH = 64


class Fitted(NamedTuple):
    process: "subprocess.CompletedProcess[str] | None"
    """None if the fit ran in this process."""
    seen: list[dict[str, Any]]
    """One entry for each process that finished."""
    model: dict[str, Tensor]
    history: bytes


Fit = Callable[..., Fitted]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> Path:
    """The images have different weights, which each device has to give to its own."""
    folder = tmp_path_factory.mktemp("fits")
    shutil.copytree(digits, folder / "data/prepared")
    images = len(read_split("train", digits).labels)
    np.save(folder / "data/prepared/train_weights.npy", np.linspace(0.1, 1.9, images, dtype=np.float32))
    return folder


@pytest.fixture(scope="module")
def fit(folder: Path, base_values: dict[str, Any]) -> Fit:
    """An observed fit of two epochs with 18 steps each; on two devices it runs in separate processes."""

    def run(devices: int, micro_batch: int, poison: str | None = None, **keys: object) -> Fitted:
        for made in ("data/model", "data/evaluation", "seen_0.pt", "seen_1.pt"):
            shutil.rmtree(folder / made) if (folder / made).is_dir() else (folder / made).unlink(missing_ok=True)
        write_json(folder / LEARNING_RATE, asdict(LearningRateChoice(0.01, "params", None)))
        choice = BatchChoice(EFFECTIVE_BATCH, micro_batch, EFFECTIVE_BATCH // micro_batch, "params", "cpu", None, [])
        write_json(folder / BATCH, asdict(choice))
        values = deepcopy(base_values)
        for key, value in {"trainer__devices": devices, **keys}.items():
            section, name = key.split("__")
            values.setdefault(section, {})[name] = value
        (folder / "params.yaml").write_text(yaml.safe_dump(values))
        process = None
        if devices == 1:
            with pytest.MonkeyPatch.context() as patch, watched_by(Witness()):
                patch.chdir(folder)
                stages.fit.main(stage_params("fit"))
        else:
            environment = os.environ | {"PYTHONPATH": str(ROOT), "DVC_ROOT": str(folder)}
            process = subprocess.run(
                [sys.executable, "-m", "tests.integration.fit_on_two_devices"], cwd=folder, text=True,
                capture_output=True, check=False,
                env=environment | ({"POISON": poison} if poison else {}),
                timeout=PATIENCE,  # the processes would wait half an hour for a dead one
            )  # fmt: skip
            if poison:
                return Fitted(process, [], {}, b"")
            assert process.returncode == 0, process.stderr
        return Fitted(
            process,
            [torch.load(folder / f"seen_{rank}.pt", weights_only=True) for rank in range(devices)],
            load_file(folder / "data/model/model.safetensors"),
            (folder / "data/evaluation/history.csv").read_bytes(),
        )

    return run


EVEN: dict[str, object] = {  # no random numbers are drawn in the process
    "model__dropout": 0.0, "augment__shift": 2, "tracking__loggers": [],
}  # fmt: skip


@pytest.fixture(scope="module")
def on_one_device(fit: Fit) -> Fitted:
    return fit(1, EFFECTIVE_BATCH, **EVEN)


@pytest.fixture(scope="module")
def on_two_devices(fit: Fit, folder: Path, on_one_device: Fitted) -> Fitted:
    """Each device accumulates two batches per step. The images are stored encoded, which changes no bit of a batch."""
    store_encoded(folder / "data/prepared")
    return fit(2, EFFECTIVE_BATCH // 4, **EVEN)


def test_two_devices_train_and_validate_like_one(on_one_device: Fitted, on_two_devices: Fitted) -> None:
    (alone,), together = on_one_device.seen, on_two_devices.seen
    accumulated = len(together[0]["batches"]) // len(alone["batches"])
    for step, batch in alone["batches"].items():
        numbers = range(step * accumulated, (step + 1) * accumulated)
        parts = [process["batches"][number] for number in numbers for process in together]
        assert torch.equal(torch.cat(parts), batch), "both use the same images in each step"
    for process in together:
        assert process["steps"] == alone["steps"] == 2 * STEPS_AN_EPOCH
        assert process["threads"] == alone["threads"] == 1
    assert same(together[0]["weights"], together[1]["weights"])
    assert same(together[0]["optimizer"], together[1]["optimizer"])
    torch.testing.assert_close(on_two_devices.model, on_one_device.model, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(metrics_of(on_two_devices), metrics_of(on_one_device), rtol=1e-4, atol=1e-5)


def metrics_of(fitted: Fitted) -> Tensor:
    """The metrics of each epoch."""
    return torch.tensor([list(map(float, row.split(b","))) for row in fitted.history.splitlines()[1:]])


def test_every_validation_image_is_seen_once_by_one_device(on_two_devices: Fitted, folder: Path) -> None:
    first, second = (process["validated"] for process in on_two_devices.seen)
    assert len(first) == len(second), "the devices wait for each other, so each needs the same number"
    seen = [batch for pair in zip(first, second, strict=True) for batch in pair]
    assert torch.equal(
        torch.cat(seen), torch.from_numpy(np.asarray(read_split("val", folder / "data/prepared").images))
    )


def test_a_nan_loss_on_one_device_stops_all_devices_at_that_step_and_is_reported_once(fit: Fit, folder: Path) -> None:
    process = fit(2, 16, poison="1:13", tracking__loggers=[]).process
    assert process
    assert process.returncode == 2
    (line,) = [line for line in process.stderr.splitlines() if line.startswith("error: ")]
    assert "the training loss is nan in epoch 1, batch 14" in line
    assert not processes_in(folder)
    (note,) = (folder / "data/state").glob("*/diverged.json")
    assert len(json.loads(note.read_text())["train_rows"]) == 2 * 16, "the images of both devices"
    shutil.rmtree(note.parent)
