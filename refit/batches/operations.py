"""torchvision's operations on a single image, for a batch of images with a separate amount for each image.

Images are uint8 (N, C, H, W), where C is 1 or 3; amounts are float32 (N,). Pixels from outside an image are zero.
"""

from collections.abc import Callable

import torch
from torch import Tensor

CPU_CACHE = 4 * 2**20  # bytes of float pixels in a chunk; larger ones take twice as long per image on a CPU


def in_chunks(change: Callable[..., Tensor], images: Tensor, *choices: Tensor) -> Tensor:
    """`change(images, *choices)` for images (N, ...) and choices (N, ...); on a CPU in chunks that fit its cache."""
    size = max(1, CPU_CACHE // (4 * images[0].numel())) if images.device.type == "cpu" else len(images)
    chunks = zip(*(whole.split(size) for whole in (images, *choices)), strict=True)  # type: ignore[no-untyped-call]
    return torch.cat([change(*chunk) for chunk in chunks])


def shear_x(images: Tensor, amounts: Tensor) -> Tensor:
    """Shift each row left by the amount times its distance from the top."""
    zero, one = torch.zeros_like(amounts), torch.ones_like(amounts)
    return _affine(images, (one, amounts, amounts * images.shape[2] / 2), (zero, one, zero))


def shear_y(images: Tensor, amounts: Tensor) -> Tensor:
    """Shift each column up by the amount times its distance from the left."""
    zero, one = torch.zeros_like(amounts), torch.ones_like(amounts)
    return _affine(images, (one, zero, zero), (amounts, one, amounts * images.shape[3] / 2))


def translate_x(images: Tensor, amounts: Tensor) -> Tensor:
    """Shift right by whole pixels."""
    zero, one = torch.zeros_like(amounts), torch.ones_like(amounts)
    return _affine(images, (one, zero, -amounts.trunc()), (zero, one, zero))


def translate_y(images: Tensor, amounts: Tensor) -> Tensor:
    """Shift down by whole pixels."""
    zero, one = torch.zeros_like(amounts), torch.ones_like(amounts)
    return _affine(images, (one, zero, zero), (zero, one, -amounts.trunc()))


def rotate(images: Tensor, amounts: Tensor) -> Tensor:
    """Rotate counter-clockwise about the centre; amounts in degrees."""
    cos, sin, zero = amounts.deg2rad().cos(), amounts.deg2rad().sin(), torch.zeros_like(amounts)
    return _affine(images, (cos, -sin, zero), (sin, cos, zero))


def _affine(images: Tensor, column: tuple[Tensor, Tensor, Tensor], row: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Affine transform by nearest neighbour: pixel (x, y) is taken from (a x + b y + c, d x + e y + f).

    `column` is (a, b, c) and `row` is (d, e, f), each of shape (N,). Coordinates are relative to the centre.
    """
    count, channels, height, width = images.shape
    x = torch.arange(width, device=images.device) - (width - 1) / 2
    y = torch.arange(height, device=images.device)[:, None] - (height - 1) / 2
    (a, b, c), (d, e, f) = ([factor[:, None, None] for factor in factors] for factors in (column, row))
    columns = (a * x + (b * y + c) + (width - 1) / 2).round_()
    rows = (d * x + (e * y + f) + (height - 1) / 2).round_()
    inside = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
    pixels = torch.where(inside, rows * width + columns, 0).to(torch.int64).view(count, 1, -1)
    moved = images.flatten(2).gather(2, pixels.expand(-1, channels, -1)).view(images.shape)
    return moved * inside[:, None]


def brightness(images: Tensor, factors: Tensor) -> Tensor:
    return _blend(images, 0, factors)


def contrast(images: Tensor, factors: Tensor) -> Tensor:
    """Multiply each pixel's difference from the mean grey of the image by the factor."""
    grey = _grey(images)
    mean = grey.sum(dim=(1, 2, 3), keepdim=True) / grey[0].numel()  # a sum of integers: exact
    return _blend(images, mean, factors)


def saturation(images: Tensor, factors: Tensor) -> Tensor:
    """Multiply each pixel's difference from its own grey by the factor."""
    return images if images.shape[1] == 1 else _blend(images, _grey(images), factors)


def sharpness(images: Tensor, factors: Tensor) -> Tensor:
    """Multiply each pixel's difference from the smoothed image by the factor. The border is unchanged."""
    wide = images.to(torch.int16)
    rows = wide[:, :, :-2] + wide[:, :, 1:-1] + wide[:, :, 2:]
    squares = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
    smooth = images.float()
    smooth[:, :, 1:-1, 1:-1] = ((squares + 4 * wide[:, :, 1:-1, 1:-1]) / 13).round_()
    return _blend(images, smooth, factors)


def _grey(images: Tensor) -> Tensor:
    """Luma of each pixel: uint8 (N, 1, H, W)."""
    from torchvision.transforms.v2.functional import rgb_to_grayscale

    grey: Tensor = rgb_to_grayscale(images)
    return grey


def _blend(images: Tensor, others: Tensor | float, factors: Tensor) -> Tensor:
    """images * factor + others * (1 - factor). A factor above 1 extrapolates away from the other image."""
    factors = factors[:, None, None, None]
    return (images * factors).add_(others * (1 - factors)).clamp_(0, 255).to(torch.uint8)


def posterize(images: Tensor, bits: Tensor) -> Tensor:
    """Keep only the highest `bits` bits of each value."""
    kept = (255 << (8 - bits.round().to(torch.int16))) & 255
    return images & kept.to(torch.uint8)[:, None, None, None]


def solarize(images: Tensor, thresholds: Tensor) -> Tensor:
    """Invert all values at or above the threshold, which is from 0 to 255."""
    return torch.where(images >= thresholds[:, None, None, None], 255 - images, images)


def auto_contrast(images: Tensor) -> Tensor:
    """Stretch each channel to the full range of values."""
    from torchvision.transforms.v2.functional import autocontrast

    stretched: Tensor = autocontrast(images)
    return stretched


def equalize(images: Tensor) -> Tensor:
    """Equalise each channel's histogram, as Pillow does."""
    from torchvision.transforms.v2.functional import equalize

    spread: Tensor = equalize(images)
    return spread
