"""What the rest of Refit asks of a task. A task is a module with these names: see classification.py."""

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
    """Name of the task's answer among what a system's `forward` returns."""
    SCORE: str
    """Name of the mean per-image score, in metrics: the measure that compares models."""

    def loss(
        self,
        outputs: Tensor,
        targets: Tensor,
        class_weights: Tensor | None = None,
        label_smoothing: float = 0.0,
        reduction: Literal["mean", "none"] = "mean",
    ) -> Tensor:
        """The training loss of a network's outputs, (N, outputs): their mean, or one each, (N,)."""
        ...

    def scores(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """How good each output is, (N,), 0 to 1."""
        ...

    def val_metrics(self, classes: int) -> dict[str, Metric]:
        """Metrics of the validation, updated with outputs and targets, by name; not the loss."""
        ...

    def to_answer(self, outputs: Tensor) -> Tensor:
        """What a user is given for a network's outputs."""
        ...

    def check_answer(self, answer: Tensor) -> None:
        """Raises UserError where `answer` cannot be what to_answer returns."""
        ...

    def outcome_rows(self, answer: Floats, targets: Targets, classes: Sequence[str]) -> list[dict[str, object]]:
        """One row per test image: its target, the answer, and how they go together."""
        ...

    def prediction_rows(
        self, answer: Floats, classes: Sequence[str], top_k: int, abstain_below: float
    ) -> list[dict[str, object]]:
        """One row per new image: the answer as a person reads it."""
        ...


TASKS: dict[str, Task] = {"classification": classification}
