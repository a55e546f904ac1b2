"""Print this process's peak memory, in MiB, after an epoch of `fit` or of the raw loop.

python -m benchmarks.memory refit|raw|raw-with-libraries (benchmarks.training starts it)
python -m benchmarks.memory encoded GIB                 (benchmarks.storage starts it)
"""

import importlib
import sys

import numpy as np
import torch

from benchmarks.compare import peak_memory

IMAGES, SHAPE, WIDTH, BATCH_SIZE = 2_560, (1, 28, 28), 19, 512


def fit_once() -> None:
    from benchmarks.raw import made_split
    from benchmarks.workspace import fit, workspace  # imports Lightning, which the raw loop does not use

    with workspace(made_split(IMAGES, SHAPE), made_split(1_024, SHAPE), BATCH_SIZE):
        fit(model__width=WIDTH)


def loop_once() -> None:
    from benchmarks.raw import made_split, our_network, raw_loop

    raw_loop(
        our_network("cnn", WIDTH, SHAPE), made_split(IMAGES, SHAPE), made_split(1_024, SHAPE), BATCH_SIZE, epochs=1
    )


def loop_with_libraries() -> None:
    for library in ("pytorch_lightning", "torchmetrics.classification", "mlflow"):
        importlib.import_module(library)
    loop_once()


def fit_encoded() -> None:
    """Train on as many encoded photos as take this many GiB. Few are different, as making them takes long."""
    from benchmarks.storage import photos
    from benchmarks.workspace import fit, workspace
    from refit.artifacts.encoded import encode, write_encoded
    from refit.artifacts.paths import PREPARED
    from refit.artifacts.prepared import Split

    images = photos(256)
    few = Split(images, np.arange(256) % 10)
    with workspace(few, few, batch_size=64):
        contents = [encode(image) for image in images]
        count = int(float(sys.argv[2]) * 2**30 / sum(map(len, contents))) * 256
        (PREPARED / "train_images.npy").unlink()
        write_encoded(PREPARED, "train", (contents[n % 256] for n in range(count)), (count, *images.shape[1:]))
        np.save(PREPARED / "train_labels.npy", np.arange(count) % 10)
        fit(model__network="cnn", model__width=4, tracking__loggers=[])


if __name__ == "__main__":
    torch.set_num_threads(1)
    {
        "refit": fit_once, "raw": loop_once, "raw-with-libraries": loop_with_libraries, "encoded": fit_encoded,
    }[sys.argv[1]]()  # fmt: skip
    print(peak_memory())
