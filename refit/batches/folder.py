"""Batches of new images from files, decoded like the training images."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from refit.artifacts.prepared import Color, Pixels
from refit.data.images import BadImageError, decode, open_image
from refit.params.data import Resize


class FolderLoader:
    """Batches of the images that can be decoded. Iteration fills `files` and `unreadable`."""

    def __init__(
        self, files: Sequence[Path], color: Color, size: tuple[int, int], resize: Resize, batch_size: int
    ) -> None:
        """The input of a model: `color`, `size` (H, W) and `resize` are those of its record."""
        self.batches = [files[start : start + batch_size] for start in range(0, len(files), batch_size)]
        self.color: Color = color
        self.size = size
        self.resize: Resize = resize
        self.files: list[Path] = []
        """The decoded files, in the order of the predictions."""
        self.unreadable: dict[Path, str] = {}
        """The files that could not be decoded, with the reason."""

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Tensor]:
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow releases the GIL while decoding
            for files in self.batches:
                decoded = [image for image in pool.map(self._decode, files) if image is not None]
                self.files += [file for file in files if file not in self.unreadable]
                if decoded:
                    yield torch.from_numpy(np.stack(decoded))

    def decode(self, files: Sequence[Path]) -> Pixels:
        """The pixels of files that were decoded before: uint8 (N, C, H, W)."""
        again = FolderLoader(files, self.color, self.size, self.resize, len(files))
        return np.concatenate([batch.numpy() for batch in again])

    def _decode(self, file: Path) -> Pixels | None:
        try:
            with open_image(file) as image:
                return decode(image, self.color, self.size, self.resize)
        except BadImageError as error:
            self.unreadable[file] = str(error)
            return None
