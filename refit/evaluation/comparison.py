"""Confidence intervals: of a mean score, such as an accuracy, and of its difference between two models on the same
images. The score of an image is from 0 to 1 (best).

It imports no PyTorch, so that commands which compare start at once.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Row = dict[str, str]


@dataclass(frozen=True)
class Comparison:
    images: int
    score: float
    """Mean score of the first model. Both are 0 if there are no images."""
    other_score: float
    this_better: int
    """Images for which the first model has the higher score: of two classifiers, those that only it gets right."""
    other_better: int
    """Images for which the other model has the higher score."""
    low: float
    """Lower bound of the confidence interval of the difference."""
    high: float
    """Upper bound."""

    @property
    def difference(self) -> float:
        return self.score - self.other_score


def paired(
    rows: Sequence[Row],
    name: str,
    predicted: Mapping[str, str],
    scores: Callable[[Sequence[str], Sequence[str]], NDArray[Any]],
    confidence: float,
) -> tuple[Comparison, list[Row]]:
    """Compare the predictions of two models, and list the images for which their scores differ.

    rows: the first model's `file`, `actual` and `predicted` for each test image, as in outcomes.csv. predicted: the
    other model's prediction by file; in the list its column is `name`. Files that `predicted` lacks are ignored.
    scores: the task's outcome_scores.
    """
    both = [{key: row[key] for key in ("file", "actual", "predicted")} | {name: predicted[row["file"]]}
            for row in rows if row["file"] in predicted]  # fmt: skip
    actual = [row["actual"] for row in both]
    this, other = (scores(actual, [row[who] for row in both]) for who in ("predicted", name))
    return compare(this, other, confidence), [both[i] for i in np.flatnonzero(this != other)]


def compare(this: ArrayLike, other: ArrayLike, confidence: float) -> Comparison:
    """Compare two models by the score of each image: both are (N,), for the same images.

    If each score is 0 or 1, the interval is from Agresti and Min 2005, "Simple improved confidence intervals for
    comparing matched proportions": the Wald interval after half an image is added to each of the four outcomes. It is
    wide for few images. Otherwise it is Student's interval of the mean of the paired differences.
    """
    scores, other_scores = np.asarray(this, np.float64), np.asarray(other, np.float64)
    assert scores.shape == other_scores.shape
    images = len(scores)
    this_better, other_better = int((scores > other_scores).sum()), int((scores < other_scores).sum())
    if _is_binary(scores) and _is_binary(other_scores):
        b, c, n = this_better + 0.5, other_better + 0.5, images + 2
        centre = (b - c) / n
        error = NormalDist().inv_cdf((1 + confidence) / 2) * math.sqrt(b + c - (b - c) ** 2 / n) / n
    else:
        centre, error = _student(scores - other_scores, confidence)
    return Comparison(
        images=images,
        score=float(scores.sum()) / max(images, 1),
        other_score=float(other_scores.sum()) / max(images, 1),
        this_better=this_better,
        other_better=other_better,
        low=max(centre - error, -1.0),
        high=min(centre + error, 1.0),
    )


def mean_interval(scores: ArrayLike, confidence: float) -> tuple[float, float]:
    """The interval of the mean of the scores (N,), N > 0: Wilson's if each score is 0 or 1, otherwise Student's."""
    values = np.asarray(scores, np.float64)
    if _is_binary(values):
        return wilson_interval(int(values.sum()), len(values), confidence)
    centre, error = _student(values, confidence)
    return max(centre - error, 0.0), min(centre + error, 1.0)


def _is_binary(scores: NDArray[np.float64]) -> bool:
    return bool(np.isin(scores, (0, 1)).all())


def _student(values: NDArray[np.float64], confidence: float) -> tuple[float, float]:
    """The mean, and half the width of its interval: without a limit for a single value."""
    from scipy.stats import t  # half a second of imports that only these scores need

    if len(values) < 2:
        return float(values.mean()), math.inf
    error = t.ppf((1 + confidence) / 2, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values))
    return float(values.mean()), float(error)


def wilson_interval(right: int, images: int, confidence: float) -> tuple[float, float]:
    """Wilson score interval of a proportion (Wilson 1927), which also holds for few images and accuracies near 1."""
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    proportion = right / images
    centre = (proportion + z**2 / (2 * images)) / (1 + z**2 / images)
    half = z / (1 + z**2 / images) * (proportion * (1 - proportion) / images + z**2 / (4 * images**2)) ** 0.5
    # For a proportion of 0 or 1 this avoids a rounding error: the bound equals the proportion.
    return 0.0 if right == 0 else centre - half, 1.0 if right == images else centre + half
