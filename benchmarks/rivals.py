"""The baselines: minimal but careful programs, as a good engineer would write them without Refit."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
import torch.nn.functional as F  # noqa: N812
import torchvision.transforms as T  # noqa: N812
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from refit.artifacts.prepared import Split


class PerImage(Dataset[tuple[Tensor, int]]):
    """Images transformed one by one, as most templates do."""

    def __init__(self, split: Split, transform: T.Compose) -> None:
        self.images = [Image.fromarray(image.squeeze() if len(image) == 1 else np.moveaxis(image, 0, 2))
                       for image in split.images]  # fmt: skip
        self.labels = split.labels.tolist()
        self.transform = transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.images[index]), self.labels[index]


class Photos(Dataset[tuple[Tensor, int]]):
    """Photos decoded and transformed one by one, as torchvision's ImageFolder does."""

    def __init__(self, files: list[Path], labels: list[int], transform: T.Compose) -> None:
        self.files, self.labels, self.transform = files, labels, transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.open(self.files[index]).convert("RGB")), self.labels[index]


def small_image_transforms(size: int) -> T.Compose:
    return T.Compose([T.RandomCrop(size, padding=2), T.RandomHorizontalFlip(), T.ToTensor(), T.Normalize(0.5, 0.25)])


class TemplateSystem(pl.LightningModule):
    """The style of Lightning templates: each metric is updated by forward and logged at every step."""

    def __init__(self, network: nn.Module, classes: int, steps: int) -> None:
        super().__init__()
        self.network = network
        self.steps = steps
        self.train_loss, self.train_accuracy = MeanMetric(), MulticlassAccuracy(classes)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        logits = self.network(images)
        loss = F.cross_entropy(logits, labels)
        self.train_loss(loss)
        self.train_accuracy(logits, labels)
        self.log("train/loss", self.train_loss, on_step=False, on_epoch=True, prog_bar=True)
        self.log("train/accuracy", self.train_accuracy, on_step=False, on_epoch=True, prog_bar=True)
        return loss

    def configure_optimizers(self) -> dict[str, object]:  # type: ignore[override]
        optimizer = torch.optim.AdamW(self.parameters(), 1e-3)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=self.steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Clock(pl.Callback):
    """Measures the seconds from the start of the training until everything is written."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.began = time.perf_counter()

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.seconds = time.perf_counter() - self.began


class BareSystem(pl.LightningModule):
    """The loss and the optimizer of raw_loop, and nothing else."""

    def __init__(self, network: nn.Module, steps: int) -> None:
        super().__init__()
        self.network = network
        self.steps = steps

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        return F.cross_entropy(self.network(images), labels)

    def configure_optimizers(self) -> dict[str, object]:  # type: ignore[override]
        optimizer = torch.optim.AdamW(self.parameters(), 1e-3, fused=True)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=self.steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def bare_trainer(network: nn.Module, train: Split, batch_size: int) -> float:
    """Seconds of an epoch of Lightning's Trainer with no metrics, loggers, validation or saved states; `network` takes
    uint8 images."""
    images, labels = torch.from_numpy(train.images), torch.from_numpy(train.labels)
    rows = torch.randperm(len(labels)).split(batch_size)  # type: ignore[no-untyped-call]
    batches: Any = [[images[batch], labels[batch]] for batch in rows]
    loader: DataLoader[Any] = DataLoader(batches, batch_size=None)
    clock = Clock()
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, callbacks=[clock],
        enable_progress_bar=False, enable_model_summary=False, gradient_clip_val=1.0,
    )  # fmt: skip
    trainer.fit(BareSystem(network, len(rows)), loader)
    return clock.seconds


def template(network: nn.Module, train: Split, batch_size: int, workers: int) -> float:
    """Training images per second of a template-style Lightning fit of one epoch; `network` takes normalised images."""
    steps = len(train.labels) // batch_size
    images = PerImage(train, small_image_transforms(train.images.shape[2]))
    loader = DataLoader(images, batch_size, shuffle=True, num_workers=workers, drop_last=True)
    clock = Clock()
    trainer = pl.Trainer(
        max_epochs=1, accelerator="auto", devices=1, logger=False, enable_checkpointing=False, callbacks=[clock],
        enable_progress_bar=False, enable_model_summary=False, gradient_clip_val=1.0,
    )  # fmt: skip
    trainer.fit(TemplateSystem(network, 10, steps), loader)
    return steps * batch_size / clock.seconds


def reference(
    network: nn.Module, files: list[Path], labels: list[int], val: int, size: int, batch_size: int, workers: int
) -> float:
    """Training images per second in an epoch and its evaluation, in the style of torchvision's
    references/classification/train.py: loss, top-1 and top-5 accuracy are read at each step. The last `val` photos are
    for the evaluation; `network` takes normalised images."""
    train_transform = T.Compose(
        [T.RandomResizedCrop(size), T.RandomHorizontalFlip(), T.PILToTensor(), *_to_normalized_floats()]
    )
    eval_transform = T.Compose(
        [T.Resize(size * 256 // 224), T.CenterCrop(size), T.PILToTensor(), *_to_normalized_floats()]
    )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    pinned = device.type == "cuda"
    train_loader = DataLoader(
        Photos(files[:-val], labels[:-val], train_transform), batch_size,
        shuffle=True, num_workers=workers, pin_memory=pinned, drop_last=True,
    )  # fmt: skip
    val_loader = DataLoader(
        Photos(files[-val:], labels[-val:], eval_transform), batch_size, num_workers=workers, pin_memory=pinned
    )
    network.to(device)
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9, weight_decay=1e-4)
    metrics: list[tuple[float, ...]] = []
    began = time.perf_counter()
    network.train()
    for images, targets in train_loader:
        images, targets = images.to(device), targets.to(device)
        logits = network(images)
        loss = criterion(logits, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        metrics.append((loss.item(), *_top_accuracies(logits, targets)))
    network.eval()
    with torch.inference_mode():
        for images, targets in val_loader:
            images, targets = images.to(device, non_blocking=True), targets.to(device, non_blocking=True)
            logits = network(images)
            metrics.append((criterion(logits, targets).item(), *_top_accuracies(logits, targets)))
    return len(train_loader) * batch_size / (time.perf_counter() - began)


def _to_normalized_floats() -> list[nn.Module]:
    return [T.ConvertImageDtype(torch.float), T.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]


def _top_accuracies(logits: Tensor, targets: Tensor) -> tuple[float, float]:
    """Top-1 and top-5 accuracy."""
    with torch.inference_mode():
        hits = logits.topk(5).indices == targets[:, None]
        return hits[:, 0].float().mean().item(), hits.any(dim=1).float().mean().item()
