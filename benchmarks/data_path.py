"""The data path alone, from a prepared split to augmented batches, against the same done image by image.

python -m benchmarks.data_path [--rounds 5]
"""

import time
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from benchmarks.compare import Result, command_line, compare, interleave
from benchmarks.photos import as_prepared, jpeg_files
from benchmarks.raw import made_split
from benchmarks.rivals import PerImage, Photos, photo_transforms, small_image_transforms
from refit.data.module import TrainLoader
from refit.data.prepared import Split
from refit.params import AugmentParams

BATCH_SIZE = 512
OFF: dict[str, Any] = {"cutout": 0, "color_jitter": 0, "policy": "none", "mixup": 0, "cutmix": 0}
SHIFT_AND_FLIP = AugmentParams(shift=2, flip=True, crop_area=1, **OFF)
CROP_AND_FLIP = AugmentParams(shift=0, flip=True, crop_area=0.08, **OFF)  # torchvision's own least area


def small_images(rounds: int) -> list[Result]:
    """28 x 28, random crops and flips."""
    split = made_split(51_200, (1, 28, 28))
    some = PerImage(Split(split.images[:10_240], split.labels[:10_240]), small_image_transforms(28))
    measured = interleave(
        {
            "refit": lambda: _images_a_second(_ours(split, SHIFT_AND_FLIP)),
            "per image, 0 workers": lambda: _images_a_second(_theirs(some)),
        },
        rounds,
    )
    name = "data path alone: images/s ÷ per-image transforms, 0 workers"
    return [compare(name, measured["refit"], measured["per image, 0 workers"], 20, "higher")]


def photos(rounds: int) -> list[Result]:
    """JPEG files of 500 x 375 pixels, random resized crops of 128 x 128 and flips."""
    with jpeg_files(1_024) as files:
        labels = np.arange(len(files)) % 10
        prepared = Split(as_prepared(files, 128), labels)
        measured = interleave(
            {
                "refit": lambda: _images_a_second(_ours(prepared, CROP_AND_FLIP)),
                "PIL": lambda: _images_a_second(_theirs(Photos(files, labels.tolist(), photo_transforms(128)))),
            },
            rounds,
        )
    name = "photos, 128 px random resized crops: images/s from the cache ÷ PIL per image, 0 workers"
    return [compare(name, measured["refit"], measured["PIL"], 5, "higher")]


def _ours(split: Split, augmentation: AugmentParams) -> TrainLoader:
    return TrainLoader(split, BATCH_SIZE, BATCH_SIZE, augmentation, seed=0, epoch=lambda: 0)


def _theirs(images: PerImage | Photos) -> DataLoader[tuple[torch.Tensor, int]]:
    return DataLoader(images, BATCH_SIZE, shuffle=True, drop_last=True)


def _images_a_second(batches: Iterable[Any]) -> float:
    began = time.perf_counter()
    images = sum(len(batch[1]) for batch in batches)
    return images / (time.perf_counter() - began)


if __name__ == "__main__":
    torch.set_num_threads(1)
    command_line(__doc__, [small_images, photos])
