"""How long a fit takes, from the first steps that were run. It is only shown: it is in no output of a stage."""

import time
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from refit.artifacts.prepared import DatasetInfo
from refit.params import TrainerParams
from refit.runtime.cores import usable_cores
from refit.runtime.progress import duration

_VALIDATION = 0.4  # seconds of validating an image ÷ of training on one (benchmarks/README.md)
_ENOUGH = 3.0  # seconds of steps that make an estimate
_LONG = 600.0  # seconds of a fit that deserve advice
_SIDE = 48  # pixels; larger images can be made smaller


def announce_pace(seconds_an_image: float, info: DatasetInfo, epochs: int, trainer: TrainerParams) -> str:
    """A line with the time of an epoch and of `epochs` epochs, and the keys that shorten it if that is long.

    seconds_an_image: of a training step.
    """
    epoch = seconds_an_image * (info.counts["train"] + _VALIDATION * info.counts["val"])
    side = max(info.shape[1:])
    line = f"about {duration(epoch)} an epoch, {duration(epoch * epochs)} for {epochs} epochs"
    if epoch * epochs < _LONG:
        return line
    remedies = ["fewer fit.max_epochs", "a smaller model.network or model.width"]
    if side > _SIDE:
        remedies.insert(0, f"data.image_size: {side // 2} (a quarter of the work)")
    cores = usable_cores()
    if trainer.accelerator in ("auto", "cpu") and trainer.threads < cores:
        remedies.insert(0, f"trainer.threads: auto ({cores} cores)")
    return f"{line}\nto shorten it: {'; '.join(remedies)}"


class Pace(Callback):
    """Prints announce_pace's line once, after the first seconds or the first epoch of a fit."""

    def __init__(self, info: DatasetInfo, trainer: TrainerParams) -> None:
        self.info, self.params = info, trainer
        self._began: float | None = None
        self._steps = 0
        self._said = False

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any,
                           batch_idx: int) -> None:  # fmt: skip
        if self._said or not trainer.is_global_zero:
            return
        now = time.monotonic()
        if self._began is None:  # libraries warm up in the first step
            self._began = now
            return
        self._steps += 1
        if now - self._began < _ENOUGH and batch_idx + 1 < trainer.num_training_batches:
            return
        self._said = True
        left = (trainer.max_epochs or 0) - trainer.current_epoch
        seconds = (now - self._began) / self._steps * trainer.num_training_batches / self.info.counts["train"]
        print(announce_pace(seconds, self.info, left, self.params), flush=True)
