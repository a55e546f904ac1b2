"""Operations on a batch of images, each with an amount of its own for each image, as torchvision does them to one.

Images are uint8 (N, C, H, W), C 1 or 3; amounts are float32 (N,). What comes from outside an image is zero.
"""

from collections.abc import Callable

import torch
from torch import Tensor

CPU_CACHE = 4 * 2**20  # bytes of float pixels that a CPU works on at once: more takes twice as long an image


def a_few_at_once(change: Callable[..., Tensor], images: Tensor, *choices: Tensor) -> Tensor:
    """What `change` makes of images, (N, ...), and of their choices, (N, ...) each; on a CPU part by part."""
    at_once = max(1, CPU_CACHE // (4 * images[0].numel())) if images.device.type == "cpu" else len(images)
    parts = zip(*(whole.split(at_once) for whole in (images, *choices)), strict=True)  # type: ignore[no-untyped-call]
    return torch.cat([change(*part) for part in parts])


def shear_x(images: Tensor, amounts: Tensor) -> Tensor:
    """Each row to the left by the amount times its distance from the top."""
    zero, one = torch.zeros_like(amounts), torch.ones_like(amounts)
    return _affine(images, (one, amounts, amounts * images.shape[2] / 2), (zero, one, zero))


def shear_y(images: Tensor, amounts: Tensor) -> Tensor:
    """Each column up by the amount times its distance from the left."""
    zero, one = torch.zeros_like(amounts), torch.ones_like(amounts)
    return _affine(images, (one, zero, zero), (amounts, one, amounts * images.shape[3] / 2))


def translate_x(images: Tensor, amounts: Tensor) -> Tensor:
    """To the right, by whole pixels."""
    zero, one = torch.zeros_like(amounts), torch.ones_like(amounts)
    return _affine(images, (one, zero, -amounts.trunc()), (zero, one, zero))


def translate_y(images: Tensor, amounts: Tensor) -> Tensor:
    """Down, by whole pixels."""
    zero, one = torch.zeros_like(amounts), torch.ones_like(amounts)
    return _affine(images, (one, zero, zero), (zero, one, -amounts.trunc()))


def rotate(images: Tensor, amounts: Tensor) -> Tensor:
    """About the centre, counter-clockwise, degrees."""
    cos, sin, zero = amounts.deg2rad().cos(), amounts.deg2rad().sin(), torch.zeros_like(amounts)
    return _affine(images, (cos, -sin, zero), (sin, cos, zero))


def _affine(images: Tensor, column: tuple[Tensor, Tensor, Tensor], row: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Each pixel (x, y), counted from the centre, is the nearest to (a x + b y + c, d x + e y + f), where `column` is
    (a, b, c) and `row` is (d, e, f), each (N,)."""
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
    """Differences from the mean grey of the image, times the factor."""
    grey = _grey(images)
    return _blend(images, grey.sum(dim=(1, 2, 3), keepdim=True) / grey[0].numel(), factors)  # of integers: exact


def saturation(images: Tensor, factors: Tensor) -> Tensor:
    """Differences from the grey of each pixel, times the factor."""
    return images if images.shape[1] == 1 else _blend(images, _grey(images), factors)


def sharpness(images: Tensor, factors: Tensor) -> Tensor:
    """Differences from the smoothed image, times the factor; the border stays as it is."""
    wide = images.to(torch.int16)
    rows = wide[:, :, :-2] + wide[:, :, 1:-1] + wide[:, :, 2:]
    squares = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
    smooth = images.float()
    smooth[:, :, 1:-1, 1:-1] = ((squares + 4 * wide[:, :, 1:-1, 1:-1]) / 13).round_()
    return _blend(images, smooth, factors)


def _grey(images: Tensor) -> Tensor:
    """The luma of each pixel: uint8 (N, 1, H, W)."""
    from torchvision.transforms.v2.functional import rgb_to_grayscale

    grey: Tensor = rgb_to_grayscale(images)
    return grey


def _blend(images: Tensor, others: Tensor | float, factors: Tensor) -> Tensor:
    """The factor of the image and the rest of the other; a factor above 1 leads away from the other."""
    factors = factors[:, None, None, None]
    return (images * factors).add_(others * (1 - factors)).clamp_(0, 255).to(torch.uint8)


def posterize(images: Tensor, bits: Tensor) -> Tensor:
    """The highest bits of each value alone, this many."""
    kept = (255 << (8 - bits.round().to(torch.int16))) & 255
    return images & kept.to(torch.uint8)[:, None, None, None]


def solarize(images: Tensor, thresholds: Tensor) -> Tensor:
    """Values from the threshold on, 0 to 255, are inverted."""
    return torch.where(images >= thresholds[:, None, None, None], 255 - images, images)


def auto_contrast(images: Tensor) -> Tensor:
    """Each channel stretched over all values."""
    from torchvision.transforms.v2.functional import autocontrast

    stretched: Tensor = autocontrast(images)
    return stretched


def equalize(images: Tensor) -> Tensor:
    """Each channel's values spread evenly, as Pillow does."""
    from torchvision.transforms.v2.functional import equalize

    spread: Tensor = equalize(images)
    return spread
