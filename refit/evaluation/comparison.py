"""Two classifiers on the same images: is one better, and how sure may one be of that?"""

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
    """Of the first. 0, as other_accuracy, where there are no images."""
    other_accuracy: float
    only_this: int
    """Images that the first alone has right."""
    only_other: int
    low: float
    """Of the confidence interval of the difference."""
    high: float

    @property
    def difference(self) -> float:
        return self.accuracy - self.other_accuracy


def paired(
    rows: Sequence[Row], name: str, predicted: Mapping[str, str], confidence: float
) -> tuple[Comparison, list[Row]]:
    """Compare a model with another by their predictions, and list the images that one of them has right.

    rows: `file`, `actual` and `predicted` of each test image, as in outcomes.csv; predicted: what the other model takes
    a file for, `name` in the list. Images that it lacks do not count.
    """
    both = [{key: row[key] for key in ("file", "actual", "predicted")} | {name: predicted[row["file"]]}
            for row in rows if row["file"] in predicted]  # fmt: skip
    right, other_right = (np.array([row[who] == row["actual"] for row in both], bool) for who in ("predicted", name))
    return compare(right, other_right, confidence), [both[i] for i in np.flatnonzero(right != other_right)]


def compare(right: Bools, other_right: Bools, confidence: float) -> Comparison:
    """Compare by which of N images each has right, (N,) both, in the same order.

    The interval is that of Agresti and Min 2005, "Simple improved confidence intervals for comparing matched
    proportions": Wald's, with half an image more of each of the four outcomes. That makes it wide where images are few.
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
