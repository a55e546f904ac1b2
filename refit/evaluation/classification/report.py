"""Test metrics of a classifier: accuracy with its confidence interval, calibration, and metrics per class.

NumPy and scikit-learn compute everything in float64 on one thread. A metric that the test images do not define, such as
the recall of a class without images, is None, never NaN.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import (
    average_precision_score,
    confusion_matrix,
    precision_recall_curve,
    precision_recall_fscore_support,
    roc_auc_score,
    roc_curve,
)

from refit.evaluation.comparison import wilson_interval
from refit.runtime.errors import UserError
from refit.tasks.classification import predictions

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

CURVE_POINTS = 101  # on the x axis of ROC and precision-recall curves
DECIMALS = 6  # of tables behind plots


@dataclass(frozen=True)
class ClassMetrics:
    """One class against all others."""

    name: str
    images: int
    """Test images of this class."""
    precision: float | None
    """None if no image was predicted as this class."""
    recall: float | None
    """None if no test image is of this class."""
    f1: float | None
    """None if no image is of this class or was predicted as it."""
    roc_auc: float | None
    """None if no test image or every test image is of this class."""
    average_precision: float | None
    """None where roc_auc is."""


@dataclass(frozen=True)
class ReliabilityBin:
    """The images whose highest probability is in (low, high]."""

    low: float
    high: float
    images: int
    confidence: float | None
    """Mean of the highest probabilities. Confidence and accuracy are None if the bin is empty."""
    accuracy: float | None


@dataclass(frozen=True)
class CurvePoint:
    """One x of the one-vs-rest curves: the mean y of all classes (macro), and the lowest and highest y of a class."""

    x: float
    macro: float
    lowest: float
    highest: float


@dataclass(frozen=True)
class ClassificationReport:
    images: int
    confidence: float
    """Confidence level of the interval from accuracy_low to accuracy_high."""
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    macro_f1: float
    """Mean F1 of the classes that have one."""
    loss: float
    """Mean negative log-likelihood of the true class, nats."""
    ece: float
    """Expected calibration error: mean gap between confidence and accuracy (Guo et al. 2017)."""
    brier: float
    """Squared error of the probabilities, summed over classes, averaged over images: 0 to 2."""
    mean_confidence: float
    classes: tuple[ClassMetrics, ...]
    confusion: tuple[tuple[int, ...], ...]
    """Images by true class (row) and predicted class (column)."""
    reliability: tuple[ReliabilityBin, ...]
    roc: tuple[CurvePoint, ...]
    """x: false positive rate, y: the highest true positive rate up to that x. Empty if undefined."""
    precision_recall: tuple[CurvePoint, ...]
    """x: recall, y: precision at the highest threshold that reaches that recall. Empty if undefined."""

    @property
    def mistakes(self) -> int:
        """Images that are predicted wrong."""
        return self.images - sum(row[label] for label, row in enumerate(self.confusion))

    def headline(self) -> str:
        interval = f"{self.accuracy_low:.4f} to {self.accuracy_high:.4f}"
        return f"test accuracy {self.accuracy:.4f} ({interval}) on {self.images:,} images"

    def test_summary(self) -> dict[str, float]:
        """The metrics to compare models by, which become DVC's metrics."""
        names = ("accuracy", "accuracy_low", "accuracy_high", "macro_f1", "loss", "ece", "brier")
        return {name: getattr(self, name) for name in names}

    def tables(self) -> dict[str, list[dict[str, object]]]:
        """Rows by table name."""
        return {
            "classes": self.class_rows(),
            "reliability": self.reliability_rows(),
            "roc": self.roc_rows(),
            "precision_recall": self.precision_recall_rows(),
        }

    def class_rows(self) -> list[dict[str, object]]:
        return [_rounded(asdict(row)) for row in self.classes]

    def reliability_rows(self) -> list[dict[str, object]]:
        """Without empty bins, for which there is nothing to plot."""
        return [_rounded(asdict(row)) for row in self.reliability if row.images]

    def roc_rows(self) -> list[dict[str, object]]:
        return [_curve_row(point, "false_positive_rate") for point in self.roc]

    def precision_recall_rows(self) -> list[dict[str, object]]:
        return [_curve_row(point, "recall") for point in self.precision_recall]


def evaluate(
    probabilities: NDArray[np.floating], labels: Ints, classes: Sequence[str], confidence: float, calibration_bins: int
) -> ClassificationReport:
    """Compute the metrics of predictions for N ≥ 1 test images of K ≥ 2 classes.

    probabilities: (N, K), each row sums to 1. labels: (N,), 0 to K - 1. confidence: level of the accuracy's
    Wilson score interval, between 0 and 1. calibration_bins: number of equal-width bins of the highest probability.
    If probabilities are equal, the first class is the prediction.
    Raises UserError if a probability is not finite, so if the training diverged.
    """
    exact = probabilities.astype(np.float64)
    images, width = exact.shape
    assert images > 0, "a test needs an image"
    assert width == len(classes) >= 2, (width, len(classes))
    assert labels.shape == (images,), (labels.shape, images)
    assert set(np.unique(labels)) <= set(range(width)), "a label without a class"
    if not np.isfinite(exact).all():
        raise UserError(
            "the model's probabilities are not finite: training diverged; lower optimizer.learning_rate and run: "
            "dvc repro"
        )

    predicted = predictions(exact)
    right = predicted == labels
    top = exact.max(axis=1)
    class_metrics = _class_metrics(exact, labels, predicted, classes)
    bins = _reliability(top, right, calibration_bins)
    low, high = wilson_interval(int(right.sum()), images, confidence)
    return ClassificationReport(
        images=images,
        confidence=confidence,
        accuracy=float(right.mean()),
        accuracy_low=low,
        accuracy_high=high,
        macro_f1=float(np.mean([row.f1 for row in class_metrics if row.f1 is not None])),
        loss=_negative_log_likelihood(exact, labels),
        ece=_expected_calibration_error(bins),
        brier=_brier_score(exact, labels),
        mean_confidence=float(top.mean()),
        classes=class_metrics,
        confusion=tuple(tuple(row) for row in confusion_matrix(labels, predicted, labels=range(width)).tolist()),
        reliability=bins,
        roc=_mean_curve(exact, labels, _roc),
        precision_recall=_mean_curve(exact, labels, _precision_recall),
    )


def worst_mistakes(probabilities: NDArray[np.floating], labels: Ints, count: int) -> Ints:
    """Indices of the `count` most confident mistakes (or fewer), the most confident first."""
    wrong = np.flatnonzero(predictions(probabilities) != labels)
    order = np.argsort(-probabilities[wrong].max(axis=1), kind="stable")
    return wrong[order][:count].astype(np.int64)


def _negative_log_likelihood(probabilities: Floats, labels: Ints) -> float:
    """Finite: a probability that float32 rounded to 0 counts as float32's smallest normal number."""
    true = probabilities[np.arange(len(labels)), labels]
    return float(-np.log(np.maximum(true, np.finfo(np.float32).tiny)).mean())


def _brier_score(probabilities: Floats, labels: Ints) -> float:
    distances = probabilities.copy()
    distances[np.arange(len(labels)), labels] -= 1
    return float(np.square(distances).sum(axis=1).mean())


def _class_metrics(
    probabilities: Floats, labels: Ints, predicted: Ints, classes: Sequence[str]
) -> tuple[ClassMetrics, ...]:
    precision, recall, f1, support = precision_recall_fscore_support(
        labels, predicted, labels=range(len(classes)), zero_division=np.nan
    )
    rows = []
    for index, name in enumerate(classes):
        truth = labels == index
        score = probabilities[:, index]
        two_sided = bool(truth.any() and not truth.all())
        rows.append(
            ClassMetrics(
                name=name,
                images=int(support[index]),
                precision=_defined(precision[index]),
                recall=_defined(recall[index]),
                f1=_defined(f1[index]),
                roc_auc=float(roc_auc_score(truth, score)) if two_sided else None,
                average_precision=float(average_precision_score(truth, score)) if two_sided else None,
            )
        )
    return tuple(rows)


def _reliability(top: Floats, right: NDArray[np.bool_], bins: int) -> tuple[ReliabilityBin, ...]:
    edges = np.linspace(0, 1, bins + 1)
    place = np.digitize(top, edges[1:-1], right=True)
    images = np.bincount(place, minlength=bins)
    filled = np.maximum(images, 1)
    confidence = np.bincount(place, weights=top, minlength=bins) / filled
    accuracy = np.bincount(place, weights=right, minlength=bins) / filled
    return tuple(
        ReliabilityBin(
            low=float(edges[index]),
            high=float(edges[index + 1]),
            images=int(images[index]),
            confidence=float(confidence[index]) if images[index] else None,
            accuracy=float(accuracy[index]) if images[index] else None,
        )
        for index in range(bins)
    )


def _expected_calibration_error(bins: Sequence[ReliabilityBin]) -> float:
    gaps = [
        b.images * abs(b.confidence - b.accuracy) for b in bins if b.confidence is not None and b.accuracy is not None
    ]
    return sum(gaps) / sum(b.images for b in bins)


Curve = Callable[[NDArray[np.bool_], Floats, Floats], Floats]


def _mean_curve(probabilities: Floats, labels: Ints, curve: Curve) -> tuple[CurvePoint, ...]:
    """Sample each class's curve at the same x values; at each x take the mean, the lowest and the highest y."""
    grid = np.linspace(0, 1, CURVE_POINTS)
    present = [index for index in range(probabilities.shape[1]) if 0 < (labels == index).sum() < len(labels)]
    if not present:
        return ()
    values = np.stack([curve(labels == index, probabilities[:, index], grid) for index in present])
    columns = (grid, values.mean(axis=0), values.min(axis=0), values.max(axis=0))
    return tuple(CurvePoint(*point) for point in zip(*(column.tolist() for column in columns), strict=True))


def _roc(truth: NDArray[np.bool_], score: Floats, grid: Floats) -> Floats:
    false_positive_rate, true_positive_rate, _ = roc_curve(truth, score, drop_intermediate=False)
    values: Floats = true_positive_rate[np.searchsorted(false_positive_rate, grid, side="right") - 1]
    return values


def _precision_recall(truth: NDArray[np.bool_], score: Floats, grid: Floats) -> Floats:
    precision, recall, _ = precision_recall_curve(truth, score)
    # scikit-learn starts with the lowest threshold and ends with a point (0, 1) that belongs to no threshold.
    precision, recall = precision[-2::-1], recall[-2::-1]
    values: Floats = precision[np.searchsorted(recall, grid, side="left")]
    return values


def _defined(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _curve_row(point: CurvePoint, x: str) -> dict[str, object]:
    return _rounded({x: point.x, "macro": point.macro, "lowest": point.lowest, "highest": point.highest})


def _rounded(row: dict[str, object]) -> dict[str, object]:
    return {key: round(value, DECIMALS) if isinstance(value, float) else value for key, value in row.items()}
