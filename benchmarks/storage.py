"""Images stored encoded: shuffled batches, against litdata's own loop over the same bytes and against pixels; and the
memory of `fit`.

uv run --with litdata python -m benchmarks.storage [--rounds 5]
"""

import io
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from benchmarks.compare import Result, command_line, compare, interleave
from refit.artifacts.encoded import EncodedImages, encode, write_encoded
from refit.artifacts.prepared import Pixels, Split
from refit.batches.datamodule import TrainLoader
from refit.params import AugmentParams

SIDE, COUNT, BATCH = 224, 3_000, 64


def shuffled(rounds: int) -> list[Result]:
    """Parts of two photos, 224 x 224."""
    from litdata import StreamingDataLoader, StreamingDataset

    images = photos(COUNT)
    labels = np.arange(COUNT, dtype=np.int64)
    with TemporaryDirectory() as folder:
        contents = [encode(image) for image in images]
        write_encoded(Path(folder), "train", contents, (COUNT, 3, SIDE, SIDE))
        _write_litdata(f"{folder}/litdata", contents)
        pixels = np.lib.format.open_memmap(f"{folder}/pixels.npy", "w+", np.uint8, images.shape)
        pixels[:] = images
        encoded = EncodedImages(Path(folder), "train", (3, SIDE, SIDE))
        rival = StreamingDataset(f"{folder}/litdata", shuffle=True, transform=_decoded)
        measured = interleave(
            {
                "encoded": lambda: _images_per_second(_batches(Split(encoded, labels))),
                "pixels": lambda: _images_per_second(_batches(Split(pixels, labels))),
                "litdata": lambda: _images_per_second(
                    StreamingDataLoader(rival, batch_size=BATCH, num_workers=os.cpu_count(), drop_last=True)
                ),
            },
            rounds,
        )
    ours, name = measured["encoded"], "encoded photos of 224 px: images/s ÷"
    return [
        compare(f"{name} litdata's loop", ours, measured["litdata"], 0.9, "higher"),
        compare(f"{name} mapped pixels", ours, measured["pixels"], 0.05, "higher"),
    ]


def memory(rounds: int) -> list[Result]:
    """The peak resident memory of `fit` on 4 GiB of encoded photos, some 11 GiB of pixels, and on a hundredth."""
    measured = interleave({gib: partial(_peak_memory, gib) for gib in ("4", "0.04")}, rounds, warm_up=0)
    name = "peak memory of fit, 4 GiB of encoded photos ÷ 0.04 GiB"
    return [compare(name, measured["4"], measured["0.04"], 1.5, "lower")]


def _peak_memory(gib: str) -> float:
    """MiB."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.memory", "encoded", gib], stdout=subprocess.PIPE, check=True
    )
    return float(done.stdout.split()[-1])


def photos(count: int) -> Pixels:
    """Parts of the two photos that come with scikit-learn."""
    whole = [Image.fromarray(photo) for photo in load_sample_images().images]
    parts = (whole[n % 2].resize((SIDE, SIDE), box=(n % 300, n // 300, n % 300 + 320, n // 300 + 320))
             for n in range(count))  # fmt: skip
    return np.stack([np.moveaxis(np.asarray(part), 2, 0) for part in parts])


def _write_litdata(folder: str, contents: list[bytes]) -> None:
    from litdata.streaming.writer import BinaryWriter

    writer = BinaryWriter(folder, chunk_bytes="64MB")
    for number, content in enumerate(contents):
        writer.add_item(number, content)
    writer.done()
    writer.merge()


def _decoded(content: bytes) -> torch.Tensor:
    return torch.from_numpy(np.moveaxis(np.asarray(Image.open(io.BytesIO(content))), 2, 0).copy())


def _batches(split: Split) -> Iterable[Any]:
    return (batch.images for batch in TrainLoader(split, BATCH, BATCH, AugmentParams(), 0, lambda: 0))


def _images_per_second(batches: Iterable[Any]) -> float:
    began = time.perf_counter()
    images = sum(len(batch) for batch in batches)
    return images / (time.perf_counter() - began)


if __name__ == "__main__":
    command_line(__doc__, [shuffled, memory])
