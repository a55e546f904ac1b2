"""Fine-tuning in real fits: which layers are frozen for how long, and how fast the others learn."""

import json
import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from refit.artifacts.checked import stage_params
from refit.artifacts.choices import BatchChoice, LearningRateChoice, read_learning_rate
from refit.artifacts.files import read_numbers, write_json
from refit.artifacts.paths import BATCH, FROZEN_LEARNING_RATE_CURVE, HISTORY, LEARNING_RATE, LEARNING_RATE_CURVE, MODEL
from refit.systems.classifier import Classifier
from refit.systems.head import backbone_parameters
from refit.training import tuning
from stages import find_lr, fit
from tests.fixtures import Changed, Fit, Values, watched_by

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
            fitted(**{"fit__max_epochs": EPOCHS} | keys)
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


@pytest.mark.parametrize("schedule", ["one_cycle", "triangular", "cosine", "cosine_warm_up", "constant", "plateau"])
def test_the_frozen_epochs_have_a_constant_rate_and_the_schedule_has_the_epochs_after_them(
    schedule: str, noted: Any
) -> None:
    keys = {"optimizer__schedule": schedule, "optimizer__backbone_learning_rate": 0.5}
    rates = [group[0] for group in noted(fit__freeze_epochs=1, **keys).rates]
    assert set(rates[:STEPS]) == {0.01}
    without = [group[0] for group in noted(**keys | {"fit__max_epochs": EPOCHS - 1}).rates]
    assert rates[STEPS:] == without


def test_the_frozen_epochs_have_the_rate_that_was_chosen_for_them(noted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = LearningRateChoice(0.01, "find_lr", 0.01, frozen=LearningRateChoice(0.05, "find_lr", 0.05))
    monkeypatch.setattr("stages.fit.read_learning_rate", lambda: chosen)
    rates = noted(fit__freeze_epochs=1, optimizer__backbone_learning_rate=0.1, optimizer__schedule="constant").rates
    assert rates[0] == pytest.approx([0.05, 0.05, 0.005, 0.005])
    assert rates[STEPS] == pytest.approx([0.01, 0.01, 0.001, 0.001])


def test_a_fit_may_be_frozen_to_its_end(noted: Any) -> None:
    Path("data/weights").mkdir()
    planted = "data/weights/planted.safetensors"
    noted()
    save_file(load_file(MODEL / "model.safetensors"), planted)
    notes = noted(model__weights=planted, fit__freeze_epochs=EPOCHS)
    assert not changed_in(notes, 0, EPOCHS * STEPS) & notes.backbone
    assert {rates[0] for rates in notes.rates} == {0.01}


@pytest.mark.parametrize("epochs", [0, 1])
def test_the_first_layers_never_learn_and_the_others_do_after_the_frozen_epochs(epochs: int, noted: Any) -> None:
    Path("data/weights").mkdir()
    planted = "data/weights/planted.safetensors"
    noted()
    save_file(load_file(MODEL / "model.safetensors"), planted)
    notes = noted(model__weights=planted, fit__freeze_share=0.5, fit__freeze_epochs=epochs, fit__averaging="ema")
    names = list(notes.states[0])  # in the order of the layers
    changed = changed_in(notes, epochs * STEPS, -1)
    first_changed = next(number for number, name in enumerate(names) if name in changed)
    assert {name for name in names if name.startswith("network.1.")} - set(names[:first_changed]) == changed
    assert changed & notes.backbone
    assert len([name for name in names[:first_changed] if "running" in name]) == 6
    kept = load_file(MODEL / "model.safetensors")
    for name, value in load_file(planted).items():
        assert torch.equal(value, kept[name]) == (name not in changed), name


class Rates(Callback):
    """What each step of the range tests was made with; the Tuner removes callbacks, so it watches AdamW."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.rates: list[list[float]] = []
        self.gradients: list[list[bool]] = []
        step = torch.optim.AdamW.step

        def watched(optimizer: torch.optim.AdamW, *args: Any, **keys: Any) -> Any:
            result = step(optimizer, *args, **keys)
            groups = optimizer.param_groups
            self.rates.append([group["lr"] for group in groups])
            self.gradients.append([group["params"][0].grad is not None for group in groups])
            return result

        patch.setattr(torch.optim.AdamW, "step", watched)


def modes_of_norms(patch: pytest.MonkeyPatch) -> list[set[bool]]:
    """Whether batch norm is in training mode, at each training step."""
    modes: list[set[bool]] = []
    step = Classifier.training_step

    def watched(system: Classifier, *args: Any) -> Tensor:
        modes.append({layer.training for layer in system.modules() if isinstance(layer, nn.BatchNorm2d)})
        return step(system, *args)

    patch.setattr(Classifier, "training_step", watched)
    return modes


def run_find_lr(values: Values, **keys: Any) -> None:
    """The stage `find_lr` with these keys changed."""
    write_json(BATCH, asdict(BatchChoice(64, 64, 1, "params", "cpu", None, [])))
    quick: dict[str, Any] = {"model.network": "cnn", "model.width": 4, "tracking.loggers": []}
    Path("params.yaml").write_text(json.dumps(values(quick | {key.replace("__", "."): v for key, v in keys.items()})))
    find_lr.main(stage_params("find_lr"))


def test_the_range_test_keeps_the_ratio_of_the_backbone_s_rate_to_the_head_s(
    prepared_workspace: Path, values: Values, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = {"optimizer__backbone_learning_rate": 0.1}
    seen = Rates(monkeypatch)
    run_find_lr(values, **keys)
    assert len(seen.rates) > 50
    for head_weights, head_others, weights, others in seen.rates:
        assert head_weights == head_others
        assert weights == others == pytest.approx(0.1 * head_weights)
    tested = [point["learning_rate"] for point in read_numbers(LEARNING_RATE_CURVE)]
    assert tested == pytest.approx([rates[0] for rates in seen.rates[: len(tested)]])
    assert read_numbers(FROZEN_LEARNING_RATE_CURVE) == []


def test_frozen_epochs_get_a_range_test_of_their_own_in_which_the_backbone_is_frozen(
    prepared_workspace: Path, values: Values, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = {"fit__freeze_epochs": 1}
    seen = Rates(monkeypatch)
    modes = modes_of_norms(monkeypatch)
    trained: list[dict[str, Tensor]] = []
    restored = tuning.find_learning_rate

    def watched(system: pl.LightningModule, *args: Any) -> Any:
        trained.append(_copied(system))
        result = restored(system, *args)
        trained.append(_copied(system))
        return result

    monkeypatch.setattr(tuning, "find_learning_rate", watched)
    run_find_lr(values, **keys)
    choice = read_learning_rate()
    assert choice.frozen is not None
    assert (choice.chosen_by, choice.frozen.chosen_by) == ("find_lr", "find_lr")
    assert choice.learning_rate != choice.frozen.learning_rate
    frozen_steps = next(number for number, grads in enumerate(seen.gradients) if all(grads))
    assert all(grads == [True, True, False, False] for grads in seen.gradients[:frozen_steps])
    assert all(all(grads) for grads in seen.gradients[frozen_steps:])
    assert modes == [{False}] * frozen_steps + [{True}] * (len(modes) - frozen_steps)
    first, after_first, before_second, _ = trained
    assert all(torch.equal(value, first[name]) for name, value in after_first.items())
    learned = {name for name, value in before_second.items() if not torch.equal(value, first[name])}
    assert learned == {"network.1.11.weight", "network.1.11.bias"}, "the head alone learns between the two tests"
    assert len(read_numbers(FROZEN_LEARNING_RATE_CURVE)) > 50


def test_a_new_head_on_a_good_backbone_learns_in_the_frozen_epoch_at_first_try(
    prepared_workspace: Path, values: Values, changed: Changed, fitted: Fit
) -> None:
    """A network is trained, its backbone planted, and the rest is left to the defaults."""
    fitted(fit__max_epochs=6, model__width=16)
    planted = {name: value for name, value in load_file(MODEL / "model.safetensors").items() if ".11." not in name}
    Path("data/weights").mkdir()
    save_file(planted, "data/weights/planted.safetensors")
    keys: dict[str, Any] = {
        "model__width": 16, "model__weights": "data/weights/planted.safetensors", "fit__freeze_epochs": 1,
        "fit__max_epochs": 3,
    }  # fmt: skip
    run_find_lr(values, **keys)
    losses = Losses()
    with watched_by(losses):
        fit.main(changed({"model.network": "cnn", **{key.replace("__", "."): value for key, value in keys.items()}}))
    assert losses.seen[0] == pytest.approx(math.log(10), abs=1e-6)
    first, *_, last = read_numbers(HISTORY)
    assert first["val_accuracy"] > 0.8
    assert first["train_loss"] < 1.2
    assert last["val_accuracy"] >= first["val_accuracy"] - 0.02


class Losses(Callback):
    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        self.seen.append(float(loss.detach()))


def test_a_number_is_the_rate_of_the_frozen_epochs_too(prepared_workspace: Path, values: Values) -> None:
    run_find_lr(values, fit__freeze_epochs=1, optimizer__learning_rate=0.02)
    assert read_learning_rate() == LearningRateChoice(0.02, "params", None)
    assert json.loads(LEARNING_RATE.read_text())["frozen"] is None
