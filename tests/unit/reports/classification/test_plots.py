"""The pictures of a classifier, for any number of classes, names and mistakes."""

import io
import json
from dataclasses import asdict

import numpy as np
import pytest
from PIL import Image

from refit.evaluation.classification.report import evaluate
from refit.reports.classification import plots
from tests.unit.evaluation.classification.test_report import random_images, report_of


@pytest.mark.parametrize(
    ("probabilities", "labels"),
    [
        pytest.param([[0.7, 0.3]], [0], id="one image"),
        pytest.param([[1, 0], [0, 1]], [0, 1], id="perfect"),
        pytest.param([[1, 0, 0], [0, 1, 0]], [1, 0], id="confident and wrong"),
        pytest.param([[0.5, 0.3, 0.2], [0.2, 0.7, 0.1]], [0, 1], id="a class without images"),
    ],
)
def test_every_metric_is_a_json_number_or_null_and_every_picture_is_drawn(
    probabilities: list[list[float]], labels: list[int]
) -> None:
    report = report_of(np.array(probabilities, np.float32), np.array(labels))
    assert json.loads(json.dumps(asdict(report), allow_nan=False))["images"] == len(labels)
    for draw in (plots.confusion_matrix, plots.reliability_diagram, plots.roc_and_precision_recall):
        assert Image.open(io.BytesIO(draw(report))).width > 400


@pytest.mark.parametrize("classes", [2, 20, 21, 100])
def test_the_confusion_matrix_is_drawn_for_two_to_a_hundred_classes(classes: int) -> None:
    picture = Image.open(io.BytesIO(plots.confusion_matrix(report_of(*random_images(400, classes)))))
    assert 500 < picture.width < 2400


def test_special_and_long_class_names_are_drawn_literally() -> None:
    probabilities, labels = random_images(20, 3)
    report = evaluate(probabilities, labels, [r"$\frac{1", "猫\n", "a" * 300], 0.95, 10)
    assert Image.open(io.BytesIO(plots.confusion_matrix(report))).width < 2000


def test_the_title_of_the_confusion_matrix_is_no_wider_than_the_matrix() -> None:
    probabilities, labels = random_images(20, 3)
    report = evaluate(probabilities, labels, ["a" * 30, "b" * 30, "c" * 30], 0.95, 10)
    assert Image.open(io.BytesIO(plots.confusion_matrix(report))).width < 1050


def test_the_headline_of_perfect_curves_names_no_hardest_class() -> None:
    perfect = evaluate(np.eye(3, dtype=np.float32), np.arange(3), ["ant", "bee", "cat"], 0.95, 10)
    assert plots.separation_finding(perfect) == "Every class is separated from the rest: all average precisions are 1"
    probabilities, labels = random_images(40, 3)
    assert plots.separation_finding(evaluate(probabilities, labels, ["ant", "bee", "cat"], 0.95, 10)).startswith(
        "Hardest"
    )


def test_the_gallery_shows_enlarged_original_pixels() -> None:
    image = np.zeros((1, 3, 2, 2), np.uint8)
    image[0, :, 0, 0] = (10, 200, 30)
    picture = Image.open(io.BytesIO(plots.mistakes_gallery(image, ["cat"], ["dog"], [0.9], 1, 10))).convert("RGB")
    pixels = np.asarray(picture).reshape(-1, 3)
    black, green = ((pixels == colour).all(axis=1).sum() for colour in ((0, 0, 0), (10, 200, 30)))
    assert green > 100**2
    assert black == pytest.approx(3 * green, rel=0.05)


def test_without_mistakes_the_gallery_is_a_picture_with_a_message() -> None:
    nothing = np.zeros((0, 1, 8, 8), np.uint8)
    none, hidden = (plots.mistakes_gallery(nothing, [], [], [], mistakes, 360) for mistakes in (0, 7))
    assert Image.open(io.BytesIO(none)).width > 300
    assert none != hidden


@pytest.mark.parametrize(("mistakes", "caution"), [(0, "0 mistakes say"), (1, "1 mistake says"), (3, "3 mistakes say"),
                                                   (10, None)])  # fmt: skip
def test_a_reliability_curve_of_few_mistakes_has_a_caution(mistakes: int, caution: str | None) -> None:
    labels = np.arange(100) % 2
    answer = np.where(np.arange(100) < mistakes, 1 - labels, labels)
    finding = plots.calibration_finding(report_of(np.eye(2, dtype=np.float32)[answer] * 0.98 + 0.01, labels))
    if caution:
        assert finding.endswith(f". {caution} little about it: each gap comes from a few images")
    else:
        assert "little" not in finding
