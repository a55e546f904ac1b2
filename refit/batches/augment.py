"""Augmentation of a whole batch at once, with separate random choices for each image."""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from refit.batches.mixing import draw_mixes
from refit.batches.operations import in_chunks
from refit.batches.policies import apply_policy, draw_jitter, draw_policy, jitter
from refit.params import AugmentParams
from refit.runtime.errors import UserError

ASPECT_RATIOS = (3 / 4, 4 / 3)  # width to height of a crop
# Pixels between two samples of a crop at most: with more between them, its fine patterns become coarse ones. Of photos
# whose random crops go from 224 pixels to 128, one sample gives 38 dB, and two by two give 46 dB, of signal to noise
# against an antialiased resize; to 160 pixels 42 and 47; to 192 already one gives 49.
_SPACING = 1.25


class Draws(NamedTuple):
    """Random choices for each image; None for those that the `augment` section of params.yaml turns off."""

    shift: Tensor | None = None
    """int64 (N, 2): pixels of the trained size, down and right."""
    flip: Tensor | None = None
    """bool (N,)."""
    cutout: Tensor | None = None
    """int64 (N, 2): row and column of the square's centre."""
    crop: Tensor | None = None
    """float32 (N, 4): row and column of the crop's centre, its height and width, as fractions of the image size."""
    jitter: Tensor | None = None
    """float32 (N, 3): factors for brightness, contrast and saturation."""
    operations: Tensor | None = None
    """int64 (N, rounds): operations of the policy, as indices into `policies.OPERATIONS`."""
    strengths: Tensor | None = None
    """float32 (N, rounds): strength of each operation, from -1 to 1."""
    lam: Tensor | None = None
    """float32 (N,), if images are mixed: fraction of the image itself; the rest is of its partner."""
    box: Tensor | None = None
    """int64 (N, 4), if images are mixed: top, left, bottom and right of the partner's rectangle, the latter two
    exclusive; all 0 if the two images are blended."""

    def each(self, change: Callable[[Tensor], Tensor]) -> "Draws":
        return Draws._make(choice if choice is None else change(choice) for choice in self)

    def take(self, indices: Tensor) -> "Draws":
        return self.each(lambda choice: choice[indices])

    def to(self, device: torch.device) -> "Draws":
        return self.each(lambda choice: choice.to(device))


def trained_size(params: AugmentParams, height: int, width: int) -> tuple[int, int]:
    """Height and width at which images of this size, all in pixels, are trained: the shorter side is
    params.train_size."""
    if params.train_size is None:
        return height, width
    scale = params.train_size / min(height, width)
    return round(scale * height), round(scale * width)


def full_size_batch(params: AugmentParams, micro_batch: int, height: int, width: int) -> int:
    """The number of prepared images, of this size in pixels, that have as many pixels as `micro_batch` training images
    and so fit into the same memory; at least 1."""
    return max(1, micro_batch * math.prod(trained_size(params, height, width)) // (height * width))


def check_size(params: AugmentParams, height: int, width: int) -> None:
    """Raises UserError if prepared images of this size, in pixels, are smaller than the size to train at, or a shift or
    cutout could remove all of an image of that size."""
    if params.train_size is not None and params.train_size > min(height, width):
        raise UserError(
            f"augment.train_size = {params.train_size} is larger than the prepared images of {height}x{width} pixels; "
            f"expected at most {min(height, width)}, or raise data.image_size"
        )
    height, width = trained_size(params, height, width)
    for key, pixels in {"shift": params.shift, "cutout": params.cutout}.items():
        if pixels >= min(height, width):
            raise UserError(
                f"augment.{key} = {pixels} can remove all of an image of {height}x{width} pixels; expected less than "
                f"{min(height, width)}"
            )


def draw(params: AugmentParams, images: int, size: tuple[int, int], random: np.random.Generator) -> Draws | None:
    """Random choices for `images` prepared images of `size` (height, width); None if `augment` has nothing to do.

    An epoch's choices are drawn at once and taken batch by batch.
    """
    prepared, size = size, trained_size(params, *size)
    # One generator for each kind, so that a draw does not depend on which others are made.
    of_shift, of_flip, of_cutout, of_crop, of_jitter, of_policy, of_mixes = random.spawn(7)
    draws = Draws()
    if params.shift:
        shift = of_shift.integers(-params.shift, params.shift, (images, 2), endpoint=True)
        draws = draws._replace(shift=torch.from_numpy(shift))
    if params.flip:
        draws = draws._replace(flip=torch.from_numpy(of_flip.random(images) < 0.5))
    if params.cutout:
        draws = draws._replace(cutout=torch.from_numpy(of_cutout.integers(0, size, (images, 2))))
    if params.crop_area < 1:
        draws = draws._replace(crop=torch.from_numpy(_crops(params.crop_area, images, of_crop)))
    if params.color_jitter:
        draws = draws._replace(jitter=draw_jitter(params, images, of_jitter))
    if params.policy != "none":
        operations, strengths = draw_policy(params.policy, images, of_policy)
        draws = draws._replace(operations=operations, strengths=strengths)
    if params.mixup or params.cutmix:
        lam, box = draw_mixes(params, images, size, of_mixes)
        draws = draws._replace(lam=lam, box=box)
    return draws if any(choice is not None for choice in draws) or size != prepared else None


def _crops(least_area: float, images: int, random: np.random.Generator) -> npt.NDArray[np.float32]:
    area = random.uniform(least_area, 1, images)
    # No side may exceed 1.
    lowest, highest = np.maximum(ASPECT_RATIOS[0], area), np.minimum(ASPECT_RATIOS[1], 1 / area)
    ratio = np.exp(random.uniform(np.log(lowest), np.log(highest)))
    sides = np.sqrt(np.stack((area / ratio, area * ratio), axis=1))
    centres = sides / 2 + random.random((images, 2)) * (1 - sides)
    return np.concatenate((centres, sides), axis=1).astype(np.float32)


def augment(images: Tensor, draws: Draws, params: AugmentParams) -> Tensor:
    """Crop, resize to the trained size, shift, flip, jitter, policy and cutout, in this order: uint8 (N, C, H, W) to
    (N, C, *trained_size).

    Pixels from outside an image are zero. Mixing is a separate step.
    """
    count, channels, *full = images.shape
    height, width = trained_size(params, *full)
    crop = partial(_resized_crop, size=(height, width))
    flip = draws.flip
    if draws.crop is not None and flip is not None and draws.shift is None:  # a shift comes before the flip
        images, flip = in_chunks(crop, images, draws.crop, flip), None
    elif draws.crop is not None:
        images = in_chunks(crop, images, draws.crop)
    else:
        images = at_trained_size(images, params)
    rows = torch.arange(height, device=images.device).expand(count, -1)
    columns = torch.arange(width, device=images.device).expand(count, -1)
    cut = None
    if draws.cutout is not None:
        centre_row, centre_column = draws.cutout[:, :1], draws.cutout[:, 1:]
        down, right = rows - centre_row + params.cutout // 2, columns - centre_column + params.cutout // 2
        cut = ((down >= 0) & (down < params.cutout))[:, :, None] & ((right >= 0) & (right < params.cutout))[:, None, :]
    if flip is not None:
        columns = torch.where(flip[:, None], width - 1 - columns, columns)
    if draws.shift is not None:
        images = F.pad(images, [params.shift] * 4)
        rows = rows - draws.shift[:, :1] + params.shift
        columns = columns - draws.shift[:, 1:] + params.shift
    if flip is not None or draws.shift is not None:
        pixels = (rows[:, :, None] * images.shape[3] + columns[:, None, :]).view(count, 1, -1)
        images = images.flatten(2).gather(2, pixels.expand(-1, channels, -1)).view(count, channels, height, width)
    if draws.jitter is not None:
        images = in_chunks(jitter, images, draws.jitter)
    if draws.operations is not None and draws.strengths is not None:
        follow = partial(apply_policy, policy=params.policy)
        images = in_chunks(follow, images, draws.operations, draws.strengths)
    if cut is not None:
        images = images.masked_fill(cut[:, None], 0)
    return images


def at_trained_size(images: Tensor, params: AugmentParams) -> Tensor:
    """The whole of each image at the size that it is trained at, without aliasing, by bicubic interpolation as in
    `prepare`: uint8 (N, C, H, W) to (N, C, *trained_size). The same tensor if that is its size."""
    full = (images.shape[2], images.shape[3])
    size = trained_size(params, *full)
    return images if size == full else in_chunks(partial(_shrunk, size=size), images)


def _shrunk(images: Tensor, size: tuple[int, int]) -> Tensor:
    if images.device.type == "cpu":  # several times faster on integers, which no other device can interpolate
        return F.interpolate(images, size, mode="bicubic", antialias=True)
    shrunk = F.interpolate(images.float(), size, mode="bicubic", antialias=True)
    return shrunk.round_().clamp_(0, 255).to(torch.uint8)


def _resized_crop(images: Tensor, crop: Tensor, flip: Tensor | None = None, *, size: tuple[int, int]) -> Tensor:
    """Each image's crop, resized to `size` (height, width) by bilinear interpolation; mirrored where `flip` is true.

    Where `size` is much smaller than the image, a pixel is the mean of several samples: one alone would alias. Their
    number depends on the image's size and not on each crop's, which is at most as large.
    """
    samples = [math.ceil(full / (_SPACING * pixels)) for full, pixels in zip(images.shape[2:], size, strict=True)]
    height, width = (pixels * number for pixels, number in zip(size, samples, strict=True))
    # Coordinates of grid_sample are -1 at one border of the image and 1 at the other.
    rows, columns = (
        2 * crop[:, axis, None] - 1 + crop[:, 2 + axis, None] * _pixel_centres(pixels, crop.device)
        for axis, pixels in enumerate((height, width))
    )
    if flip is not None:
        columns = torch.where(flip[:, None], columns.flip(1), columns)
    grid = torch.stack((columns[:, None, :].expand(-1, height, -1), rows[:, :, None].expand(-1, -1, width)), dim=3)
    cropped = F.grid_sample(images.float(), grid, mode="bilinear", padding_mode="border", align_corners=False)
    if samples != [1, 1]:
        cropped = F.avg_pool2d(cropped, samples)
    return cropped.round_().to(torch.uint8)


def _pixel_centres(pixels: int, device: torch.device) -> Tensor:
    """Coordinates of the pixels' centres, from -1 to 1."""
    return (2 * torch.arange(pixels, device=device) + 1) / pixels - 1
