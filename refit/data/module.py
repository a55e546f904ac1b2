"""Batches from the prepared data set: each is one gather from a packed tensor."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from refit.data.augment import Draws, augment, draw
from refit.data.prepared import PREPARED, Split, read_split
from refit.params import AugmentParams

EVALUATION_FACTOR = 2  # without gradients only a layer's own activations are alive, so twice the batch fits


class Batch(NamedTuple):
    images: Tensor
    """uint8 (B, C, H, W)."""
    labels: Tensor
    """int64 (B,)."""
    draws: Draws | None = None
    """How to augment each image; None outside training."""


class TrainLoader:
    """Shuffled and augmented batches whose content depends on the seed and the epoch alone.

    The remainder that does not fill an effective batch is left out; it is another remainder each epoch.
    """

    def __init__(
        self,
        split: Split,
        batch_size: int,
        effective_batch: int,
        augmentation: AugmentParams,
        seed: int,
        epoch: Callable[[], int],
    ) -> None:
        assert effective_batch % batch_size == 0, (effective_batch, batch_size)
        self.images, self.labels = torch.from_numpy(split.images), torch.from_numpy(split.labels)
        self.batch_size = batch_size
        self.used = len(self.labels) // effective_batch * effective_batch
        self.augmentation = augmentation
        self.seed = seed
        self.epoch = epoch

    def __len__(self) -> int:
        return self.used // self.batch_size

    def __iter__(self) -> Iterator[Batch]:
        random = np.random.default_rng([self.seed, self.epoch()])
        order = torch.from_numpy(random.permutation(len(self.labels))[: self.used])
        height, width = self.images.shape[2:]
        draws = draw(self.augmentation, len(self.labels), (height, width), random)
        for indices in torch.split(order, self.batch_size):
            yield Batch(self.images[indices], self.labels[indices], draws.take(indices))


class EvaluationLoader:
    """A split's batches in order."""

    def __init__(self, split: Split, batch_size: int) -> None:
        self.images = torch.split(torch.from_numpy(split.images), batch_size)
        self.labels = torch.split(torch.from_numpy(split.labels), batch_size)

    def __len__(self) -> int:
        return len(self.labels)

    def __iter__(self) -> Iterator[Batch]:
        yield from map(Batch, self.images, self.labels)


class PreparedData(pl.LightningDataModule):
    """The prepared data set for training."""

    def __init__(
        self,
        augmentation: AugmentParams,
        batch_size: int,
        effective_batch: int,
        seed: int,
        folder: Path = PREPARED,
    ) -> None:
        """`batch_size` is the micro-batch, which the batch scaler may change; it divides `effective_batch`."""
        super().__init__()
        self.train = read_split("train", folder)
        self.val = read_split("val", folder)
        self.augmentation = augmentation
        self.batch_size = batch_size
        self.effective_batch = effective_batch
        self.seed = seed

    def train_dataloader(self) -> TrainLoader:
        trainer = self.trainer
        assert trainer is not None
        return TrainLoader(
            self.train,
            self.batch_size,
            self.effective_batch,
            self.augmentation,
            self.seed,
            lambda: trainer.current_epoch,
        )

    def val_dataloader(self) -> EvaluationLoader:
        return EvaluationLoader(self.val, EVALUATION_FACTOR * self.batch_size)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        if batch.draws is None:
            return batch
        return Batch(augment(batch.images, batch.draws, self.augmentation), batch.labels)
