"""A fit that was cut off goes on where it was, to the same bits."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor

from refit.training.trainer import make_trainer
from stages import fit
from tests.unit.conftest import Fit

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType"),  # MLflow's, of a function of its own
]

STEPS_AN_EPOCH = 18


class PowerCutError(Exception):
    pass


class Witness(Callback):
    """Draws from every generator at each step, as a layer of the user's own might; sees what the fit ends with; and
    may cut it off."""

    def __init__(self, cut_off_in: int | None) -> None:
        self.cut_off_in = cut_off_in
        self.drawn: dict[int, tuple[float, ...]] = {}
        self.end: dict[str, Any] = {}

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        number = trainer.current_epoch * int(trainer.num_training_batches) + batch_idx
        if number == self.cut_off_in:
            raise PowerCutError
        self.drawn[number] = (torch.rand(()).item(), np.random.rand(), random.random(), batch.labels.sum().item())

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.end = {
            "weights": pl_module.state_dict(),
            "optimizer": trainer.optimizers[0].state_dict(),
            "schedulers": [config.scheduler.state_dict() for config in trainer.lr_scheduler_configs],
            "step": trainer.global_step,
        }


@pytest.fixture
def witnessed(fitted: Fit, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Witness, dict[str, Tensor]]]:
    """A fit that saves its state at each step, unless told otherwise; cut off in a batch, or to its end."""

    def run(cut_off_in: int | None = None, **keys: object) -> tuple[Witness, dict[str, Tensor]]:
        witness = Witness(cut_off_in)
        monkeypatch.setattr(
            fit, "make_trainer",
            lambda *args, callbacks, **options: make_trainer(*args, callbacks=[witness, *callbacks], **options),
        )  # fmt: skip
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


def steps_kept() -> list[int]:
    return [int(path.stem.removeprefix("step-")) for path in sorted(Path("data/state").glob("*/step-*.ckpt"))]


KINDS: dict[str, dict[str, object]] = {
    "plain": {},
    "average": {"fit.ema_decay": 0.9},
    "augmented on a thread": {"augment.shift": 2, "augment.cutout": 2},
    "early stopping": {"fit.patience": 1, "fit.max_epochs": 4, "optimizer.learning_rate": 0.1},
    "sgd": {"optimizer.name": "sgd", "optimizer.schedule": "cosine"},
    "constant": {"optimizer.schedule": "constant"},
    "bfloat16": {"trainer.precision": "bf16-mixed"},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cuts", [[5], [STEPS_AN_EPOCH], [STEPS_AN_EPOCH + 1, 30]], ids=str)
def test_a_fit_that_was_cut_off_ends_with_the_same_bits(kind: str, cuts: list[int], witnessed: Any) -> None:
    keys = {key.replace(".", "__"): value for key, value in ({"model.dropout": 0.2} | KINDS[kind]).items()}
    whole, weights = witnessed(**keys)
    history = Path("data/evaluation/history.csv").read_bytes()
    told = json.loads(Path("data/evaluation/fit.json").read_text())
    for cut in cuts:
        with pytest.raises(PowerCutError):
            witnessed(cut_off_in=cut, **keys)
        assert steps_kept(), "the cut came before the first state"
    resumed, resumed_weights = witnessed(**keys)
    first = min(resumed.drawn)
    assert 0 < first <= cuts[-1]
    assert resumed.drawn == {number: drawn for number, drawn in whole.drawn.items() if number >= first}
    assert same(resumed.end, whole.end)
    assert same(resumed_weights, weights)
    assert Path("data/evaluation/history.csv").read_bytes() == history
    assert json.loads(Path("data/evaluation/fit.json").read_text()) == told
    assert not list(Path("data/state").iterdir())


def test_a_fit_that_was_cut_off_in_an_accumulation_goes_on_from_the_last_step(witnessed: Any) -> None:
    whole, weights = witnessed(micro_batch=16)
    with pytest.raises(PowerCutError):
        witnessed(micro_batch=16, cut_off_in=4 * 3 + 2)
    resumed, resumed_weights = witnessed(micro_batch=16)
    assert min(resumed.drawn) in (4, 8, 12)
    assert same(resumed.end, whole.end)
    assert same(resumed_weights, weights)
