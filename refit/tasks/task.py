"""The interface of a task. A task is a module that defines these names: see classification.py."""

from collections.abc import Sequence
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor
from torchmetrics import Metric

from refit.tasks import classification

Floats = npt.NDArray[np.floating[Any]]
Targets = npt.NDArray[Any]


class Task(Protocol):
    ANSWER: str
    """Name of the task's answer in the outputs of a system's `forward`."""
    SCORE: str
    """Name of the metric that compares models: the mean of the scores of all images."""

    def loss(
        self,
        outputs: Tensor,
        targets: Tensor,
        class_weights: Tensor | None = None,
        label_smoothing: float = 0.0,
        reduction: Literal["mean", "none"] = "mean",
    ) -> Tensor:
        """The training loss of a network's outputs, (N, outputs): the mean, or one loss per image, (N,)."""
        ...

    def scores(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """A score for each image, (N,), from 0 to 1 (best)."""
        ...

    def val_metrics(self, classes: int) -> dict[str, Metric]:
        """The validation metrics by name, without the loss. They are updated with outputs and targets."""
        ...

    def to_answer(self, outputs: Tensor) -> Tensor:
        """The answer for a user, from a network's outputs."""
        ...

    def check_answer(self, answer: Tensor) -> None:
        """Raises UserError if `answer` does not have the form that to_answer returns."""
        ...

    def predictions(self, answer: Floats) -> Targets:
        """The target that each answer predicts, (N,)."""
        ...

    def outcome_rows(self, answer: Floats, targets: Targets, classes: Sequence[str]) -> list[dict[str, object]]:
        """One row per test image: its target and the answer."""
        ...

    def prediction_rows(
        self, answer: Floats, classes: Sequence[str], top_k: int, abstain_below: float
    ) -> list[dict[str, object]]:
        """One row per new image: the answer in readable form."""
        ...


TASKS: dict[str, Task] = {"classification": classification}
