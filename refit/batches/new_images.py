"""Batches of new images, decoded like the training images."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from refit.artifacts.prepared import Color, Pixels
from refit.data.images import BadImageError, decode
from refit.data.sources.source import Unlabelled
from refit.params.data import Resize


class NewImages:
    """Batches of the images that can be decoded. Iteration fills `decoded` and `unreadable`."""

    def __init__(
        self, images: Sequence[Unlabelled], color: Color, size: tuple[int, int], resize: Resize, batch_size: int
    ) -> None:
        """The input of a model: `color`, `size` (H, W) and `resize` are those of its record."""
        self.batches = [images[start : start + batch_size] for start in range(0, len(images), batch_size)]
        self.color: Color = color
        self.size = size
        self.resize: Resize = resize
        self.decoded: list[Unlabelled] = []
        """In the order of the predictions."""
        self.unreadable: dict[str, str] = {}
        """The names of the images that could not be decoded, with the reason."""

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Tensor]:
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow releases the GIL while decoding
            for images in self.batches:
                decoded = [pixels for pixels in pool.map(self._decode, images) if pixels is not None]
                self.decoded += [image for image in images if image.name not in self.unreadable]
                if decoded:
                    yield torch.from_numpy(np.stack(decoded))

    def decode(self, images: Sequence[Unlabelled]) -> Pixels:
        """The pixels of images that were decoded before: uint8 (N, C, H, W)."""
        again = NewImages(images, self.color, self.size, self.resize, len(images))
        return np.concatenate([batch.numpy() for batch in again])

    def _decode(self, image: Unlabelled) -> Pixels | None:
        try:
            with image.open() as opened:
                return decode(opened, self.color, self.size, self.resize)
        except BadImageError as error:
            self.unreadable[image.name] = str(error)
            return None
