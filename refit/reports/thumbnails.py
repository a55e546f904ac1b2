"""Small pictures inside a page."""

import base64
import io
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

SIDE = 128  # pixels; larger images are scaled down
_ENLARGED = 64  # pixels; up to this side, images are stored without loss and drawn with visible pixels


@dataclass(frozen=True)
class Thumbnail:
    url: str
    """A data URL."""
    pixelated: bool


def thumbnail(pixels: npt.NDArray[np.uint8]) -> Thumbnail:
    """From pixels, uint8 (C, H, W)."""
    image = Image.fromarray(pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    image.thumbnail((SIDE, SIDE))
    content, small = io.BytesIO(), max(image.size) <= _ENLARGED
    image.save(content, "PNG" if small else "JPEG", quality=85)
    kind = "png" if small else "jpeg"
    return Thumbnail(f"data:image/{kind};base64,{base64.b64encode(content.getvalue()).decode()}", small)
