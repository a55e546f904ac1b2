"""Print this process's peak memory, in MiB, after an epoch of `fit` or of the raw loop.

python -m benchmarks.memory refit|raw|raw-with-libraries (benchmarks.training starts it)
"""

import importlib
import sys

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


if __name__ == "__main__":
    torch.set_num_threads(1)
    {"refit": fit_once, "raw": loop_once, "raw-with-libraries": loop_with_libraries}[sys.argv[1]]()
    print(peak_memory())
