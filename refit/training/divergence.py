"""Stop on a non-finite loss and record the batch that caused it."""

import math
from collections import deque
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from pytorch_lightning.callbacks import Callback
from torch import Tensor

from refit.artifacts.files import write_json
from refit.artifacts.paths import repository_root
from refit.batches.datamodule import TrainLoader
from refit.runtime.errors import UserError


class Step(NamedTuple):
    """A training step whose loss is being copied to the CPU."""

    batch_idx: int
    loss: Tensor
    copied: torch.cuda.Event | None
    """None if the loss was on the CPU already."""

    def is_readable(self) -> bool:
        return self.copied is None or bool(self.copied.query())  # type: ignore[no-untyped-call]


class FiniteLoss(Callback):
    """Raises UserError if a training loss is infinite or NaN.

    On a CPU it does so before the step changes any weight. On a CUDA device it does so some steps later, because no
    step waits for the loss.
    """

    def __init__(self, note: Path) -> None:
        """`note` is the JSON file that records the step: rows of the batch, learning rate, gradient norm."""
        self.note = note
        self.batch_idx = 0
        self.steps: deque[Step] = deque()

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any,
                             batch_idx: int) -> None:  # fmt: skip
        self.batch_idx = batch_idx

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        loss, copied = loss.detach(), None
        if trainer.world_size > 1:  # the sum is non-finite if any loss is: all processes stop at the same step
            loss = loss.clone()
            dist.all_reduce(loss)
        if loss.device.type == "cuda":
            loss = torch.empty_like(loss, device="cpu", pin_memory=True).copy_(loss, non_blocking=True)
            copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            copied.record()
        self.steps.append(Step(self.batch_idx, loss, copied))

    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        while self.steps and self.steps[0].is_readable():
            step = self.steps.popleft()
            if not math.isfinite(step.loss):
                self._stop(trainer, pl_module, step)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.steps.clear()  # validation would reveal a non-finite loss in these

    def _stop(self, trainer: pl.Trainer, pl_module: pl.LightningModule, step: Step) -> None:
        assert isinstance(trainer.train_dataloader, TrainLoader)
        gradients = [weight.grad for weight in pl_module.parameters() if weight.grad is not None]
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        note = {
            "loss": str(float(step.loss)),
            "epoch": trainer.current_epoch + 1,
            "batch": step.batch_idx + 1,
            "optimizer_step": trainer.global_step + 1,
            "train_rows": trainer.train_dataloader.rows(step.batch_idx),
            "learning_rate": rate,
            "gradient_norm": str(float(torch.nn.utils.get_total_norm(gradients))),
        }
        if trainer.is_global_zero:
            write_json(self.note, note)
        raise UserError(
            f"the training loss is {note['loss']} in epoch {note['epoch']}, batch {note['batch']}, at a learning rate "
            f"of {rate:.3g}; lower optimizer.learning_rate, or set fit.gradient_clip_val. "
            f"The images of the batch are listed in {self.note.relative_to(repository_root())}"
        )
