"""A loss that is no number stops the fit at its step, and what led to it is kept."""

import math
from collections import deque
from pathlib import Path
from typing import NamedTuple

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
    """A training step whose loss is on its way to the CPU."""

    loss: Tensor
    arrived: torch.cuda.Event | None
    """None where the loss is there already."""

    def has_arrived(self) -> bool:
        return self.arrived is None or bool(self.arrived.query())  # type: ignore[no-untyped-call]


class FiniteLoss(Callback):
    """Stops the fit where a training loss is infinite or not a number. Raises UserError, before any weight has changed
    on a CPU, and some steps later on a CUDA device, for which no step waits.
    """

    def __init__(self, note: Path) -> None:
        """To `note` goes what is needed to look into such a step: which images, learning rate, gradient norm."""
        self.note = note
        self.steps: deque[Step] = deque()

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        loss, arrived = loss.detach(), None
        if trainer.world_size > 1:  # one that is no number is so in the sum: all processes stop at the same step
            loss = loss.clone()
            dist.all_reduce(loss)
        if loss.device.type == "cuda":
            loss = torch.empty_like(loss, device="cpu", pin_memory=True).copy_(loss, non_blocking=True)
            arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            arrived.record()
        self.steps.append(Step(loss, arrived))

    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        while self.steps and self.steps[0].has_arrived():
            step = self.steps.popleft()
            if not math.isfinite(step.loss):
                self._stop(trainer, pl_module, step.loss)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.steps.clear()  # of its loss the validation's figures tell

    def _stop(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        assert isinstance(trainer.train_dataloader, TrainLoader)
        gradients = [weight.grad for weight in pl_module.parameters() if weight.grad is not None]
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        batch_idx = trainer.fit_loop.batch_idx - len(self.steps)  # so many steps of this epoch came after it
        note = {
            "loss": str(float(loss)),
            "epoch": trainer.current_epoch + 1,
            "batch": batch_idx + 1,
            "optimizer_step": trainer.global_step + 1,
            "train_rows": trainer.train_dataloader.rows(batch_idx),
            "learning_rate": rate,
            "gradient_norm": str(float(torch.nn.utils.get_total_norm(gradients))),
        }
        if trainer.is_global_zero:
            write_json(self.note, note)
        raise UserError(
            f"the training loss is {note['loss']} in epoch {note['epoch']}, batch {note['batch']}, at a learning rate "
            f"of {rate:.3g}; lower optimizer.learning_rate, or set fit.gradient_clip_val. "
            f"Which images were in the batch: {self.note.relative_to(repository_root())}"
        )
