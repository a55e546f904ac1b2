"""The interface of a task. A task is a module that defines these names: see classification.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from refit.tasks import classification

if TYPE_CHECKING:
    from torch import Tensor
    from torchmetrics import Metric

Floats = npt.NDArray[np.floating[Any]]
Targets = npt.NDArray[Any]


class Task(Protocol):
    ANSWER: str
    """Name of the task's answer in the outputs of a system's `forward`."""
    SCORE: str
    """Name of the metric that compares models: the mean of the scores of all images."""
    BASELINE: tuple[str, str]
    """Name of the simplest baseline in findings.json, and what it does, as in: it is no better than ..."""

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

    def predicted(self, answer: Floats, classes: Sequence[str]) -> list[str]:
        """Each prediction as text."""
        ...

    def outcome_rows(self, answer: Floats, targets: Targets, classes: Sequence[str]) -> list[dict[str, object]]:
        """One row per test image: its target and the answer. `actual` is the target as text, and `predicted` the
        prediction, as in predicted()."""
        ...

    def outcome_scores(self, actual: Sequence[str], predicted: Sequence[str]) -> npt.NDArray[Any]:
        """A score for each image, bool or float (N,), from 0 to 1 (best), by its columns in outcome_rows."""
        ...

    def can_predict(self, actual: Sequence[str], classes: Sequence[str]) -> npt.NDArray[np.bool_]:
        """Whether a model of `classes` can predict each actual target, (N,)."""
        ...

    def summary(self, test: Mapping[str, Any], baselines: Mapping[str, float]) -> list[tuple[str, str]]:
        """The result in a few lines, each with its name. `test` is test.json, `baselines` those of findings.json."""
        ...

    def prediction_rows(
        self, answer: Floats, classes: Sequence[str], top_k: int, abstain_below: float
    ) -> list[dict[str, object]]:
        """One row per new image: the answer in readable form."""
        ...


TASKS: dict[str, Task] = {"classification": classification}
