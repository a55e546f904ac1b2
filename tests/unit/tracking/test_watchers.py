"""Pictures and histograms of a fit."""

import io

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image

from refit.batches.datamodule import Batch
from refit.tracking import watchers


def test_histograms_take_at_most_a_tenth_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a fake clock: a histogram takes one second and an epoch ten, so at most one epoch in ten has histograms."""
    now, logged = [1000.0], []

    class Loggers:
        def log_histograms(self, values: object, step: int) -> None:
            logged.append(step)
            now[0] += 1

    monkeypatch.setattr("refit.tracking.watchers.time.monotonic", lambda: now[0])
    histograms = watchers.Histograms(Loggers())  # type: ignore[arg-type]
    for epoch in range(101):
        trainer = pl.Trainer.__new__(pl.Trainer)
        monkeypatch.setattr(pl.Trainer, "global_step", epoch + 1)
        histograms.on_train_epoch_end(trainer, pl.LightningModule())
        now[0] += 10
    assert logged[0] == 0
    assert len(logged) <= 11
    assert len(logged) * 1 <= 0.012 * (now[0] - 1000)


def test_the_picture_of_a_batch_shows_its_images() -> None:
    """A user's own system may get other batches; `grid` is for uint8 images in grey or colour."""
    for channels in (1, 3):
        images = torch.randint(0, 256, (5, channels, 4, 6), dtype=torch.uint8)
        picture = np.asarray(Image.open(io.BytesIO(watchers.grid(Batch(images, torch.zeros(5)).images))))
        assert picture.dtype == np.uint8
        np.testing.assert_array_equal(picture[1:5, 8:14, 0], images[1, 0])
