"""Batches from the prepared data set: each is one gather from a packed tensor."""

import math
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pytorch_lightning as pl
import torch
from torch import Tensor

from refit.artifacts.paths import PREPARED
from refit.artifacts.prepared import Split, read_split
from refit.batches.augment import Draws, augment, check_size, draw
from refit.batches.mixing import mix
from refit.params import AugmentParams
from refit.runtime.errors import UserError

CPU = torch.device("cpu")
DEVICE_SHARE = 0.4  # of an accelerator's free memory that a split may take: the network needs the rest
EVALUATION_FACTOR = 2  # without gradients only a layer's own activations are alive, so twice the batch fits


class Batch(NamedTuple):
    images: Tensor
    """uint8 (B, C, H, W)."""
    labels: Tensor
    """int64 (B,)."""


class MixedBatch(NamedTuple):
    """A training batch where mixup or cutmix put another's pixels into each image."""

    images: Tensor
    """uint8 (B, C, H, W)."""
    labels: Tensor
    """int64 (B,)."""
    other_labels: Tensor
    """int64 (B,): what else the images show."""
    lam: Tensor
    """float32 (B,): how much of each image its own label counts; the other counts for the rest."""


class DrawnBatch(NamedTuple):
    """A training batch before its images are augmented."""

    images: Tensor
    """uint8 (B, C, H, W)."""
    labels: Tensor
    """int64 (B,)."""
    draws: Draws
    """How to augment each image."""


AnyBatch = Batch | MixedBatch | DrawnBatch


def augmented(batch: AnyBatch, augmentation: AugmentParams) -> Batch | MixedBatch:
    """With its draws carried out. Where images are mixed, the last of the batch is only the last but one's partner."""
    if not isinstance(batch, DrawnBatch):
        return batch
    images = augment(batch.images, batch.draws, augmentation)
    if batch.draws.lam is None or batch.draws.box is None:
        return Batch(images, batch.labels)
    lam, box = batch.draws.lam[:-1], batch.draws.box[:-1]
    return MixedBatch(mix(images, lam, box, augmentation), batch.labels[:-1], batch.labels[1:], lam)


def _pinned(batch: Batch | DrawnBatch) -> Batch | DrawnBatch:
    """In memory from which a CUDA device copies while other work goes on."""
    pinned = Batch(batch.images.pin_memory(), batch.labels.pin_memory())
    return DrawnBatch(*pinned, batch.draws.each(Tensor.pin_memory)) if isinstance(batch, DrawnBatch) else pinned


def _tensors(split: Split, device: torch.device) -> tuple[Tensor, Tensor]:
    """Images and labels, on a CUDA device if they take no more than DEVICE_SHARE of its free memory."""
    images, labels = torch.from_numpy(split.images), torch.from_numpy(split.labels)
    if device.type == "cuda" and images.nbytes <= DEVICE_SHARE * torch.cuda.mem_get_info(device)[0]:
        return images.to(device), labels.to(device)
    return images, labels


def _ahead(batches: Iterator[AnyBatch]) -> Iterator[AnyBatch]:
    """The same batches, each made by a thread while those before it are in use."""
    with ThreadPoolExecutor(1, thread_name_prefix="batches") as thread:
        waiting = deque(thread.submit(next, batches, None) for _ in range(2))
        while batch := waiting.popleft().result():
            waiting.append(thread.submit(next, batches, None))
            yield batch


class TrainLoader:
    """Shuffled and augmented batches whose content depends on the seed and the epoch alone.

    Of the processes of a fit each takes its turn: together they step on the images that one alone would.
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
        device: torch.device = CPU,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """Batches are on `device` from the start where the split fits there; else Lightning moves each."""
        assert effective_batch % (batch_size * world_size) == 0, (effective_batch, batch_size, world_size)
        self.device = device
        self.images, self.labels = _tensors(split, device)
        self.is_mapped = isinstance(split.images, np.memmap)  # to gather is then to read a disk
        self.batch_size = batch_size
        self.used = len(self.labels) // effective_batch * effective_batch
        self.augmentation = augmentation
        self.seed = seed
        self.epoch = epoch
        self.rank = rank
        self.world_size = world_size
        self.position = 0
        """Batches of the epoch that were handed out."""
        self._start = 0

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """The next epoch to be iterated over begins at this position."""
        self._start = state_dict["position"]

    def __len__(self) -> int:
        return self.used // (self.batch_size * self.world_size)

    def rows(self, batch_idx: int) -> list[int]:
        """Which rows of the split are in this batch of the epoch at hand; of several processes in those of all."""
        together = self.batch_size * self.world_size
        rows: list[int] = self.order[batch_idx * together :][:together].tolist()
        return rows

    def __iter__(self) -> Iterator[AnyBatch]:
        random = np.random.default_rng([self.seed, self.epoch()])
        self.position, self._start = self._start, 0
        self.order = random.permutation(len(self.labels))
        # The last image's partner is the next in the order, of those left out, or the first.
        order = torch.from_numpy(np.append(self.order, self.order[:1]))
        height, width = self.images.shape[2:]
        draws = draw(self.augmentation, len(self.labels), (height, width), random)
        home = self.images.device
        gathered = self._gather(order.to(home), draws.to(home) if draws else None, self.position)
        batches: Iterator[AnyBatch] = gathered
        if self.images.device.type == "cpu" and self.device.type == "cuda":
            batches = _ahead(_pinned(batch) for batch in gathered)
        elif self.images.device.type == "cpu" and (draws or self.is_mapped):
            batches = _ahead(augmented(batch, self.augmentation) for batch in gathered)
        for batch in batches:
            self.position += 1
            yield batch

    def _gather(self, order: Tensor, draws: Draws | None, first: int) -> Iterator[Batch | DrawnBatch]:
        """The batches of this process, from its `first` on. Of each image the next in the order is the partner, so a
        batch that is to be mixed holds one more."""
        partners = 1 if self.augmentation.mixup or self.augmentation.cutmix else 0
        together = self.batch_size * self.world_size
        for start in range(first * together + self.rank * self.batch_size, self.used, together):
            indices = order[start : start + self.batch_size + partners]
            batch = Batch(self.images[indices], self.labels[indices])
            yield DrawnBatch(*batch, draws.take(indices)) if draws else batch


class EvaluationLoader:
    """A split's batches in order, on `device` from the start where the split fits there.

    Of several processes each has as many, as they wait for one another at every batch: some are then smaller.
    """

    def __init__(
        self, split: Split, batch_size: int, device: torch.device = CPU, rank: int = 0, world_size: int = 1
    ) -> None:
        """Raises UserError where there are fewer images than processes."""
        images, labels = _tensors(split, device)
        if world_size == 1:
            self.images, self.labels = torch.split(images, batch_size), torch.split(labels, batch_size)
            return
        if len(labels) < world_size:
            raise UserError(f"{len(labels)} images cannot be shared by {world_size} devices; lower trainer.devices, "
                             "or raise data.val")  # fmt: skip
        assert batch_size > 1  # else one left over would be a batch too many
        parts = world_size * math.ceil(len(labels) / (batch_size * world_size))
        self.images = torch.tensor_split(images, parts)[rank::world_size]
        self.labels = torch.tensor_split(labels, parts)[rank::world_size]

    def __len__(self) -> int:
        return len(self.labels)

    def __iter__(self) -> Iterator[Batch]:
        yield from map(Batch, self.images, self.labels)


class ImageLoader:
    """A split's images in order, without labels."""

    def __init__(self, split: Split, batch_size: int) -> None:
        self.batches = torch.split(torch.from_numpy(split.images), batch_size)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.batches)


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
        """`batch_size` is the micro-batch, which the batch scaler may change; it divides `effective_batch`.

        Raises UserError where the images are too small for the augmentation.
        """
        super().__init__()
        self.train = read_split("train", folder)
        height, width = self.train.images.shape[2:]
        check_size(augmentation, height, width)
        self.val = read_split("val", folder)
        self.augmentation = augmentation
        self.batch_size = batch_size
        self.effective_batch = effective_batch
        self.seed = seed

    def only(self, rows: npt.NDArray[np.int64]) -> None:
        """Train and validate on these rows of the train split alone, as they are, in batches of no more than them."""
        self.train = self.val = Split(self.train.images[rows], self.train.labels[rows])
        self.augmentation = AugmentParams()
        if len(rows) < self.effective_batch:
            self.batch_size = self.effective_batch = len(rows)

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
            trainer.strategy.root_device,
            trainer.global_rank,
            trainer.world_size,
        )

    def val_dataloader(self) -> EvaluationLoader:
        trainer = self.trainer
        assert trainer is not None
        device, batch_size = trainer.strategy.root_device, EVALUATION_FACTOR * self.batch_size
        return EvaluationLoader(self.val, batch_size, device, trainer.global_rank, trainer.world_size)

    def transfer_batch_to_device(self, batch: AnyBatch, device: torch.device, dataloader_idx: int) -> AnyBatch:
        if batch.images.device == device:  # Lightning would look at each tensor of it
            return batch
        moved: AnyBatch = super().transfer_batch_to_device(batch, device, dataloader_idx)
        return moved

    def on_after_batch_transfer(self, batch: AnyBatch, dataloader_idx: int) -> Batch | MixedBatch:
        return augmented(batch, self.augmentation)
