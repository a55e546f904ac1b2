"""Classification: each image has one class. A target is the class's index, int64.

PyTorch is imported where it is used, so that commands which only read outcomes start at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from refit.runtime.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor
    from torchmetrics import Metric

ANSWER = "probabilities"
SCORE = "accuracy"
BASELINE = "majority", "always answering with the largest class"
_ROUNDING = 0.05  # tolerance for the sum of bfloat16 probabilities
_DECIMALS = 6

Floats = npt.NDArray[np.floating[Any]]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


def loss(
    outputs: Tensor,
    targets: Tensor,
    class_weights: Tensor | None = None,
    label_smoothing: float = 0.0,
    reduction: Literal["mean", "none"] = "mean",
) -> Tensor:
    """Cross-entropy, nats, of logits (N, classes) and targets (N,)."""
    from torch.nn.functional import cross_entropy

    return cross_entropy(outputs, targets, class_weights, label_smoothing=label_smoothing, reduction=reduction)


def scores(outputs: Tensor, targets: Tensor) -> Tensor:
    """Whether each prediction is right, bool (N,)."""
    return outputs.argmax(dim=1) == targets


def val_metrics(classes: int) -> dict[str, Metric]:
    from torchmetrics.classification import MulticlassAccuracy

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


def predicted(answer: Floats, classes: Sequence[str]) -> list[str]:
    """The name of the most probable class of each row."""
    return [classes[best] for best in predictions(answer)]


def outcome_rows(answer: Floats, targets: Ints, classes: Sequence[str]) -> list[dict[str, object]]:
    """One row per image: the actual and the predicted class, and the probability of each."""
    return [
        {
            "actual": classes[target],
            "predicted": name,
            "probability": round(float(row.max()), _DECIMALS),
            "probability_of_actual": round(float(row[target]), _DECIMALS),
        }
        for target, name, row in zip(targets, predicted(answer, classes), answer, strict=True)
    ]


def outcome_scores(actual: Sequence[str], predicted: Sequence[str]) -> Bools:
    """Whether each predicted class is the actual one, bool (N,)."""
    return np.array([one == other for one, other in zip(actual, predicted, strict=True)], bool)


def can_predict(actual: Sequence[str], classes: Sequence[str]) -> Bools:
    """Whether each actual class is one of `classes`, bool (N,)."""
    return np.array([name in classes for name in actual], bool)


def summary(test: Mapping[str, Any], baselines: Mapping[str, float]) -> list[tuple[str, str]]:
    return [
        (
            "test accuracy",
            f"{test['accuracy']:.4f} (confidence interval {test['accuracy_low']:.4f} to {test['accuracy_high']:.4f})",
        ),
        (
            "for comparison",
            f"largest class {baselines['majority']:.4f}, nearest training images {baselines['neighbours']:.4f}",
        ),
        ("macro F1", f"{test['macro_f1']:.4f}"),
        ("ECE", f"{test['ece']:.4f}"),
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
