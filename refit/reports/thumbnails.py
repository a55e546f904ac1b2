"""Small pictures of images, for pages that are a single file."""

import base64
import io
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

_ENLARGED = 64  # pixels; up to this side, images are stored without loss and drawn with visible pixels

STYLE = """\
  .cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(9.2rem, 1fr)); gap: .7rem; padding: 0;
           margin: 1rem 0; list-style: none; }
  .cards li { background: var(--card); border: 1px solid var(--line); border-radius: .5rem; padding: .6rem;
              font-size: .85rem; line-height: 1.35; overflow-wrap: anywhere; break-inside: avoid; }
  .cards img { width: 100%; height: 8rem; object-fit: contain; margin-bottom: .45rem; background: none; }
  .pixelated { image-rendering: pixelated; }
"""
"""CSS of cards with a thumbnail each."""


@dataclass(frozen=True)
class Thumbnail:
    url: str
    """A data URL."""
    pixelated: bool


def thumbnail(pixels: npt.NDArray[np.uint8], side: int = 128) -> Thumbnail:
    """From pixels (C, H, W), scaled down to `side` pixels if they are larger. The same pixels give the same bytes."""
    image = Image.fromarray(pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    image.thumbnail((side, side))
    content, small = io.BytesIO(), max(image.size) <= _ENLARGED
    image.save(content, "PNG" if small else "JPEG", quality=85)
    kind = "png" if small else "jpeg"
    return Thumbnail(f"data:image/{kind};base64,{base64.b64encode(content.getvalue()).decode()}", small)
