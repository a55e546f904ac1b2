"""The fit of a head alone: logistic regression on the features of a pretrained network (a linear probe)."""

from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import Logger
from torch import Tensor, nn
from torch.utils.data import DataLoader

from refit.batches.datamodule import Batch, WeightedBatch
from refit.params import FitParams, TrainerParams
from refit.systems.classifier import Classifier
from refit.systems.features import output_layer
from refit.training.trainer import make_trainer

STRENGTHS = tuple(10 ** (1 - number / 2) for number in range(11))
"""Of the L2 penalty, for fit.l2 = auto: from 10 to 0.0001."""
_ITERATIONS = 200  # of L-BFGS, for one strength
_PATIENCE = 3  # strengths in a row that are no better than an earlier one; weaker ones are then not tried


class Probe(pl.LightningModule):
    """A linear layer that is trained on all images at once, for one strength of its L2 penalty per epoch.

    The strengths fall, and each epoch begins with the layer of the epoch before, which is close to its own solution
    (Friedman et al. 2010, "Regularization Paths for Generalized Linear Models via Coordinate Descent"). The loss is
    convex; L-BFGS with a strong Wolfe line search minimises it (Liu and Nocedal 1989).

    The features are centred and divided by one number. Scaling each to the same variance would give those that hardly
    vary the same weight as the others; on photos that was less accurate (docs/systems.md).
    """

    def __init__(
        self, classifier: Classifier, train: Batch | WeightedBatch, val: Batch | WeightedBatch, fit: FitParams
    ) -> None:
        """`train` and `val` have features, float32 (N, D), in place of images."""
        super().__init__()
        self.classifier, self.fit_params = classifier, fit
        self.mean = train.images.mean(0)
        self.scale = (train.images - self.mean).square().mean().sqrt().clamp_min(1e-6)
        self.batches = {"train": self._scaled(train), "val": self._scaled(val)}
        self.strengths: Sequence[float] = STRENGTHS if fit.l2 == "auto" else (fit.l2,)
        layer = output_layer(classifier.network)
        self.layer = nn.Linear(layer.in_features, layer.out_features)
        for weight in self.layer.parameters():
            nn.init.zeros_(weight)
        self.rows: list[dict[str, float]] = []
        """One per epoch, as in history.csv."""
        self.weights: list[dict[str, Tensor]] = []
        """Of each epoch."""

    def _scaled(self, batch: Batch | WeightedBatch) -> Batch | WeightedBatch:
        return batch._replace(images=(batch.images - self.mean) / self.scale)

    def train_dataloader(self) -> "DataLoader[Batch]":
        batches: Any = [self.batches["train"]]
        return DataLoader(batches, batch_size=None)

    def training_step(self, batch: Batch | WeightedBatch, batch_idx: int) -> Tensor:
        penalty = self.strengths[self.current_epoch] / 2 * self.layer.weight.square().sum()
        return self.classifier.training_loss(self.layer(batch.images), batch) + penalty

    def on_train_epoch_start(self) -> None:
        self.trainer.optimizers[0].state.clear()  # the curvature of another strength's loss

    def on_train_epoch_end(self) -> None:
        task, metrics = self.classifier.task, {}
        for split, here in self.batches.items():
            batch = type(here)(*(part.to(self.device) for part in here))
            with torch.no_grad():
                logits = self.layer(batch.images)
                plain = task.loss(logits, batch.labels)
                loss = self.classifier.training_loss(logits, batch) if split == "train" else plain
                metrics[f"{split}_loss"] = float(loss)
                metrics[f"{split}_{task.SCORE}"] = float(task.scores(logits, batch.labels).float().mean())
        strength = self.strengths[self.current_epoch]
        self.log_dict({"l2": strength, **metrics})
        print(f"L2 penalty {strength:.3g}", *(f"{name} {value:.4f}" for name, value in metrics.items()), sep="  ")
        self.rows.append({"epoch": self.current_epoch + 1, **metrics, "l2": strength})
        self.weights.append({name: weight.detach().clone() for name, weight in self.layer.state_dict().items()})
        self.trainer.should_stop = len(self.rows) - self.best["epoch"] >= _PATIENCE

    @property
    def best(self) -> dict[str, float]:
        """The row of the best epoch by fit.monitor; the first of equals."""
        best = min if self.fit_params.monitor_mode == "min" else max
        return best(self.rows, key=lambda row: row[self.fit_params.monitor])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.LBFGS(
            self.layer.parameters(), max_iter=_ITERATIONS, tolerance_grad=1e-5, tolerance_change=1e-9,
            line_search_fn="strong_wolfe",
        )  # fmt: skip

    def put_into_classifier(self, epoch: int) -> None:
        """Set the classifier's head to the layer after `epoch`, which is counted from 1, for features as they are."""
        weights = {name: weight.double().cpu() for name, weight in self.weights[epoch - 1].items()}
        layer = output_layer(self.classifier.network)
        scaled = weights["weight"] / self.scale
        with torch.no_grad():
            layer.weight.copy_(scaled)
            layer.bias.copy_(weights["bias"] - scaled @ self.mean.double())


def train_head(
    classifier: Classifier,
    train: Batch | WeightedBatch,
    val: Batch | WeightedBatch,
    fit: FitParams,
    trainer_params: TrainerParams,
    loggers: Sequence[Logger] = (),
) -> tuple[list[dict[str, float]], dict[str, float]]:
    """Train the head of `classifier` on features, in place of images, float32 (N, D).

    Returns the rows of history.csv, one per strength of the L2 penalty, and the best of them by fit.monitor, whose
    layer the classifier then has. The first of equals wins, which is the strongest.
    """
    classifier.balance(train.labels.numpy())
    probe = Probe(classifier, train, val, fit)
    trainer = make_trainer(
        trainer_params.model_copy(update={"precision": "32-true"}), quiet=True, max_epochs=len(probe.strengths),
        logger=list(loggers),
    )  # fmt: skip
    trainer.fit(probe)
    probe.put_into_classifier(int(probe.best["epoch"]))
    return probe.rows, probe.best
