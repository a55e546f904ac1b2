"""Two classifiers on the same images: is one better, and how sure may one be of that?"""

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Comparison:
    images: int
    accuracy: float
    """Of the first. 0, as rival_accuracy, where there are no images."""
    rival_accuracy: float
    only_this: int
    """Images that the first alone has right."""
    only_rival: int
    low: float
    """Of the confidence interval of the difference."""
    high: float

    @property
    def difference(self) -> float:
        return self.accuracy - self.rival_accuracy


def compare(right: Bools, rival_right: Bools, confidence: float) -> Comparison:
    """Compare by which of N images each has right, (N,) both, in the same order.

    The interval is that of Agresti and Min 2005, "Simple improved confidence intervals for comparing matched
    proportions": Wald's, with half an image more of each of the four outcomes. That makes it wide where images are few.
    """
    assert right.shape == rival_right.shape
    images = len(right)
    only_this, only_rival = int((right & ~rival_right).sum()), int((rival_right & ~right).sum())
    b, c, n = only_this + 0.5, only_rival + 0.5, images + 2
    difference = (b - c) / n
    error = NormalDist().inv_cdf((1 + confidence) / 2) * math.sqrt(b + c - (b - c) ** 2 / n) / n
    return Comparison(
        images=images,
        accuracy=float(right.sum()) / max(images, 1),
        rival_accuracy=float(rival_right.sum()) / max(images, 1),
        only_this=only_this,
        only_rival=only_rival,
        low=max(difference - error, -1.0),
        high=min(difference + error, 1.0),
    )
