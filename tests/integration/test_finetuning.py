"""Fine-tuning in real fits: which layers are frozen for how long, and how fast the others learn."""

from collections.abc import Callable
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor, nn

from refit.systems.head import backbone_parameters
from tests.fixtures import Fit, watched_by

EPOCHS = 3
STEPS = 18  # an epoch


class Notes(Callback):
    """The state before each step and after the last, each group's learning rate, and whether each norm trains."""

    def __init__(self) -> None:
        self.states: list[dict[str, Tensor]] = []
        self.rates: list[list[float]] = []
        self.training: list[list[bool]] = []

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: object) -> None:
        self.states.append(_copied(pl_module))
        self.rates.append([group["lr"] for group in trainer.optimizers[0].param_groups])
        self.training.append([layer.training for layer in pl_module.modules() if isinstance(layer, nn.BatchNorm2d)])

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.states.append(_copied(pl_module))
        self.backbone = {
            name for name, weight in pl_module.named_parameters() if weight in backbone_parameters(pl_module)
        }


def _copied(system: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in system.state_dict().items()}


@pytest.fixture
def noted(fitted: Fit) -> Callable[..., Notes]:
    def run(**keys: Any) -> Notes:
        notes = Notes()
        with watched_by(notes):
            fitted(fit__max_epochs=EPOCHS, **keys)
        return notes

    return run


def changed_in(notes: Notes, first: int, last: int) -> set[str]:
    return {name for name in notes.states[0] if not torch.equal(notes.states[first][name], notes.states[last][name])}


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_only_the_head_changes_while_frozen_and_everything_afterwards(name: str, noted: Any) -> None:
    """Frozen layers keep their weights and batch norm statistics, in spite of weight decay, states and validations."""
    notes = noted(
        fit__freeze_epochs=2, optimizer__name=name, optimizer__weight_decay=0.5, optimizer__schedule="constant"
    )
    heads = {"network.1.11.weight", "network.1.11.bias"}
    assert changed_in(notes, 0, 2 * STEPS) == heads
    assert changed_in(notes, 2 * STEPS, 3 * STEPS) >= notes.backbone | heads
    statistics = {key for key in notes.states[0] if "running" in key}
    assert len(statistics) == 12
    assert changed_in(notes, 2 * STEPS, 3 * STEPS) >= statistics
    assert not any(any(modes) for modes in notes.training[: 2 * STEPS])
    assert all(all(modes) for modes in notes.training[2 * STEPS :])


def test_an_autoencoder_s_decoder_is_not_frozen(noted: Any) -> None:
    notes = noted(fit__freeze_epochs=EPOCHS - 1, model__system="autoencoder")
    changed = changed_in(notes, 0, (EPOCHS - 1) * STEPS)
    assert not changed & notes.backbone
    assert {name for name in notes.states[0] if name.startswith("decoder") and name.endswith("weight")} <= changed


@pytest.mark.parametrize("schedule", ["one_cycle", "triangular", "cosine", "constant"])
def test_the_backbone_s_rate_is_a_fixed_fraction_of_the_head_s_in_every_schedule(schedule: str, noted: Any) -> None:
    notes = noted(optimizer__backbone_learning_rate=0.1, optimizer__schedule=schedule)
    assert len(notes.rates[0]) == 4
    for head_weights, head_others, weights, others in notes.rates:
        assert head_weights == head_others
        assert weights == others == pytest.approx(0.1 * head_weights, abs=1e-7)
    assert max(rates[0] for rates in notes.rates) == pytest.approx(0.01, rel=0.02)


def test_a_backbone_with_a_tiny_rate_hardly_learns_and_the_head_does(noted: Any) -> None:
    slow = noted(optimizer__backbone_learning_rate=1e-6, optimizer__weight_decay=0.0)
    moved = {
        name: (slow.states[-1][name] - slow.states[0][name]).abs().max()
        for name in [*slow.backbone, "network.1.11.weight"]
    }
    assert moved.pop("network.1.11.weight") > 0.01
    assert max(moved.values()) < 1e-5


def test_weight_decay_applies_to_weights_of_both_parts_but_not_to_norms_and_biases(
    noted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups: list[dict[str, Any]] = []

    class Groups(Notes):
        def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            groups.extend(trainer.optimizers[0].param_groups)

    monkeypatch.setattr("tests.integration.test_finetuning.Notes", Groups)
    noted(optimizer__backbone_learning_rate=0.1, optimizer__weight_decay=0.3)
    assert [group["weight_decay"] for group in groups] == [0.3, 0.0, 0.3, 0.0]
    assert [{weight.ndim > 1 for weight in group["params"]} for group in groups] == [{True}, {False}] * 2
    assert [len(group["params"]) for group in groups[:2]] == [1, 1]
