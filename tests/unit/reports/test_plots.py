"""The pictures of a report for every task, and embeddings."""

import math

import numpy as np
import pytest
import torch
from pytorch_lightning import LightningModule

from refit.artifacts.prepared import Split
from refit.reports import plots
from refit.reports.embeddings import embedding_pictures
from refit.reports.style import percent

HISTORY: list[dict[str, float | None]] = [
    {
        "epoch": 1.0,
        "train_loss": 2.0,
        "val_loss": 1.8,
        "train_accuracy": 0.3,
        "val_accuracy": 0.4,
        "learning_rate": 0.1,
    },
    {
        "epoch": 2.0,
        "train_loss": 1.0,
        "val_loss": 1.1,
        "train_accuracy": 0.8,
        "val_accuracy": 0.7,
        "learning_rate": 0.2,
    },
]


@pytest.mark.parametrize(("images", "dimensions", "spread", "drawn"),
                         [(3, 2, 1, True), (2, 2, 1, False), (9, 1, 1, False), (9, 4, 0, False)])  # fmt: skip
def test_embeddings_that_span_no_plane_get_no_map(images: int, dimensions: int, spread: int, drawn: bool) -> None:
    embeddings = 1 + spread * torch.randn(images, dimensions, generator=torch.Generator().manual_seed(0))
    split = Split(np.zeros((images, 1, 8, 8), np.uint8), np.zeros(images, np.int64))
    pictures = embedding_pictures(LightningModule(), {"embedding": embeddings}, split, ["cat"])
    assert list(pictures) == ["embedding_map"] * drawn


def test_a_fraction_below_one_is_never_shown_as_100_percent() -> None:
    assert [percent(share).split()[0] for share in (1.0, 0.99999, 0.98765, 0.00001, 0.0)] == [
        "100.0", "99.9", "98.8", "0.1", "0.0"
    ]  # fmt: skip


def test_training_curves_can_be_drawn_without_validation_and_with_an_infinite_loss() -> None:
    rows = [{**HISTORY[0], "val_loss": None, "val_accuracy": None}, {**HISTORY[1], "train_loss": math.inf}]
    assert plots.training_curves(rows, 2) != plots.training_curves(HISTORY, 2)
    assert plots.training_curves(rows[:1], 1)


@pytest.mark.parametrize("suggestion", [None, 0.01, 0.03])
def test_the_learning_rate_curve_is_drawn_for_every_suggestion(suggestion: float | None) -> None:
    rates, losses = [1e-3, 1e-2, 1e-1], [2.0, 1.0, math.nan]
    with_loss, without = (plots.learning_rate_curve(r, x, suggestion, 0.01) for r, x in ((rates, losses), ([], [])))
    assert with_loss != without
