"""An interrupted fit resumes, with bitwise identical results."""

import csv
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from mlflow import MlflowClient
from pytorch_lightning.callbacks import Callback
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from refit.artifacts.checked import stage_params
from refit.runtime.errors import UserError
from refit.runtime.fingerprint import PROJECT
from refit.training import resume
from tests.fixtures import Fit, store_encoded, watched_by

STEPS_AN_EPOCH = 18


class PowerCutError(Exception):
    pass


class Witness(Callback):
    """Uses every random generator at each step, as a user's layer might; records the end of the fit; can interrupt
    the fit."""

    def __init__(self, cut_off_in: int | None) -> None:
        self.cut_off_in = cut_off_in
        self.drawn: dict[int, tuple[float, ...]] = {}
        self.end: dict[str, Any] = {}

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        number = trainer.current_epoch * int(trainer.num_training_batches) + batch_idx
        if number == self.cut_off_in:
            raise PowerCutError(self)
        if batch_idx + 1 == trainer.num_training_batches or number + 1 == self.cut_off_in:
            time.sleep(0.1)  # the previous state is written by now, so this step's state would be too
        self.drawn[number] = (torch.rand(()).item(), np.random.rand(), random.random(), batch.labels.sum().item())

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.end = {
            "weights": pl_module.state_dict(),
            "optimizer": trainer.optimizers[0].state_dict(),
            "schedulers": [config.scheduler.state_dict() for config in trainer.lr_scheduler_configs],
            "step": trainer.global_step,
        }


@pytest.fixture
def witnessed(fitted: Fit) -> Callable[..., tuple[Witness, dict[str, Tensor]]]:
    """A fit that saves its state at each step by default; it runs to its end, or is interrupted in a batch."""

    def run(cut_off_in: int | None = None, **keys: object) -> tuple[Witness, dict[str, Tensor]]:
        witness = Witness(cut_off_in)
        with watched_by(witness):
            return witness, fitted(**{"fit__save_state_every": 1e-9} | keys)

    return run


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def state_files() -> list[Path]:
    return sorted(Path("data/state").glob("*/step-*.ckpt"))


def step_of(path: Path) -> int:
    return int(path.stem.removeprefix("step-"))


KINDS: dict[str, dict[str, object]] = {
    "plain": {},
    "ema, sgd": {"fit.averaging": "ema", "optimizer.name": "sgd", "optimizer.schedule": "cosine"},
    "swa": {"fit.averaging": "swa", "fit.swa_start": 0.0},
    "swa without batch norm": {"fit.averaging": "swa", "fit.swa_start": 0.0, "model.network": "mlp"},
    "frozen at first": {"fit.freeze_epochs": 1, "optimizer.backbone_learning_rate": 0.1},
    "frozen at first, sgd, plateau": {
        "fit.freeze_epochs": 1,
        "optimizer.name": "sgd",
        "optimizer.schedule": "plateau",
        "optimizer.plateau_patience": 0,
        "fit.max_epochs": 4,
    },
    "frozen at first, constant": {"fit.freeze_epochs": 1, "optimizer.schedule": "constant"},
    "augmented in a thread, constant": {"augment.shift": 2, "augment.cutout": 2, "optimizer.schedule": "constant"},
    "early stopping": {"fit.patience": 1, "fit.max_epochs": 4},
    "validations within an epoch": {"debug.val_check_interval": 6},
    "bfloat16, augment policy": {
        "trainer.precision": "bf16-mixed", "augment.policy": "trivialaugment", "augment.color_jitter": 0.4,
    },
    "muon, mixed images": {
        "optimizer.name": "muon", "optimizer.schedule": "cosine_warm_up",
        "augment.mixup": 0.4, "augment.cutmix": 1.0, "loss.class_weights": "balanced",
    },
    "plateau": {"optimizer.schedule": "plateau", "optimizer.plateau_patience": 0, "fit.max_epochs": 4},
}  # fmt: skip


CUTS = (5, STEPS_AN_EPOCH, STEPS_AN_EPOCH + 1, 30)
"""The batches in which a fit is interrupted, one after the other: within the first epoch and at its end, then at the
start of the second epoch and within it."""
CUTS_OF_KIND: dict[str, tuple[int, ...]] = {
    "plain": CUTS,
    "frozen at first": CUTS,
    "validations within an epoch": (8, 30),
    # Their state also changes at the end of an epoch.
    **dict.fromkeys(
        (
            "swa", "swa without batch norm", "frozen at first, sgd, plateau", "frozen at first, constant",
            "early stopping", "plateau",
        ),
        (STEPS_AN_EPOCH, 30),
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_an_interrupted_fit_resumes_to_bitwise_identical_weights(kind: str, witnessed: Any) -> None:
    keys = {key.replace(".", "__"): value for key, value in ({"model.dropout": 0.2} | KINDS[kind]).items()}
    whole, weights = witnessed(**keys)
    outputs = [Path("data/evaluation", name).read_bytes() for name in ("history.csv", "fit.json")]
    for cut in CUTS_OF_KIND.get(kind, (30,)):
        with pytest.raises(PowerCutError) as cut_off:
            witnessed(cut_off_in=cut, **keys)
        assert state_files(), "no state was saved before the interruption"
        assert whole.drawn.items() >= cut_off.value.args[0].drawn.items()
    resumed, resumed_weights = witnessed(**keys)
    first = min(resumed.drawn)
    assert STEPS_AN_EPOCH < first <= 30
    assert resumed.drawn == {number: drawn for number, drawn in whole.drawn.items() if number >= first}
    assert same(resumed.end, whole.end)
    assert same(resumed_weights, weights)
    assert [Path("data/evaluation", name).read_bytes() for name in ("history.csv", "fit.json")] == outputs
    assert not list(Path("data/state").iterdir())


def test_encoded_images_give_the_bits_that_pixels_give_also_if_the_fit_is_interrupted(witnessed: Any) -> None:
    keys = {"augment__shift": 2, "augment__mixup": 0.4, "fit__averaging": "swa", "fit__swa_start": 0.0}
    whole, weights = witnessed(**keys)
    store_encoded(Path("data/prepared"))
    with pytest.raises(PowerCutError):
        witnessed(cut_off_in=30, **keys)
    resumed, resumed_weights = witnessed(**keys)
    assert STEPS_AN_EPOCH < min(resumed.drawn) <= 30
    assert same(resumed.end, whole.end)
    assert same(resumed_weights, weights)


@pytest.mark.parametrize(
    "keys", [{"debug__limit_train_batches": 1}, {"micro_batch": 16, "debug__limit_train_batches": 4}], ids=str
)
def test_a_signal_ends_a_fit_of_one_step_per_epoch_although_no_state_can_be_saved(
    keys: dict[str, Any], fitted: Fit, capsys: pytest.CaptureFixture[str]
) -> None:
    begun: list[int] = []

    class Interrupts(Callback):
        def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            begun.append(trainer.current_epoch)
            if trainer.current_epoch == 2:
                signal.raise_signal(signal.SIGINT)

    with watched_by(Interrupts()), pytest.raises(SystemExit):
        fitted(fit__max_epochs=6, **keys)
    assert begun == [0, 1, 2]
    assert "SIGINT: ending after this epoch; it has one step, so no state can be saved" in capsys.readouterr().err
    assert not Path("data/model").exists()


def test_a_best_epoch_before_the_interruption_is_kept(witnessed: Any) -> None:
    keys = {"learning_rate": 0.5, "optimizer__schedule": "constant", "fit__max_epochs": 3}
    _, weights = witnessed(**keys)
    told = json.loads(Path("data/evaluation/fit.json").read_text())
    assert told["epoch"] < 3, "the best epoch is the last, so the test proves nothing"
    with pytest.raises(PowerCutError):
        witnessed(cut_off_in=3 * STEPS_AN_EPOCH - 2, **keys)
    resumed, resumed_weights = witnessed(**keys)
    assert min(resumed.drawn) > 2 * STEPS_AN_EPOCH
    assert same(resumed_weights, weights)
    assert json.loads(Path("data/evaluation/fit.json").read_text()) == told


@pytest.mark.filterwarnings("ignore:.*LeafSpec")
@pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType")  # from a function in MLflow
@pytest.mark.usefixtures("fitted_in_mlflow")
def test_the_mlflow_run_of_an_interrupted_fit_has_no_gap_and_no_duplicate(witnessed: Any) -> None:
    keys = {"fit__max_epochs": 4, "tracking__loggers": ["mlflow"]}
    for cut in (STEPS_AN_EPOCH + 3, 3 * STEPS_AN_EPOCH + 1):
        with pytest.raises(PowerCutError):
            witnessed(cut_off_in=cut, fit__save_state_every=1000.0, **keys)
    witnessed(**keys)
    client = MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
    (run,) = client.search_runs(["1"])
    assert run.info.status == "FINISHED"
    assert run.outputs
    assert len(run.outputs.model_outputs) == 1
    curve = client.get_metric_history(run.info.run_id, "val_loss")
    assert [metric.step for metric in curve] == [epoch * STEPS_AN_EPOCH - 1 for epoch in range(1, 5)]
    rows = Path("data/evaluation/history.csv").read_text().splitlines()
    column = rows[0].split(",").index("val_loss")
    assert [metric.value for metric in curve] == [float(row.split(",")[column]) for row in rows[1:]]


@pytest.mark.parametrize("cuts", [[5], [STEPS_AN_EPOCH + 3, 3 * STEPS_AN_EPOCH + 1]], ids=str)
def test_the_logs_of_an_interrupted_fit_have_no_gap_and_no_duplicate(
    cuts: list[int], witnessed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the last interruption, the logs contain an epoch that the last state does not."""
    monkeypatch.setattr(resume, "FIRST_GUESS", 0.0)  # saves a state at the end of the first epoch
    keys = {"fit__max_epochs": 4, "fit__save_state_every": 1000.0, "tracking__loggers": ["csv", "tensorboard"]}
    for cut in cuts:
        with pytest.raises(PowerCutError):
            witnessed(cut_off_in=cut, **keys)
    resumed, _ = witnessed(**keys)
    if len(cuts) > 1:
        assert 0 < min(resumed.drawn) < 3 * STEPS_AN_EPOCH - 1
    rows = list(csv.DictReader(Path("data/evaluation/history.csv").read_text().splitlines()))
    steps = [epoch * STEPS_AN_EPOCH - 1 for epoch in range(1, 5)]
    (folder,) = Path("data/logs").iterdir()
    told = list(csv.DictReader((folder / "csv/metrics.csv").read_text().splitlines()))
    assert [int(row["step"]) for row in told] == steps
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    for name in ("train_loss", "val_loss", "val_accuracy", "learning_rate"):
        curve = [float(row[name]) for row in rows]
        assert [float(row[name]) for row in told] == curve
        assert [scalar.step for scalar in events.Scalars(name)] == steps
        assert [scalar.value for scalar in events.Scalars(name)] == pytest.approx(curve, rel=1e-6)
    assert [scalar.step for scalar in events.Scalars("epoch_seconds")] == steps
    assert all(row["epoch_seconds"] for row in told)
    assert len(events.Images("first_batch")) == 1


def test_a_fit_resumes_with_other_loggers(witnessed: Any) -> None:
    whole, weights = witnessed()
    with pytest.raises(PowerCutError):
        witnessed(cut_off_in=12, tracking__loggers=["csv"])
    resumed, resumed_weights = witnessed(tracking__loggers=["tensorboard"])
    assert min(resumed.drawn) > 0
    assert same((resumed.end, resumed_weights), (whole.end, weights))


def test_a_fit_interrupted_during_accumulation_resumes_from_the_last_step(witnessed: Any) -> None:
    whole, weights = witnessed(micro_batch=16)
    with pytest.raises(PowerCutError):
        witnessed(micro_batch=16, cut_off_in=4 * 3 + 2)
    resumed, resumed_weights = witnessed(micro_batch=16)
    assert min(resumed.drawn) in (4, 8, 12)
    assert same(resumed.end, whole.end)
    assert same(resumed_weights, weights)


READ_BOTH = """
import importlib.util, json, sys, torch
assert importlib.util.find_spec("refit") is None
state = torch.load(sys.argv[1], weights_only=True)["hyper_parameters"]
print(json.dumps([state, json.load(open(sys.argv[2]))]))
"""


def test_resolved_parameters_of_a_state_and_a_model_can_be_read_without_the_project(
    witnessed: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The state is loaded with weights_only, so it may contain only plain values."""
    with pytest.raises(PowerCutError):
        witnessed(cut_off_in=12, micro_batch=16, learning_rate=0.02)
    state = state_files()[-1].rename("state.ckpt").resolve()
    witnessed(micro_batch=16, learning_rate=0.02)
    done = subprocess.run(
        [sys.executable, "-I", "-c", READ_BOTH, state, Path("data/model/params.json").resolve()],
        cwd=tmp_path_factory.mktemp("elsewhere"), capture_output=True, text=True, check=True,
    )  # fmt: skip
    of_state, of_model = json.loads(done.stdout)
    assert of_state == of_model
    params = stage_params("fit")
    resolved = params.model_dump(exclude={"fit": {"save_state_every"}})
    resolved["optimizer"]["learning_rate"] = 0.02
    resolved |= {"seed": 0, "batch": {"size": 64, "micro_batch": 16, "accumulate_grad_batches": 4}}
    assert of_state == resolved


@pytest.fixture
def two_states(witnessed: Any) -> Any:
    """A fit whose two newest states are saved; a call resumes it."""
    with pytest.raises(PowerCutError):
        witnessed(cut_off_in=12)
    assert len(state_files()) == 2
    return witnessed


def spoil(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def swap_for_a_pickle(path: Path) -> None:
    """Like an attacker: also replace the sha256 file."""
    torch.save({"state_dict": Bomb()}, path)
    path.with_name(f"{path.name}.sha256").write_text(hashlib.sha256(path.read_bytes()).hexdigest())


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("exploded"),)


@pytest.mark.parametrize(
    ("harm", "fault"),
    [
        (spoil, "it does not match its .sha256 file"),
        (lambda path: path.write_bytes(path.read_bytes()[:1000]), "it does not match its .sha256 file"),
        (lambda path: path.with_name(f"{path.name}.sha256").unlink(), "its .sha256 file is missing"),
        (swap_for_a_pickle, "it is not a state: "),
    ],
    ids=["flipped bit", "truncated", "no sha256", "pickle"],
)
def test_a_damaged_state_is_skipped_and_the_previous_one_is_used(
    harm: Callable[[Path], None], fault: str, two_states: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    older, newest = state_files()
    harm(newest)
    resumed, weights = two_states()
    assert f"warning: data/state/{newest.parent.name}/{newest.name} is skipped: {fault}" in capsys.readouterr().err
    assert min(resumed.drawn) == step_of(older)
    assert not Path("exploded").exists()
    whole, whole_weights = two_states()
    assert min(whole.drawn) == 0
    assert same((resumed.end, weights), (whole.end, whole_weights))


def test_the_state_of_another_fit_is_not_used_and_the_difference_is_reported(
    two_states: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    left = state_files()
    other, _ = two_states(optimizer__weight_decay=0.1)
    assert min(other.drawn) == 0
    assert f"the state in {left[0].parent} is of another fit, which differs in params.optimizer.weight_decay" in (
        capsys.readouterr().out
    )
    assert state_files() == left
    resumed, _ = two_states(fit__save_state_every=5.0)  # changes no result
    assert min(resumed.drawn) > 0


def test_the_state_of_a_fit_with_other_initial_weights_is_not_used(
    two_states: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """Although the weights file has the same name."""
    weights = Path("data/weights/model.safetensors")
    weights.parent.mkdir()
    keys = {"model__weights": str(weights), "fit__max_epochs": 1}
    for seed in (1, 2):
        two_states(seed=seed, fit__max_epochs=1)
        shutil.copy("data/model/model.safetensors", weights)
        with pytest.raises(PowerCutError):
            two_states(cut_off_in=12, **keys)
    assert "is of another fit, which differs in weights" in capsys.readouterr().out
    resumed, _ = two_states(**keys)
    assert min(resumed.drawn) > 0


def test_an_unreadable_state_of_another_fit_does_not_stop_a_fit(two_states: Any) -> None:
    other = state_files()[0].parent.with_name("0" * 16)
    shutil.copytree(state_files()[0].parent, other)
    (other / "inputs.json").write_bytes(b"")
    changed, _ = two_states(optimizer__weight_decay=0.1)
    assert min(changed.drawn) == 0


_OWN_NETWORK = """
import os
import torch

class Mine(torch.nn.Module):
    steps = 0

    def __init__(self, shape, outputs):
        super().__init__()
        self.layer = torch.nn.Linear(shape[0] * shape[1] * shape[2], outputs)

    def forward(self, images):
        Mine.steps += 1
        if Mine.steps == 30:
            CUT
        return SCALE * self.layer(images.flatten(1))
"""


def test_a_fit_with_a_user_s_network_resumes_if_only_a_comment_was_edited(
    prepared_workspace: Path, values: Any, fitted: Fit
) -> None:
    fitted(fit__max_epochs=1)  # creates the outputs of the earlier stages
    code = prepared_workspace / "code"
    for package in ("refit", "stages"):
        shutil.copytree(PROJECT / package, code / package, ignore=shutil.ignore_patterns("__pycache__"))
    own = {"model.network": "refit.systems.mine.Mine", "model.width": None, "model.dropout": None}
    quick = {"fit.save_state_every": 1e-6, "tracking.loggers": []}
    Path("params.yaml").write_text(json.dumps(values(own | quick)))  # JSON is YAML

    def fit_with(cut: str, scale: float) -> "subprocess.CompletedProcess[str]":
        source = _OWN_NETWORK.replace("CUT", cut).replace("SCALE", str(scale))
        (code / "refit/systems/mine.py").write_text(source)
        command = [sys.executable, "-m", "stages.fit"]
        environment = {**os.environ, "PYTHONPATH": str(code)}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    cut_off = fit_with("os._exit(9)", 1.0)
    assert cut_off.returncode == 9, cut_off.stderr
    edited = fit_with("pass", 2.0)
    assert edited.returncode == 0, edited.stderr
    assert "is of another fit, which differs in code.refit/systems/mine.py" in edited.stdout
    assert "resuming from step" not in edited.stdout
    mended = fit_with("os._exit(9)  # a comment", 1.0)
    assert "resuming from step" in mended.stdout


def test_a_signal_in_the_last_validation_warns_that_no_state_is_saved(
    fitted: Fit, capsys: pytest.CaptureFixture[str]
) -> None:
    class Interrupts(Callback):
        def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            signal.raise_signal(signal.SIGINT)

    with watched_by(Interrupts()), pytest.raises(SystemExit):
        fitted(fit__max_epochs=1, fit__save_state_every=1000.0)
    assert "the last steps of a fit cannot be saved: the next run will start over" in capsys.readouterr().err
    assert not state_files()
    assert not Path("data/model").exists()


def test_a_full_disk_fails_the_fit_with_a_one_line_error_and_keeps_the_previous_state(witnessed: Any) -> None:
    """Each later state is written to a device without free space."""
    with pytest.raises(PowerCutError):
        witnessed(cut_off_in=4)
    before = {path: path.read_bytes() for path in state_files()}
    newest = max(before)
    full = [newest.with_name(f".step-{step_of(newest) + further:09}.ckpt.partial") for further in range(1, 11)]
    for file in full:
        file.symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"the state of the fit could not be written .*No space left on device"):
        witnessed()
    assert {path: path.read_bytes() for path in state_files()} == before
    for file in full:
        file.unlink()
    resumed, _ = witnessed()
    assert min(resumed.drawn) == max(map(step_of, before))
