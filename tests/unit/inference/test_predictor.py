"""The answers that a test collects from a system."""

from pathlib import Path

import pytest
import torch
from pytorch_lightning.demos.boring_classes import BoringModel

from refit.artifacts.prepared import read_split
from refit.batches.datamodule import EvaluationLoader
from refit.inference.predictor import TestAnswers
from refit.params import Params
from refit.runtime.errors import UserError
from refit.training.trainer import make_trainer
from tests.fixtures import Build


def test_logits_in_place_of_probabilities_are_refused() -> None:
    collected, system = TestAnswers("classification"), BoringModel()
    logits = 5 * torch.randn(50, 10, generator=torch.Generator().manual_seed(0))
    collected.batches = [{"probabilities": logits.softmax(dim=1).bfloat16()}, {"probabilities": torch.eye(10)}]
    assert collected.gather(system)["probabilities"].shape == (60, 10)
    for wrong in (logits, logits.sigmoid(), torch.eye(10) * 2 - 0.1):
        collected.batches[1] = {"probabilities": wrong}
        with pytest.raises(UserError, match=r"sum to 1 .* return logits\.softmax\(dim=1\) in forward"):
            collected.gather(system)


def test_a_test_collects_each_image_s_probabilities_in_order(build: Build, params: Params, digits: Path) -> None:
    system, split = build(), read_split("test", digits)
    collected = TestAnswers("classification")
    make_trainer(params.trainer, callbacks=[collected]).test(system, EvaluationLoader(split, 50), verbose=False)
    with torch.inference_mode():
        expected = system.eval()(torch.from_numpy(split.images))
    torch.testing.assert_close(collected.gather(system)["probabilities"], expected)
