"""Confidence intervals: of an accuracy, and of the difference of two classifiers' accuracies on the same images.

It imports no PyTorch, so that commands which compare start at once.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Bools = NDArray[np.bool_]
Row = dict[str, str]


@dataclass(frozen=True)
class Comparison:
    images: int
    accuracy: float
    """Of the first model. Both accuracies are 0 if there are no images."""
    other_accuracy: float
    only_this: int
    """Images that only the first model predicts correctly."""
    only_other: int
    """Images that only the other model predicts correctly."""
    low: float
    """Lower bound of the confidence interval of the difference."""
    high: float
    """Upper bound."""

    @property
    def difference(self) -> float:
        return self.accuracy - self.other_accuracy


def paired(
    rows: Sequence[Row], name: str, predicted: Mapping[str, str], confidence: float
) -> tuple[Comparison, list[Row]]:
    """Compare the predictions of two models, and list the images that only one of them predicts correctly.

    rows: the first model's `file`, `actual` and `predicted` for each test image, as in outcomes.csv. predicted: the
    other model's predicted class by file; in the list its column is `name`. Files that `predicted` lacks are ignored.
    """
    both = [{key: row[key] for key in ("file", "actual", "predicted")} | {name: predicted[row["file"]]}
            for row in rows if row["file"] in predicted]  # fmt: skip
    right, other_right = (np.array([row[who] == row["actual"] for row in both], bool) for who in ("predicted", name))
    return compare(right, other_right, confidence), [both[i] for i in np.flatnonzero(right != other_right)]


def compare(right: Bools, other_right: Bools, confidence: float) -> Comparison:
    """Compare two models by the images that each predicts correctly: both masks are (N,), for the same images.

    The interval is from Agresti and Min 2005, "Simple improved confidence intervals for comparing matched
    proportions": the Wald interval after half an image is added to each of the four outcomes. It is wide for few
    images.
    """
    assert right.shape == other_right.shape
    images = len(right)
    only_this, only_other = int((right & ~other_right).sum()), int((other_right & ~right).sum())
    b, c, n = only_this + 0.5, only_other + 0.5, images + 2
    difference = (b - c) / n
    error = NormalDist().inv_cdf((1 + confidence) / 2) * math.sqrt(b + c - (b - c) ** 2 / n) / n
    return Comparison(
        images=images,
        accuracy=float(right.sum()) / max(images, 1),
        other_accuracy=float(other_right.sum()) / max(images, 1),
        only_this=only_this,
        only_other=only_other,
        low=max(difference - error, -1.0),
        high=min(difference + error, 1.0),
    )


def wilson_interval(right: int, images: int, confidence: float) -> tuple[float, float]:
    """Wilson score interval of a proportion (Wilson 1927), which also holds for few images and accuracies near 1."""
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    proportion = right / images
    centre = (proportion + z**2 / (2 * images)) / (1 + z**2 / images)
    half = z / (1 + z**2 / images) * (proportion * (1 - proportion) / images + z**2 / (4 * images**2)) ** 0.5
    # For a proportion of 0 or 1 this avoids a rounding error: the bound equals the proportion.
    return 0.0 if right == 0 else centre - half, 1.0 if right == images else centre + half
