"""The image classifier as a LightningModule: a network with its task's loss, metrics and answers."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric

from refit.batches.datamodule import Batch, Mixed, PreparedData, TrainBatch, WeightedBatch, WeightedMixedBatch
from refit.params import LossParams, OptimizerParams
from refit.systems.system import System
from refit.tasks.task import TASKS, Task


class Classifier(System):
    """Images to class probabilities."""

    def __init__(
        self,
        network: nn.Module,
        classes: int,
        optimizer: OptimizerParams | None = None,
        loss: LossParams | None = None,
        learning_rate: float = 0.0,
        test_time_flip: bool = False,
        task: str = "classification",
    ) -> None:
        """`network` maps uint8 images (N, C, H, W) to logits (N, classes). With `test_time_flip` the logits of each
        image and its mirror image are averaged. `optimizer`, `loss` and `learning_rate` are needed for training only.

        Label smoothing, weights of classes and images, and mixed labels change the training loss and train_loss;
        val_loss is the plain loss. Raises UserError if loss.class_weights is a list whose length is not `classes`.
        """
        self.task_name = task
        self.train_metrics = ("loss", self.task.SCORE)
        # nan_strategy: a check for NaN would synchronise with the device at each step.
        val_metrics = {"loss": MeanMetric(nan_strategy="disable"), **self.task.val_metrics(classes)}
        super().__init__(network, optimizer, learning_rate, val_metrics)
        self.label_smoothing = loss.label_smoothing if loss else 0.0
        self.balanced = loss is not None and loss.class_weights == "balanced"
        self.class_weights: Tensor | None
        self.register_buffer("class_weights", _class_weights(loss, classes), persistent=False)
        self.test_time_flip = test_time_flip

    @property
    def task(self) -> Task:
        return TASKS[
            self.task_name
        ]  # not an attribute: weight averaging deep-copies the system, and a module cannot be copied

    def forward(self, images: Tensor) -> Tensor:
        """Probabilities, float32 (N, classes), of uint8 images (N, C, H, W)."""
        logits: Tensor = self.network(images)
        if self.test_time_flip:
            logits = (logits + self.network(images.flip(3))) / 2
        return self.task.to_answer(logits)

    def on_fit_start(self) -> None:
        super().on_fit_start()
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if isinstance(data, PreparedData):  # the labels were not known before
            self.balance(data.train.labels)

    def balance(self, labels: npt.NDArray[np.int64]) -> None:
        """Set the class weights for these training labels, if loss.class_weights is balanced."""
        if self.balanced:
            assert self.class_weights is not None
            images = np.bincount(labels, minlength=len(self.class_weights))
            balanced = images.sum() / (len(images) * np.maximum(images, 1))
            self.class_weights.copy_(torch.from_numpy(balanced))

    def training_step(self, batch: TrainBatch, batch_idx: int) -> Tensor:
        logits = self.network(batch.images)
        loss = self.training_loss(logits, batch)
        with torch.no_grad():
            score = self._score(logits, batch)
            self.add_train_metrics(len(batch.labels), torch.stack((loss * len(batch.labels), score)))
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        logits = self.network(batch.images)
        self.update_val_metric("loss", self.task.loss(logits, batch.labels, reduction="none"))
        self.update_val_metric(self.task.SCORE, logits, batch.labels)

    def training_loss(self, logits: Tensor, batch: TrainBatch) -> Tensor:
        """The mean loss, with label smoothing and the weights of classes and images, of logits (B, classes)."""
        if self.class_weights is None and isinstance(batch, Batch):
            return self.task.loss(logits, batch.labels, label_smoothing=self.label_smoothing)
        losses = self._losses(logits, batch.labels)
        if isinstance(batch, WeightedBatch | WeightedMixedBatch):
            losses = batch.weights * losses
        if isinstance(batch, Mixed):
            others = self._losses(logits, batch.other_labels)
            if isinstance(batch, WeightedMixedBatch):
                others = batch.other_weights * others
            losses = batch.lam * losses + (1 - batch.lam) * others
        # Divide by the number of images, not by the sum of their weights, so that accumulated micro-batches give the
        # same step as one batch.
        return losses.mean()

    def _losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        return self.task.loss(logits, labels, self.class_weights, self.label_smoothing, reduction="none")

    def _score(self, logits: Tensor, batch: TrainBatch) -> Tensor:
        """Sum over the images; the score of a mixed image is the mean over its two labels, weighted by lam."""
        scores = self.task.scores(logits, batch.labels)
        if not isinstance(batch, Mixed):
            return scores.sum()
        return (batch.lam * scores + (1 - batch.lam) * self.task.scores(logits, batch.other_labels)).sum()


def _class_weights(loss: LossParams | None, classes: int) -> Tensor | None:
    """Float32 (classes,), or None without weights. Balanced weights are ones until the fit starts."""
    if loss is None or loss.class_weights == "none":
        return None
    loss.check_class_weights(classes)
    weights: Sequence[float] = [1.0] * classes if loss.class_weights == "balanced" else loss.class_weights
    return torch.tensor(weights)
