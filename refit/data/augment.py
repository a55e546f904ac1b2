"""Augmentation of a whole batch in one gather, with random choices of its own for each image."""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from refit.params import AugmentParams


class Draws(NamedTuple):
    """The random choices for each image."""

    shift: Tensor
    """int64 (N, 2): down and right, pixels."""
    flip: Tensor
    """bool (N,)."""
    cutout: Tensor
    """int64 (N, 2): row and column of the cut square's centre."""

    def take(self, indices: Tensor) -> "Draws":
        return Draws(*(choice[indices] for choice in self))

    def to(self, device: torch.device) -> "Draws":
        return Draws(*(choice.to(device) for choice in self))


def draw(params: AugmentParams, images: int, size: tuple[int, int], random: np.random.Generator) -> Draws | None:
    """Choices for `images` images of `size` (height, width): one epoch's, drawn at once and taken batch by batch.

    None where nothing is to be drawn.
    """
    if not (params.shift or params.flip or params.cutout):
        return None
    return Draws(
        torch.from_numpy(random.integers(-params.shift, params.shift, (images, 2), endpoint=True)),
        torch.from_numpy(random.random(images) < (0.5 if params.flip else 0)),
        torch.from_numpy(random.integers(0, size, (images, 2))),
    )


def augment(images: Tensor, draws: Draws, params: AugmentParams) -> Tensor:
    """Shift, flip and cut out: uint8 (N, C, H, W) to the same shape; what comes from outside the image is zero."""
    count, channels, height, width = images.shape
    rows = torch.arange(height, device=images.device).expand(count, -1)
    columns = torch.arange(width, device=images.device).expand(count, -1)
    centre_row, centre_column = draws.cutout[:, :1], draws.cutout[:, 1:]
    cut = None
    if params.cutout:
        down, right = rows - centre_row + params.cutout // 2, columns - centre_column + params.cutout // 2
        cut = ((down >= 0) & (down < params.cutout))[:, :, None] & ((right >= 0) & (right < params.cutout))[:, None, :]
    if params.flip:
        columns = torch.where(draws.flip[:, None], width - 1 - columns, columns)
    if params.shift:
        images = F.pad(images, [params.shift] * 4)
        rows = rows - draws.shift[:, :1] + params.shift
        columns = columns - draws.shift[:, 1:] + params.shift
    if params.flip or params.shift:
        pixels = (rows[:, :, None] * images.shape[3] + columns[:, None, :]).view(count, 1, -1)
        images = images.flatten(2).gather(2, pixels.expand(-1, channels, -1)).view(count, channels, height, width)
    if cut is not None:
        images = images.masked_fill(cut[:, None], 0)
    return images
