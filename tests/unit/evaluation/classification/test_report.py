"""A classifier's metrics compared with values calculated by hand and with torchmetrics."""

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torchmetrics.functional import classification as independent

from refit.evaluation.classification.report import (
    CURVE_POINTS,
    ClassificationReport,
    evaluate,
    worst_mistakes,
)
from refit.runtime.errors import UserError
from refit.tasks.classification import predictions

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


def report_of(probabilities: Floats, labels: Ints, bins: int = 10) -> ClassificationReport:
    return evaluate(probabilities, labels, [f"class {i}" for i in range(probabilities.shape[1])], 0.95, bins)


def four_images() -> tuple[Floats, Ints]:
    rows = [[0.4, 0.3, 0.3], [0.45, 0.3, 0.25], [0.8, 0.1, 0.1], [0.6, 0.2, 0.2]]
    return np.array(rows, np.float32), np.array([0, 1, 0, 2])


def random_images(images: int, classes: int) -> tuple[Floats, Ints]:
    generator = np.random.default_rng(0)
    labels = generator.integers(0, classes, images)
    logits = generator.normal(size=(images, classes))
    logits[np.arange(images), labels] += 1.5
    odds = np.exp(logits)
    return (odds / odds.sum(axis=1, keepdims=True)).astype(np.float32), labels


def test_metrics_of_four_images_match_hand_calculation() -> None:
    report = report_of(*four_images(), bins=2)
    assert report.accuracy == 0.5
    assert report.loss == pytest.approx(-(math.log(0.4) + math.log(0.3) + math.log(0.8) + math.log(0.2)) / 4)
    assert report.ece == pytest.approx((2 * abs(0.425 - 0.5) + 2 * abs(0.7 - 0.5)) / 4)
    assert report.brier == pytest.approx((0.54 + 0.755 + 0.06 + 1.04) / 4)
    assert report.macro_f1 == pytest.approx((2 / 3 + 0 + 0) / 3)
    assert report.confusion == ((2, 0, 0), (1, 0, 0), (1, 0, 0))
    assert [row.precision for row in report.classes] == [0.5, None, None]
    assert [row.recall for row in report.classes] == [1.0, 0.0, 0.0]
    assert [row.images for row in report.classes] == [2, 1, 1]
    assert [(row.images, row.accuracy) for row in report.reliability] == [(2, 0.5), (2, 0.5)]


def test_metrics_match_torchmetrics() -> None:
    probabilities, labels = random_images(500, 5)
    report = report_of(probabilities, labels, bins=15)
    p, y = torch.from_numpy(probabilities), torch.from_numpy(labels)
    assert report.accuracy == pytest.approx(float(independent.multiclass_accuracy(p, y, 5, average="micro")))
    assert report.macro_f1 == pytest.approx(float(independent.multiclass_f1_score(p, y, 5, average="macro")))
    assert report.ece == pytest.approx(float(independent.multiclass_calibration_error(p, y, 5, n_bins=15)), rel=1e-5)
    areas = independent.multiclass_auroc(p, y, 5, average=None)
    assert [row.roc_auc for row in report.classes] == pytest.approx(areas.tolist(), rel=1e-5)
    precisions = independent.multiclass_average_precision(p, y, 5, average=None)
    assert [row.average_precision for row in report.classes] == pytest.approx(precisions.tolist(), rel=1e-5)


def test_curves_of_two_classes_match_hand_calculation() -> None:
    """By descending score for class 1: right, wrong, right. For class 0 the order is reversed."""
    report = report_of(np.array([[0.1, 0.9], [0.3, 0.7], [0.4, 0.6]], np.float32), np.array([1, 0, 1]))
    assert len(report.roc) == len(report.precision_recall) == CURVE_POINTS
    start, end = report.roc[0], report.roc[-1]
    assert (start.x, start.lowest, start.highest) == (0.0, 0.0, 0.5)
    assert (end.x, end.lowest, end.highest) == (1.0, 1.0, 1.0)
    half, full = report.precision_recall[CURVE_POINTS // 2], report.precision_recall[-1]
    assert (half.x, half.lowest, half.highest) == (0.5, 0.5, 1.0)
    assert (full.lowest, full.highest) == pytest.approx((0.5, 2 / 3))


def test_confidence_on_a_bins_edge_belongs_to_the_bin_below() -> None:
    report = report_of(np.array([[0.5, 0.5]], np.float32), np.array([0]), bins=2)
    assert [row.images for row in report.reliability] == [1, 0]


def test_with_equal_probabilities_the_first_class_is_predicted() -> None:
    assert predictions(np.array([[0.2, 0.4, 0.4]], np.float32)).tolist() == [1]


def test_worst_mistakes_are_sorted_by_confidence_and_contain_no_correct_prediction() -> None:
    probabilities, labels = four_images()
    assert worst_mistakes(probabilities, labels, 24).tolist() == [3, 1]
    assert worst_mistakes(probabilities, labels, 1).tolist() == [3]
    assert worst_mistakes(probabilities, labels, 0).tolist() == []


def test_a_class_without_images_has_no_recall_and_does_not_lower_the_macro_f1() -> None:
    report = report_of(np.array([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1]], np.float32), np.array([0, 1]))
    absent = report.classes[2]
    assert (absent.images, absent.precision, absent.recall, absent.f1, absent.roc_auc) == (0, None, None, None, None)
    assert report.macro_f1 == 1.0


def test_probabilities_of_a_diverged_model_are_a_user_error() -> None:
    with pytest.raises(UserError, match=r"not finite.*learning_rate"):
        report_of(np.array([[np.nan, np.nan]], np.float32), np.array([0]))


def test_the_summary_is_seven_numbers() -> None:
    summary = report_of(*four_images()).test_summary()
    assert list(summary) == ["accuracy", "accuracy_low", "accuracy_high", "macro_f1", "loss", "ece", "brier"]
    assert {type(value) for value in summary.values()} == {float}


def test_tables_have_no_empty_bin_and_at_most_six_decimals() -> None:
    report = report_of(*random_images(200, 5))
    assert all(row["images"] for row in report.reliability_rows())
    rows = [*report.reliability_rows(), *report.roc_rows(), *report.precision_recall_rows(), *report.class_rows()]
    numbers = [value for row in rows for value in row.values() if isinstance(value, float)]
    assert numbers == [round(number, 6) for number in numbers]
