"""The data path alone, from a prepared split to augmented and normalised batches, against transforms per image.

python -m benchmarks.data_path [--rounds 5]
"""

import time
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader

from benchmarks.compare import Result, command_line, compare, interleave
from benchmarks.raw import made_split
from benchmarks.rivals import PerImage, small_image_transforms
from refit.artifacts.prepared import Split
from refit.batches.datamodule import AnyBatch, TrainLoader
from refit.params import AugmentParams
from refit.systems.networks import Normalize

BATCH_SIZE = 512
SHIFT_AND_FLIP = AugmentParams(shift=2, flip=True)


def small_images(rounds: int) -> list[Result]:
    """28 x 28, random crops and flips."""
    split = made_split(51_200, (1, 28, 28))
    per_image = PerImage(split, small_image_transforms(28))
    measured = interleave(
        {
            "refit": lambda: _images_per_second(_ours(split)),
            "per image, 0 workers": lambda: _images_per_second(_baseline(per_image)),
        },
        rounds,
    )
    name = "data path alone: images/s ÷ per-image transforms, 0 workers"
    return [compare(name, measured["refit"], measured["per image, 0 workers"], 20, "higher")]


def _ours(split: Split) -> Iterator[AnyBatch]:
    """Refit's batches as floats, like the baseline's. In Refit this normalisation is the network's first layer."""
    normalize = Normalize([0.5], [0.25])
    for batch in TrainLoader(split, BATCH_SIZE, BATCH_SIZE, SHIFT_AND_FLIP, seed=0, epoch=lambda: 0):
        yield batch._replace(images=normalize(batch.images))


def _baseline(images: PerImage) -> DataLoader[tuple[torch.Tensor, int]]:
    return DataLoader(images, BATCH_SIZE, shuffle=True, drop_last=True)


def _images_per_second(batches: Iterable[Any]) -> float:
    began = time.perf_counter()
    images = sum(len(batch[1]) for batch in batches)
    return images / (time.perf_counter() - began)


if __name__ == "__main__":
    torch.set_num_threads(1)
    command_line(__doc__, [small_images])
