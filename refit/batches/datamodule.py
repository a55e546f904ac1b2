"""Loaders and datamodule of the prepared data set. Each batch is one gather from a packed tensor."""

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import pytorch_lightning as pl
import torch
from torch import Tensor

from refit.artifacts.encoded import EncodedImages
from refit.artifacts.paths import PREPARED
from refit.artifacts.prepared import Split, read_split
from refit.batches.augment import Draws, at_trained_size, augment, check_size, draw, full_size_batch
from refit.batches.mixing import mix
from refit.params import AugmentParams
from refit.runtime.errors import UserError

CPU = torch.device("cpu")
DEVICE_SHARE = 0.4  # maximum share of a CUDA device's free memory for a split; the network needs the rest
EVALUATION_FACTOR = 2  # evaluation keeps no activations for gradients, so at least twice the micro-batch fits


class Batch(NamedTuple):
    images: Tensor
    """uint8 (B, C, H, W)."""
    labels: Tensor
    """int64 (B,)."""


class WeightedBatch(NamedTuple):
    """A training batch of a data set whose images have different weights."""

    images: Tensor
    """uint8 (B, C, H, W)."""
    labels: Tensor
    """int64 (B,)."""
    weights: Tensor
    """float32 (B,): how much each image counts in the loss; their mean over the training images is 1."""


class MixedBatch(NamedTuple):
    """A training batch after mixup or cutmix, where each image contains pixels of another one."""

    images: Tensor
    """uint8 (B, C, H, W)."""
    labels: Tensor
    """int64 (B,)."""
    other_labels: Tensor
    """int64 (B,): labels of the images that were mixed in."""
    lam: Tensor
    """float32 (B,): weight of each image's own label; the other label has the rest, 1 - lam."""


class WeightedMixedBatch(NamedTuple):
    """A MixedBatch of a data set whose images have different weights."""

    images: Tensor
    labels: Tensor
    other_labels: Tensor
    lam: Tensor
    weights: Tensor
    """float32 (B,): of the images themselves."""
    other_weights: Tensor
    """float32 (B,): of the images that were mixed in."""


class DrawnBatch(NamedTuple):
    """A training batch before augmentation."""

    images: Tensor
    """uint8 (B, C, H, W)."""
    labels: Tensor
    """int64 (B,)."""
    draws: Draws
    """Random choices for each image."""
    weights: Tensor | None = None
    """float32 (B,), if the images have different weights."""


Mixed = MixedBatch | WeightedMixedBatch
TrainBatch = Batch | WeightedBatch | Mixed
AnyBatch = TrainBatch | DrawnBatch
SomeBatch = TypeVar("SomeBatch", bound=AnyBatch)


def augmented(batch: AnyBatch, augmentation: AugmentParams) -> TrainBatch:
    """Augment a DrawnBatch; any other batch is returned unchanged.

    Mixing needs one extra image: image i is mixed with image i + 1, and the last one is then dropped.
    """
    if not isinstance(batch, DrawnBatch):
        return batch
    images = augment(batch.images, batch.draws, augmentation)
    if batch.draws.lam is None or batch.draws.box is None:
        return _batch(images, batch.labels, batch.weights)
    lam, box = batch.draws.lam[:-1], batch.draws.box[:-1]
    mixed = MixedBatch(mix(images, lam, box, augmentation), batch.labels[:-1], batch.labels[1:], lam)
    if batch.weights is None:
        return mixed
    return WeightedMixedBatch(*mixed, batch.weights[:-1], batch.weights[1:])


def _batch(images: Tensor, labels: Tensor, weights: Tensor | None) -> Batch | WeightedBatch:
    return Batch(images, labels) if weights is None else WeightedBatch(images, labels, weights)


def _pinned(batch: Batch | WeightedBatch | DrawnBatch) -> Batch | WeightedBatch | DrawnBatch:
    """The batch in page-locked memory, from which a CUDA device copies asynchronously."""
    if not isinstance(batch, DrawnBatch):
        return type(batch)(*(part.pin_memory() for part in batch))
    weights = None if batch.weights is None else batch.weights.pin_memory()
    return DrawnBatch(
        batch.images.pin_memory(), batch.labels.pin_memory(), batch.draws.each(Tensor.pin_memory), weights
    )


def _tensors(split: Split, device: torch.device) -> tuple[Tensor | EncodedImages, Tensor]:
    """Images and labels; on `device` if that is CUDA and they take at most DEVICE_SHARE of its free memory. Encoded
    images stay as they are."""
    labels = torch.from_numpy(split.labels)
    if isinstance(split.images, EncodedImages):
        return split.images, labels
    images = torch.from_numpy(split.images)
    if device.type == "cuda" and images.nbytes <= DEVICE_SHARE * torch.cuda.mem_get_info(device)[0]:
        return images.to(device), labels.to(device)
    return images, labels


def take(images: Tensor | EncodedImages, rows: Tensor | slice) -> Tensor:
    """The images in these rows, uint8 (rows, C, H, W)."""
    if isinstance(images, Tensor):
        return images[rows]
    return torch.from_numpy(images[rows if isinstance(rows, slice) else rows.numpy()])


def _prefetch(batches: Iterator[SomeBatch]) -> Iterator[SomeBatch]:
    """The same batches. A thread makes the next two while the current one is in use."""
    with ThreadPoolExecutor(1, thread_name_prefix="batches") as thread:
        waiting = deque(thread.submit(next, batches, None) for _ in range(2))
        while batch := waiting.popleft().result():
            waiting.append(thread.submit(next, batches, None))
            yield batch


class TrainLoader:
    """Shuffled and augmented batches. Their content depends only on the seed and the epoch.

    The processes of a distributed fit take the batches in turn, so that together they train on the same images as a
    single process. Images that do not fill an effective batch are left out, other ones in each epoch.
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
        """`epoch` returns the number of the current epoch. If the split fits on `device`, batches are made there;
        otherwise Lightning moves each batch."""
        assert effective_batch % (batch_size * world_size) == 0, (effective_batch, batch_size, world_size)
        self.device = device
        self.images, self.labels = _tensors(split, device)
        self.weights = None if split.weights is None else torch.from_numpy(split.weights).to(self.labels.device)
        self.reads_disk = isinstance(split.images, np.memmap | EncodedImages)  # to make a batch
        self.batch_size = batch_size
        self.used = len(self.labels) // effective_batch * effective_batch
        self.augmentation = augmentation
        self.seed = seed
        self.epoch = epoch
        self.rank = rank
        self.world_size = world_size
        self.position = 0
        """Number of batches of this epoch that were returned."""
        self._start = 0

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Start the next iteration at this position."""
        self._start = state_dict["position"]

    def __len__(self) -> int:
        return self.used // (self.batch_size * self.world_size)

    def rows(self, batch_idx: int) -> list[int]:
        """Rows of the split in this batch of the current epoch, over all processes."""
        size = self.batch_size * self.world_size
        rows: list[int] = self.order[batch_idx * size :][:size].tolist()
        return rows

    def __iter__(self) -> Iterator[AnyBatch]:
        random = np.random.default_rng([self.seed, self.epoch()])
        self.position, self._start = self._start, 0
        self.order = random.permutation(len(self.labels))
        # Each image is mixed with the next one in the order; the last one of all with the first.
        order = torch.from_numpy(np.append(self.order, self.order[:1]))
        height, width = self.images.shape[2:]
        draws = draw(self.augmentation, len(self.labels), (height, width), random)
        source = self.labels.device
        gathered = self._gather(order.to(source), draws.to(source) if draws else None, self.position)
        batches: Iterator[AnyBatch] = gathered
        if source.type == "cpu" and self.device.type == "cuda":
            batches = _prefetch(_pinned(batch) for batch in gathered)
        elif source.type == "cpu" and (draws or self.reads_disk):
            batches = _prefetch(augmented(batch, self.augmentation) for batch in gathered)
        for batch in batches:
            self.position += 1
            yield batch

    def _gather(self, order: Tensor, draws: Draws | None, first: int) -> Iterator[Batch | WeightedBatch | DrawnBatch]:
        """The batches of this process, from number `first` on. A batch to be mixed has one extra image."""
        extra = 1 if self.augmentation.mixup or self.augmentation.cutmix else 0
        stride = self.batch_size * self.world_size
        for start in range(first * stride + self.rank * self.batch_size, self.used, stride):
            indices = order[start : start + self.batch_size + extra]
            images, labels = take(self.images, indices), self.labels[indices]
            weights = None if self.weights is None else self.weights[indices]
            yield DrawnBatch(images, labels, draws.take(indices), weights) if draws else _batch(images, labels, weights)


class EvaluationLoader:
    """Batches of a split in order. If the split fits on `device`, they are made there.

    All processes of a distributed run get the same number of batches, some of them smaller, because the processes
    synchronise at each batch.
    """

    def __init__(
        self, split: Split, batch_size: int, device: torch.device = CPU, rank: int = 0, world_size: int = 1
    ) -> None:
        """Raises UserError if there are fewer images than processes."""
        self.images, self.labels = _tensors(split, device)
        rows = torch.arange(len(self.labels))
        if world_size == 1:
            self.batches = _slices(torch.split(rows, batch_size))
            return
        if len(rows) < world_size:
            raise UserError(f"{len(rows)} images are too few for {world_size} devices; lower trainer.devices, "
                             "or raise data.val")  # fmt: skip
        assert batch_size > 1  # with 1, a single image that is left over would be an extra batch
        parts = world_size * math.ceil(len(rows) / (batch_size * world_size))
        self.batches = _slices(torch.tensor_split(rows, parts)[rank::world_size])

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        batches = (Batch(take(self.images, rows), self.labels[rows]) for rows in self.batches)
        return _prefetch(batches) if isinstance(self.images, EncodedImages) else batches


def _slices(batches: Iterable[Tensor]) -> list[slice]:
    """Slices of the consecutive rows in each batch: a slice of a tensor is no copy."""
    return [slice(int(rows[0]), int(rows[-1]) + 1) if len(rows) else slice(0) for rows in batches]


class ImageLoader:
    """A split's images in order, without labels."""

    def __init__(self, split: Split, batch_size: int) -> None:
        self.batches = EvaluationLoader(split, batch_size)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Tensor]:
        return (batch.images for batch in self.batches)


class PreparedData(pl.LightningDataModule):
    """The train and val splits of the prepared data set."""

    def __init__(
        self,
        augmentation: AugmentParams,
        batch_size: int,
        effective_batch: int,
        seed: int,
        folder: Path = PREPARED,
    ) -> None:
        """`batch_size` is the micro-batch. It divides `effective_batch`, and the batch scaler may change it.

        Raises UserError if the images are too small for the augmentation, or to be trained at its size.
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
        """Train and validate only on these rows of the train split, without augmentation and weights: on the same
        pixels, so validation too is at the size that images are trained at."""
        self.train = Split(self.train.images[rows], self.train.labels[rows])
        self.augmentation = AugmentParams(train_size=self.augmentation.train_size)
        images = at_trained_size(torch.from_numpy(self.train.images), self.augmentation).numpy()
        self.val = Split(images, self.train.labels)
        if len(rows) < self.effective_batch:
            self.batch_size = self.effective_batch = len(rows)

    def overfit(self, batches: int) -> None:
        """Train and validate on the images of this many random batches, without augmentation."""
        shuffled = np.random.default_rng(self.seed).permutation(len(self.train.labels))
        self.only(shuffled[: batches * self.effective_batch])

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
        height, width = self.val.images.shape[2:]
        batch_size = EVALUATION_FACTOR * full_size_batch(self.augmentation, self.batch_size, height, width)
        device = trainer.strategy.root_device
        return EvaluationLoader(self.val, batch_size, device, trainer.global_rank, trainer.world_size)

    def on_after_batch_transfer(self, batch: AnyBatch, dataloader_idx: int) -> TrainBatch:
        return augmented(batch, self.augmentation)
