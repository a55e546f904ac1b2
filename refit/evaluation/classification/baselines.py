"""What simple methods reach on the same test images: the least that a network should beat."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from sklearn.neighbors import KNeighborsClassifier

from refit.artifacts.prepared import Images

SIDE = 8  # pixels
NEIGHBOURS = 5
MOST_IMAGES = 5_000  # training images that are searched
_CHUNK = 512  # images that are shrunk at a time

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Baselines:
    majority: float
    """Accuracy of always answering with the largest class of the train split."""
    neighbours: float
    """Accuracy of the vote of the NEIGHBOURS nearest training images, each shrunk to SIDE x SIDE pixels."""


def majority(train_labels: Ints, test_labels: Ints) -> float:
    """Accuracy on the test images of the most frequent label of the train split."""
    return float((test_labels == np.bincount(train_labels).argmax()).mean())


def nearest_neighbours(train_images: Images, train_labels: Ints, test_images: Images) -> Ints:
    """The predicted label of each test image, (M,).

    train_images, test_images: uint8 (N, C, H, W) and (M, C, H, W). Of more than MOST_IMAGES training images, as many
    are taken at equal distances. The distances of integers are exact, so the predictions are the same everywhere.
    """
    rows = np.linspace(0, len(train_labels) - 1, min(len(train_labels), MOST_IMAGES)).round().astype(np.int64)
    voters = KNeighborsClassifier(min(NEIGHBOURS, len(rows)), algorithm="brute")
    voters.fit(_shrunk(train_images, rows), train_labels[rows])
    predicted: Ints = voters.predict(_shrunk(test_images, np.arange(len(test_images))))
    return predicted


def _shrunk(images: Images, rows: Ints) -> NDArray[np.float64]:
    """The mean colours of SIDE x SIDE areas of the images in these rows, whole numbers, (rows, C x SIDE x SIDE)."""
    chunks = [torch.from_numpy(images[rows[start : start + _CHUNK]]) for start in range(0, len(rows), _CHUNK)]
    small = [F.interpolate(chunk.float(), size=(SIDE, SIDE), mode="area").round().flatten(1) for chunk in chunks]
    return torch.cat(small).numpy().astype(np.float64)
