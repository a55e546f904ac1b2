"""`make sanity`: check that the system in params.yaml can memorise a few images. If it cannot, something is broken."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

from refit.artifacts.choices import read_learning_rate
from refit.artifacts.paths import LEARNING_RATE
from refit.artifacts.prepared import read_info
from refit.batches.datamodule import PreparedData
from refit.params import OptimizerParams, Params, load_params
from refit.runtime.command import run_command
from refit.runtime.errors import UserError
from refit.runtime.stage import run_stage
from refit.systems.build import build_system
from refit.training.trainer import make_trainer

READS = ("seed", "augment.train_size", "model", "optimizer", "loss", "fit", "trainer")
IMAGES = 32
STEPS = 300
SECONDS = 50
EVERY = 5  # steps between two validations
MEMORISED = 0.1  # fraction of the first loss that means success, for a system without accuracy
GUESSING = 0.8  # fraction of the first loss above which nothing was learned from the labels
SHOWN = 10  # points of the curve


def main(params: Params) -> None:
    """Print the curve; all layers learn, also those that a fit would freeze. Raises UserError with the likely causes if
    the system could not memorise the images."""
    info, rate = read_info(), _learning_rate(params.optimizer)
    pl.seed_everything(params.seed, verbose=False)
    constant = params.optimizer.model_copy(update={"schedule": "constant"})
    system = build_system(params.model, info, constant, params.loss, rate)
    data = PreparedData(params.augment, IMAGES, IMAGES, params.seed)
    data.only(balanced_subset(data.train.labels))

    curve = memorise(system, data, params)
    curve.show()
    images = len(data.train.labels)
    if not curve.is_memorised():
        causes = "\n".join(f"likely: {cause}" for cause in curve.causes(rate))
        raise UserError(f"could not memorise {images} images in {curve.steps} steps\n{causes}")
    print(f"memorised {images} images in {curve.steps} steps")


def balanced_subset(labels: npt.NDArray[np.int64], images: int = IMAGES) -> npt.NDArray[np.int64]:
    """The rows of at most `images` images: the first of each class, then the second of each, and so on."""
    of_class = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    turn = np.concatenate([np.arange(len(rows)) for rows in of_class])
    return np.concatenate(of_class)[np.argsort(turn, kind="stable")][:images]


def memorise(system: pl.LightningModule, data: PreparedData, params: Params) -> "Curve":
    """Train on the images of `data`, all in one batch, until they are memorised or a limit is reached."""
    if not any(weight.requires_grad for weight in system.parameters()):
        raise UserError("all weights are frozen (requires_grad is False): nothing can be trained")
    before = {name: weight.detach().clone() for name, weight in system.named_parameters()}
    curve = Curve()
    trainer = make_trainer(
        params.trainer,
        max_epochs=STEPS,
        max_time={"seconds": SECONDS},
        check_val_every_n_epoch=EVERY,
        gradient_clip_val=params.fit.gradient_clip_val,
        callbacks=[curve],
        quiet=True,
    )
    trainer.fit(system, datamodule=data)
    after = {name: weight.detach().to(before[name].device) for name, weight in system.named_parameters()}
    curve.steps = trainer.global_step
    curve.unchanged = [name for name in before if torch.equal(before[name], after[name])]
    return curve


@dataclass
class Curve(Callback):
    """Records the metrics on the training images every few steps, and ends the fit when they are memorised."""

    points: list[dict[str, float]] = field(default_factory=list)
    steps: int = 0
    unchanged: Sequence[str] = ()
    """Weights that did not change."""

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val_")}
        if "val_loss" not in metrics:
            raise UserError(f"{type(pl_module).__name__} logs no val_loss in its validation_step; see docs/systems.md")
        self.points.append({"step": trainer.global_step, **metrics})
        trainer.should_stop = self.is_memorised() or not math.isfinite(metrics["val_loss"])

    def is_memorised(self) -> bool:
        if not self.points:
            return False
        first, last = self.points[0], self.points[-1]
        return (
            last["val_accuracy"] == 1 if "val_accuracy" in last else last["val_loss"] <= MEMORISED * first["val_loss"]
        )

    def show(self) -> None:
        for point in self.points[:: max(1, len(self.points) // SHOWN)]:
            print("  ".join(f"{name} {value:.4g}" for name, value in point.items()))

    def causes(self, rate: float) -> list[str]:
        """Why the system could not memorise the images, the most likely cause first."""
        if not self.points:
            return [f"{SECONDS} s are too short for {EVERY} steps: use smaller images (data.image_size) or a smaller "
                    "network"]  # fmt: skip
        first, last = self.points[0]["val_loss"], self.points[-1]["val_loss"]
        causes = []
        if self.unchanged:
            some = ", ".join(self.unchanged[:3]) + (", ..." if len(self.unchanged) > 3 else "")
            causes.append(
                f"{len(self.unchanged)} weights never changed ({some}): they are frozen, configure_optimizers does not "
                "give them to the optimizer, the loss does not depend on them, or a learning rate of "
                f"{rate:.3g} is so low that their changes are rounded to zero"
            )
        if not math.isfinite(last):
            causes.append(f"the loss diverged: a learning rate of {rate:.3g} is too high")
        elif last > GUESSING * first:
            causes.append(
                "the loss is that of guessing: the labels do not match the images (shuffled, or from another batch), "
                f"or a learning rate of {rate:.3g} is far too high or too low"
            )
        else:
            causes.append(
                f"the loss falls from {first:.3g} to {last:.3g}, but not far enough: the network is too small, there "
                f"is too much dropout or optimizer.weight_decay, or a learning rate of {rate:.3g} is too low"
            )
        return causes


def _learning_rate(optimizer: OptimizerParams) -> float:
    """The learning rate that fit uses, or the fallback if find_lr has not run."""
    if optimizer.learning_rate != "auto":
        return optimizer.learning_rate
    return read_learning_rate().learning_rate if LEARNING_RATE.is_file() else optimizer.fallback_learning_rate


if __name__ == "__main__":
    run_command(lambda: run_stage(lambda: main(load_params().only(*READS))))
