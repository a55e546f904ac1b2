"""Photos as JPEG files, and `fit` on them against torchvision's reference style."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from sklearn.datasets import load_sample_images

from benchmarks.compare import Result, compare, interleave
from benchmarks.raw import our_network, without_normalize
from benchmarks.rivals import reference
from benchmarks.workspace import fit, workspace
from refit.artifacts.prepared import Split
from refit.data.images import decode, open_image


@contextmanager
def jpeg_files(count: int) -> Iterator[list[Path]]:
    """Crops of the two photos that come with scikit-learn, 500 x 375 pixels."""
    random, photos = np.random.default_rng(0), load_sample_images().images
    with TemporaryDirectory() as folder:
        files = [Path(folder, f"{number}.jpg") for number in range(count)]
        for number, file in enumerate(files):
            photo = photos[number % len(photos)]
            top, left = random.integers(0, photo.shape[0] - 375 + 1), random.integers(0, photo.shape[1] - 500 + 1)
            Image.fromarray(photo[top : top + 375, left : left + 500]).save(file, quality=90)
        yield files


def as_prepared(files: list[Path], size: int) -> npt.NDArray[np.uint8]:
    """The photos as `prepare` writes them, each decoded and resized once: (N, 3, size, size)."""
    return np.stack([decode(open_image(file), "rgb", (size, size), "crop") for file in files])


def against_reference(
    name: str, network: str, width: int | None, size: int, count: int, batch_size: int, targets: dict[int, float],
    rounds: int,
) -> list[Result]:  # fmt: skip
    """Compare an epoch of `count` photos and the validation of one batch, with random resized crops and flips in both.
    The keys of `targets` are the baseline's numbers of worker processes."""
    choices: dict[str, Any] = {
        "model__network": network,
        "model__width": width,
        "augment__crop_area": 0.08,  # torchvision's default minimum area
        "augment__flip": True,
    }
    with jpeg_files(count + batch_size) as files:
        labels = np.arange(len(files)) % 10
        images = as_prepared(files, size)
        train, val = Split(images[:count], labels[:count]), Split(images[count:], labels[count:])

        def baseline(workers: int) -> float:
            unnormalized = without_normalize(our_network(network, width, (3, size, size)))
            return reference(unnormalized, files, labels.tolist(), batch_size, size, batch_size, workers)

        with workspace(train, val, batch_size):
            measured = interleave(
                {"refit": lambda: count / fit(**choices)}
                | {f"{workers} workers": partial(baseline, workers) for workers in targets},
                rounds,
            )
    return [
        compare(f"{name}, {workers} workers", measured["refit"], measured[f"{workers} workers"], target, "higher")
        for workers, target in targets.items()
    ]
