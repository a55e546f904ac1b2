"""Classification: each image has one class. A target is the class's index, int64."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy

from refit.runtime.errors import UserError

ANSWER = "probabilities"
SCORE = "accuracy"
_ROUNDING = 0.05  # tolerance for the sum of bfloat16 probabilities
_DECIMALS = 6

Floats = npt.NDArray[np.floating[Any]]
Ints = npt.NDArray[np.int64]


def loss(
    outputs: Tensor,
    targets: Tensor,
    class_weights: Tensor | None = None,
    label_smoothing: float = 0.0,
    reduction: Literal["mean", "none"] = "mean",
) -> Tensor:
    """Cross-entropy, nats, of logits (N, classes) and targets (N,)."""
    return F.cross_entropy(outputs, targets, class_weights, label_smoothing=label_smoothing, reduction=reduction)


def scores(outputs: Tensor, targets: Tensor) -> Tensor:
    """Whether each prediction is right, bool (N,)."""
    return outputs.argmax(dim=1) == targets


def val_metrics(classes: int) -> dict[str, Metric]:
    # validate_args would synchronise with the device at each step.
    return {"accuracy": MulticlassAccuracy(classes, average="micro", validate_args=False)}


def to_answer(outputs: Tensor) -> Tensor:
    """Logits (N, classes) to probabilities, float32 (N, classes)."""
    return outputs.float().softmax(dim=1)


def check_answer(answer: Tensor) -> None:
    sums = answer.float().sum(dim=1)
    if bool((answer < 0).any() or ((sums - 1).abs() > _ROUNDING).any()):
        raise UserError(
            "probabilities must be >= 0 and sum to 1 for each image; for logits return logits.softmax(dim=1) in forward"
        )


def predictions(answer: Floats) -> Ints:
    """The most probable class of each row, (N,); the first one if probabilities are equal."""
    best: Ints = np.argmax(answer, axis=1).astype(np.int64)
    return best


def outcome_rows(answer: Floats, targets: Ints, classes: Sequence[str]) -> list[dict[str, object]]:
    """One row per image: the actual and the predicted class, and the probability of each."""
    return [
        {
            "actual": classes[target],
            "predicted": classes[best],
            "probability": round(float(row[best]), _DECIMALS),
            "probability_of_actual": round(float(row[target]), _DECIMALS),
        }
        for target, best, row in zip(targets, predictions(answer), answer, strict=True)
    ]


def prediction_rows(
    answer: Floats, classes: Sequence[str], top_k: int, abstain_below: float
) -> list[dict[str, object]]:
    """One row per image: the most probable class, whether the model abstains, and the next `top_k` - 1 classes."""
    return [_prediction_row(row, classes, top_k, abstain_below) for row in answer]


def _prediction_row(row: Floats, classes: Sequence[str], top_k: int, abstain_below: float) -> dict[str, object]:
    best = np.argsort(-row, kind="stable")[:top_k]
    top = float(row[best[0]])
    columns: dict[str, object] = {
        "label": classes[best[0]],
        "probability": round(top, _DECIMALS),
        "abstained": "yes" if top < abstain_below else "no",
    }
    for place, index in enumerate(best[1:], start=2):
        columns |= {f"label_{place}": classes[index], f"probability_{place}": round(float(row[index]), _DECIMALS)}
    return columns
