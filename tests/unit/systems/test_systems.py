"""The autoencoder, and what a user's own class is given."""

import csv
import json
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.demos.boring_classes import BoringModel
from torch import nn

from refit.artifacts.prepared import read_info, read_split
from refit.batches.datamodule import PreparedData
from refit.inference.predictor import TestAnswers
from refit.params import Params, load_params
from refit.runtime.errors import UserError
from refit.systems.autoencoder import Autoencoder, Neighbours
from refit.systems.build import build_system, check_model
from refit.systems.user_code import check_arguments, construct, user_class
from refit.training.callbacks import Best, History
from refit.training.trainer import make_trainer
from stages import predict
from tests.fixtures import Changed, Fit, run_test

NOT_OURS = {"model.width": None, "model.dropout": None}  # of which only our own networks know


def build(params: Params, digits: Path, learning_rate: float = 0.0) -> Autoencoder:
    torch.manual_seed(0)
    system = build_system(params.model, read_info(digits), params.optimizer, params.loss, learning_rate)
    assert isinstance(system, Autoencoder)
    return system


@pytest.fixture
def autoencoder(changed: Changed, digits: Path) -> Autoencoder:
    return build(changed({"model.system": "autoencoder", "model.network": "cnn"}), digits)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 9, 11), (1, 28, 28)])
def test_what_is_made_again_has_the_shape_of_the_images(shape: tuple[int, int, int]) -> None:
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(shape[0] * shape[1] * shape[2], 5))
    system = Autoencoder(nn.Sequential(_Float(), encoder), shape, 2, [0.5] * shape[0], [0.5] * shape[0]).eval()
    images = torch.randint(0, 256, (4, *shape), dtype=torch.uint8)
    again = system.reconstruct(images)
    assert (again.shape, again.dtype) == (images.shape, torch.uint8)


class _Float(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images / 255


def test_the_mean_image_would_have_an_error_of_one(autoencoder: Autoencoder, digits: Path) -> None:
    images = torch.from_numpy(read_split("train", digits).images)
    errors = autoencoder._errors(images, torch.zeros(images.shape))
    assert errors.shape == (len(images),)
    assert errors.mean().item() == pytest.approx(1, abs=0.01)


def test_it_learns_to_make_images_again_and_its_neighbours_know_their_classes(changed: Changed, digits: Path) -> None:
    params = changed({"model.system": "autoencoder", "model.network": "cnn", "fit.max_epochs": 4})
    system = build(params, digits, 0.003)
    data = PreparedData(params.augment, 64, 64, 0, digits)
    split = read_split("test", digits)
    images, labels = torch.from_numpy(split.images), torch.from_numpy(split.labels)
    with torch.no_grad():
        before = system.eval()._errors(images, system.decoder(system.network(images))).mean()
    make_trainer(params.trainer, max_epochs=4).fit(system.train(), datamodule=data)
    with torch.no_grad():
        answers = system.eval()(images)
    assert answers["reconstruction_error"].mean() < 0.5 * before
    torch.testing.assert_close(answers["probabilities"].sum(dim=1), torch.ones(len(labels)))
    hits = answers["probabilities"].argmax(dim=1) == labels
    assert hits.float().mean() > 0.8
    assert len(system.neighbours.labels) == len(data.train.labels)


def test_the_votes_are_those_of_the_nearest_by_angle_the_nearest_counting_most() -> None:
    neighbours = Neighbours(2, 3)
    neighbours.remember(torch.tensor([[9.0, 0.0], [0.0, 1.0], [0.1, 1.0]]), torch.tensor([0, 1, 2]))
    votes = neighbours(torch.tensor([[1.0, 0.0], [0.0, 5.0]]))
    assert votes.argmax(dim=1).tolist() == [0, 1]
    similarity = nn.functional.normalize(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.1, 1.0]])) @ torch.tensor([0.0, 1.0])
    torch.testing.assert_close(votes[1], (similarity / 0.07).softmax(0))


def test_what_was_remembered_is_read_back_whatever_its_number(autoencoder: Autoencoder, changed: Changed,
                                                              digits: Path) -> None:  # fmt: skip
    autoencoder.neighbours.remember(torch.rand(7, 8), torch.arange(7))
    again = build(changed({"model.system": "autoencoder", "model.network": "cnn"}), digits)
    again.load_state_dict(autoencoder.state_dict())
    assert torch.equal(again.neighbours.embeddings, autoencoder.neighbours.embeddings)
    assert torch.equal(again.neighbours.labels, torch.arange(7))


PLAIN = """
import pytorch_lightning as pl
import torch

class Plain(pl.LightningModule):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, images):
        return self.network(images).softmax(dim=1)

    def training_step(self, batch, index):
        images, labels = batch
        return torch.nn.functional.cross_entropy(self.network(images), labels)

    def validation_step(self, batch, index):
        self.log("val_loss", self.training_step(batch, index))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)
"""


class Own(pl.LightningModule):
    def __init__(self, classes: int, margin: float, scale: float = 1.0) -> None:
        super().__init__()
        self.seen = (classes, margin, float(scale))


def test_a_class_is_given_what_its_signature_names_and_no_more() -> None:
    made = construct(
        Own, {"classes": lambda: 10, "network": lambda: pytest.fail("not asked for")}, {"margin": 0.5}, "k"
    )
    assert made.seen == (10, 0.5, 1.0)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ({}, r"k lacks 'margin', which Own\(classes, margin, scale\) needs; Refit itself provides only classes"),
        ({"margin": 1, "scales": 2}, r"k\.scales: .* has no such argument; did you mean scale\?"),
        ({"margin": 1, "classes": 2}, r"k\.classes: Refit provides classes to .*; remove it"),
    ],
)
def test_arguments_that_do_not_fit_the_signature_are_named(arguments: dict[str, object], line: str) -> None:
    with pytest.raises(UserError, match=line):
        check_arguments(Own, {"classes"}, arguments, "k")


def test_a_module_that_is_no_python_is_named_with_its_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine_broken.py").write_text("import torch\nclass Net(\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"^model\.network = 'mine_broken\.Net': mine_broken\.py, line 2: .+$"):
        user_class("mine_broken.Net", "model.network")


def test_only_a_class_is_suggested_for_what_is_none() -> None:
    with pytest.raises(UserError, match=r"has no class 'Linea'; did you mean Linear\?$"):
        user_class("torch.nn.Linea", "model.network")
    with pytest.raises(UserError, match=r"os has no class 'system'$"):
        user_class("os.system", "model.network")


def test_a_class_of_python_s_own_is_no_system(changed: Changed) -> None:
    with pytest.raises(UserError, match=r"model\.system = 'builtins\.dict' is not a LightningModule"):
        check_model(changed({"model.system": "builtins.dict"}).model)


@pytest.mark.filterwarnings("ignore:.*LeafSpec")
@pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType")
@pytest.mark.parametrize("precision", ["64-true", "bf16-mixed"])
def test_an_autoencoder_of_another_precision_is_tested_and_predicted_with(precision: str, fitted: Fit) -> None:
    fitted(model__system="autoencoder", fit__max_epochs=2, trainer__precision=precision)
    run_test()
    predict.main(load_params().only(*predict.READS))
    assert json.loads(Path("data/evaluation/test.json").read_text())["accuracy"] > 0.6
    with Path("data/predictions/predictions.csv").open(encoding="utf-8", newline="") as file:
        assert len(list(csv.DictReader(file))) == 359


def test_a_system_that_validates_nothing_is_told_what_it_lacks(params: Params) -> None:
    history = History()
    history.rows.append({"epoch": 1, "train_loss": 1.0, "learning_rate": 0.1})
    best = Best(history, params.fit, None)
    trainer = pl.Trainer(logger=False, enable_checkpointing=False)
    lacks = "is not logged by BoringModel; it needs a validation_step that logs it as val_NAME"
    with pytest.raises(UserError, match=f"{lacks}$"):
        best.on_train_epoch_end(trainer, BoringModel())
    trainer.callback_metrics.update({"train_loss": torch.tensor(1.0), "validation_loss": torch.tensor(1.0)})
    with pytest.raises(UserError, match=f"{lacks}, and it logs validation_loss$"):
        best.on_train_epoch_end(trainer, BoringModel())


def test_a_system_that_takes_no_learning_rate_is_said_to_train_with_its_own(
    fitted: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine_plain.py").write_text(PLAIN)
    monkeypatch.syspath_prepend(tmp_path)
    fitted(model__system="mine_plain.Plain", fit__max_epochs=1)
    assert "warning: Plain has no argument learning_rate, so it does not train with 0.01" in (capsys.readouterr().err)
    fitted(fit__max_epochs=1)
    assert "no argument learning_rate" not in capsys.readouterr().err


def test_a_system_that_trains_nothing_is_stopped_after_its_first_epoch() -> None:
    trainer = pl.Trainer(logger=False, enable_checkpointing=False)
    with pytest.raises(UserError, match=r"training_step of BoringModel must return the loss$"):
        History().on_train_epoch_end(trainer, BoringModel())


def test_logits_are_not_taken_for_probabilities() -> None:
    collected, system = TestAnswers("classification"), BoringModel()
    logits = 5 * torch.randn(50, 10, generator=torch.Generator().manual_seed(0))
    collected.batches = [{"probabilities": logits.softmax(dim=1).bfloat16()}, {"probabilities": torch.eye(10)}]
    assert collected.gather(system)["probabilities"].shape == (60, 10)
    for wrong in (logits, logits.sigmoid(), torch.eye(10) * 2 - 0.1):
        collected.batches[1] = {"probabilities": wrong}
        with pytest.raises(UserError, match=r"sum to 1 .* return logits\.softmax\(dim=1\) in forward"):
            collected.gather(system)


def test_a_fault_in_a_class_of_one_s_own_tells_what_it_was_made_with_or_given(changed: Changed, digits: Path) -> None:
    with pytest.raises(TypeError) as made:
        construct(Own, {"classes": lambda: 10}, {"margin": 1, "scale": None}, "model.system_arguments")
    assert "Own was called with classes from Refit and model.system_arguments = {'margin': 1" in made.value.__notes__[0]
    linear = {"in_features": 65, "out_features": 10}
    params = changed({"model.network": "torch.nn.Linear", "model.network_arguments": linear, **NOT_OURS})
    with pytest.raises(RuntimeError) as given:
        build_system(params.model, read_info(digits))
    assert given.value.__notes__ == ["model.network = 'torch.nn.Linear' was called with 2 images, float (2, 1, 8, 8)"]


def test_a_whole_system_is_no_network(changed: Changed) -> None:
    path = "pytorch_lightning.demos.boring_classes.BoringModel"
    with pytest.raises(UserError, match=f"model.network = '{path}' is a system, not a network; set model.system to it"):
        check_model(changed({"model.network": path, **NOT_OURS}).model)
