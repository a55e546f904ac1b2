"""Fits of an autoencoder and of a user's own system."""

import csv
import json
from pathlib import Path

import pytest

from refit.artifacts.checked import stage_params
from stages import predict
from tests.fixtures import Fit, run_test

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


@pytest.mark.parametrize("precision", ["64-true", "bf16-mixed"])
def test_an_autoencoder_of_another_precision_can_be_tested_and_predict(precision: str, fitted: Fit) -> None:
    fitted(model__system="autoencoder", fit__max_epochs=2, trainer__precision=precision)
    run_test()
    predict.main(stage_params("predict"))
    assert json.loads(Path("data/evaluation/test.json").read_text())["accuracy"] > 0.6
    with Path("data/predictions/predictions.csv").open(encoding="utf-8", newline="") as file:
        assert len(list(csv.DictReader(file))) == 359


def test_a_system_that_takes_no_learning_rate_gets_a_warning(
    fitted: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine_plain.py").write_text(PLAIN)
    monkeypatch.syspath_prepend(tmp_path)
    fitted(model__system="mine_plain.Plain", fit__max_epochs=1)
    assert "warning: Plain has no argument learning_rate, so it does not train with 0.01" in (capsys.readouterr().err)
    fitted(fit__max_epochs=1)
    assert "no argument learning_rate" not in capsys.readouterr().err
