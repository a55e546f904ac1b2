"""How long a fit takes, from the first steps that were run. It is only shown: it is in no output of a stage."""

import math
import time
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from refit.artifacts.prepared import DatasetInfo
from refit.batches.augment import trained_size
from refit.params import AugmentParams, TrainerParams
from refit.runtime.cores import usable_cores
from refit.runtime.progress import duration

_VALIDATION = 0.4  # seconds of validating an image ÷ of training on one of its size (benchmarks/README.md)
_ENOUGH = 3.0  # seconds of steps that make an estimate
_LONG = 600.0  # seconds of a fit that deserve advice
_SIDE = 48  # pixels; larger images can be made smaller
_WRONG = 0.25  # of the time of an epoch: an estimate that is further off is corrected
_SHORT = 60.0  # seconds that are left; no correction for less


def announce_pace(
    seconds_an_image: float, info: DatasetInfo, epochs: int, trainer: TrainerParams, augmentation: AugmentParams
) -> str:
    """A line with the time of an epoch and of `epochs` epochs, and the keys that shorten it if that is long.

    seconds_an_image: of a training step, on images of augment.train_size.
    """
    epoch = _seconds_an_epoch(seconds_an_image, info, augmentation)
    side = max(info.shape[1:]) if augmentation.train_size is None else augmentation.train_size
    line = f"about {duration(epoch)} an epoch, {duration(epoch * epochs)} for {epochs} epochs"
    if epoch * epochs < _LONG:
        return line
    remedies = ["fewer fit.max_epochs", "a smaller model.network or model.width"]
    if side > _SIDE:
        key = "data.image_size" if augmentation.train_size is None else "augment.train_size"
        remedies.insert(0, f"{key}: {side // 2} (a quarter of the work)")
    cores = usable_cores()
    if trainer.accelerator in ("auto", "cpu") and trainer.threads < cores:
        remedies.insert(0, f"trainer.threads: auto ({cores} cores)")
    return f"{line}\nto shorten it: {'; '.join(remedies)}"


def _seconds_an_epoch(seconds_an_image: float, info: DatasetInfo, augmentation: AugmentParams) -> float:
    height, width = info.shape[1:]
    larger = height * width / math.prod(trained_size(augmentation, height, width))  # an image of validation
    return seconds_an_image * (info.counts["train"] + _VALIDATION * larger * info.counts["val"])


class Pace(Callback):
    """Prints announce_pace's line once, after the first seconds or the first epoch of a fit, and a corrected one if the
    first epoch takes another time."""

    def __init__(self, info: DatasetInfo, trainer: TrainerParams, augmentation: AugmentParams) -> None:
        self.info, self.params, self.augmentation = info, trainer, augmentation
        self._began: float | None = None
        self._steps = 0
        self._said: float | None = None  # seconds of an epoch
        self._first = False  # whether the first epoch runs, from its start

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._first = self._began is None  # not called where a fit is resumed in the middle of an epoch

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any,
                           batch_idx: int) -> None:  # fmt: skip
        if self._said is not None or not trainer.is_global_zero:
            return
        now = time.monotonic()
        if self._began is None:  # libraries warm up in the first step
            self._began = now
            return
        self._steps += 1
        if now - self._began < _ENOUGH and batch_idx + 1 < trainer.num_training_batches:
            return
        left = (trainer.max_epochs or 0) - trainer.current_epoch
        seconds = (now - self._began) / self._steps * trainer.num_training_batches / self.info.counts["train"]
        self._said = _seconds_an_epoch(seconds, self.info, self.augmentation)
        print(announce_pace(seconds, self.info, left, self.params, self.augmentation), flush=True)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._began is None or self._said is None or not self._first:
            return
        steps = trainer.num_training_batches
        epoch = (time.monotonic() - self._began) * steps / (steps - 1)  # with its validation
        left = (trainer.max_epochs or 0) - trainer.current_epoch - 1
        if abs(epoch - self._said) > _WRONG * self._said and max(epoch, self._said) * left > _SHORT:
            print(f"an epoch takes {duration(epoch)}, not {duration(self._said)}: about {duration(epoch * left)} left",
                  flush=True)  # fmt: skip
