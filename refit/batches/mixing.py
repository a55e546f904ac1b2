"""Mixup and cutmix of a whole batch at once, with separate random choices for each image."""

import numpy as np
import torch
from torch import Tensor

from refit.batches.operations import in_chunks
from refit.params import AugmentParams


def draw_mixes(
    params: AugmentParams, images: int, size: tuple[int, int], random: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Draw lam and box (see augment.Draws) for `images` images of `size` (height, width).

    If both mixup and cutmix are on, each image draws one of the two. The rectangle's centre may be anywhere in the
    image. It is clipped at the border, and lam is the fraction of pixels that it leaves uncovered.
    """
    cuts = random.random(images) < (0.5 if params.mixup else 1) if params.cutmix else np.zeros(images, dtype=bool)
    blended = random.beta(params.mixup, params.mixup, images) if params.mixup else np.ones(images)
    sides = np.sqrt(1 - random.beta(params.cutmix, params.cutmix, images)) if params.cutmix else np.zeros(images)
    halves = np.rint(sides[:, None] * size).astype(np.int64) // 2
    centres = random.integers(0, size, (images, 2))
    first = np.clip(centres - halves, 0, size) * cuts[:, None]
    last = np.clip(centres + halves, 0, size) * cuts[:, None]
    uncovered = 1 - (last - first).prod(axis=1) / (size[0] * size[1])
    lam = np.where(cuts, uncovered, blended).astype(np.float32)
    return torch.from_numpy(lam), torch.from_numpy(np.concatenate((first, last), axis=1))


def mix(images: Tensor, lam: Tensor, box: Tensor, params: AugmentParams) -> Tensor:
    """Mix each image with the next: uint8 (B + 1, C, H, W) to (B, C, H, W). `lam` and `box` hold B draws."""
    mixed = images[:-1]
    if params.mixup:
        cuts = (box[:, 2] > box[:, 0]) & (box[:, 3] > box[:, 1])
        mixed = in_chunks(_blend, mixed, images[1:], torch.where(cuts, 1, lam))
    if params.cutmix:
        mixed = in_chunks(_cover, mixed, images[1:], box)
    return mixed


def _blend(images: Tensor, others: Tensor, lam: Tensor) -> Tensor:
    return torch.lerp(others.float(), images.float(), lam[:, None, None, None]).round_().to(torch.uint8)


def _cover(images: Tensor, others: Tensor, box: Tensor) -> Tensor:
    height, width = images.shape[2:]
    rows, columns = torch.arange(height, device=box.device), torch.arange(width, device=box.device)
    of_rows = (rows >= box[:, :1]) & (rows < box[:, 2:3])
    of_columns = (columns >= box[:, 1:2]) & (columns < box[:, 3:])
    return torch.where((of_rows[:, :, None] & of_columns[:, None, :])[:, None], others, images)
