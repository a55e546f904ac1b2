"""Colour jitter, RandAugment and TrivialAugment, with separate random choices for each image."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from refit.batches import operations as of_batch
from refit.params import AugmentParams

SELECTS_ON = "cpu"  # only there can images be selected for an operation without waiting for the device
LEVELS = 30
RANDAUGMENT_LEVEL = 9
RANDAUGMENT_ROUNDS = 2


class Space(NamedTuple):
    """The maximum strength of each operation."""

    shear: float
    translate: float
    """Pixels; a value below 1 is a fraction of the image's side."""
    rotate: float
    """Degrees."""
    factor: float
    """Distance from 1 of the factors of brightness, colour, contrast and sharpness."""
    lost_bits: int
    """Bits that posterize removes."""


SPACES = {
    "randaugment": Space(0.3, 150 / 331, 30, 0.9, 4),
    "trivialaugment": Space(0.99, 32, 135, 0.99, 6),
}

Operation = Callable[[Tensor, Tensor, Space], Tensor]

# Arguments: images, strength for each image from -1 to 1, space. Operations without a direction ignore the sign.
OPERATIONS: dict[str, Operation] = {
    "identity": lambda images, strength, space: images,
    "shear_x": lambda images, strength, space: of_batch.shear_x(images, strength * space.shear),
    "shear_y": lambda images, strength, space: of_batch.shear_y(images, strength * space.shear),
    "translate_x": lambda images, strength, space: of_batch.translate_x(
        images, strength * _pixels(space.translate, images.shape[3])
    ),
    "translate_y": lambda images, strength, space: of_batch.translate_y(
        images, strength * _pixels(space.translate, images.shape[2])
    ),
    "rotate": lambda images, strength, space: of_batch.rotate(images, strength * space.rotate),
    "brightness": lambda images, strength, space: of_batch.brightness(images, 1 + strength * space.factor),
    "color": lambda images, strength, space: of_batch.saturation(images, 1 + strength * space.factor),
    "contrast": lambda images, strength, space: of_batch.contrast(images, 1 + strength * space.factor),
    "sharpness": lambda images, strength, space: of_batch.sharpness(images, 1 + strength * space.factor),
    "posterize": lambda images, strength, space: of_batch.posterize(images, 8 - strength.abs() * space.lost_bits),
    "solarize": lambda images, strength, space: of_batch.solarize(images, 255 * (1 - strength.abs())),
    "auto_contrast": lambda images, strength, space: of_batch.auto_contrast(images),
    "equalize": lambda images, strength, space: of_batch.equalize(images),
}


def _pixels(reach: float, side: int) -> float:
    return reach * side if reach < 1 else reach


def draw_policy(policy: str, images: int, random: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Operation, int64 (N, rounds), and strength from -1 to 1, float32 (N, rounds), for each image and round."""
    shape = (images, RANDAUGMENT_ROUNDS if policy == "randaugment" else 1)
    operations = random.integers(0, len(OPERATIONS), shape)
    signs = random.choice((-1.0, 1.0), shape)
    levels = RANDAUGMENT_LEVEL if policy == "randaugment" else random.integers(0, LEVELS, shape, endpoint=True)
    return torch.from_numpy(operations), torch.from_numpy((signs * levels / LEVELS).astype(np.float32))


def apply_policy(images: Tensor, operations: Tensor, strengths: Tensor, policy: str) -> Tensor:
    """Apply each image's operations, round by round: uint8 (N, C, H, W) to the same shape.

    `operations` and `strengths` are (N, rounds).
    """
    images = images.clone()
    for drawn, strength in zip(operations.T, strengths.T, strict=True):
        before = images
        for number, operation in enumerate(OPERATIONS.values()):
            chosen = drawn == number
            if images.device.type == SELECTS_ON:
                indices = chosen.nonzero()[:, 0]
                if len(indices):
                    images[indices] = operation(images[indices], strength[indices], SPACES[policy])
            else:
                changed = operation(before, strength, SPACES[policy])
                images = torch.where(chosen[:, None, None, None], changed, images)
    return images


def draw_jitter(params: AugmentParams, images: int, random: np.random.Generator) -> Tensor:
    """Factors for brightness, contrast and saturation of each image, float32 (N, 3)."""
    reach = params.color_jitter
    return torch.from_numpy(random.uniform(1 - reach, 1 + reach, (images, 3)).astype(np.float32))


def jitter(images: Tensor, factors: Tensor) -> Tensor:
    """Change brightness, then contrast, then saturation: uint8 (N, C, H, W) to the same shape.

    `factors` is (N, 3).
    """
    images = of_batch.brightness(images, factors[:, 0])
    images = of_batch.contrast(images, factors[:, 1])
    return of_batch.saturation(images, factors[:, 2])
