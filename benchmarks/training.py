"""`fit` with its logging and checkpoints against a raw PyTorch loop and a template-style LightningModule.

python -m benchmarks.training [--rounds 5] [--only NAME]
"""

import os
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest.mock import patch

import pytorch_lightning as pl
import torch
from torch import nn

from benchmarks.compare import Result, command_line, compare, interleave
from benchmarks.photos import against_reference
from benchmarks.raw import made_split, our_network, raw_loop, without_normalize
from benchmarks.rivals import bare_trainer, template
from benchmarks.workspace import fit, workspace
from refit.artifacts.prepared import Split
from refit.params import TrainerParams
from refit.tracking.runs import TrackedRun

GREY = (1, 28, 28)  # Fashion-MNIST's shape
AUGMENTED: dict[str, Any] = {"augment__shift": 2, "augment__flip": True}


def cnn_against_raw(rounds: int) -> list[Result]:
    """A convolutional network with 102,000 parameters, where arithmetic takes most of the time."""
    return _against_raw("100k-parameter CNN: images/s ÷ raw loop", "cnn", 19, 5_120, 1, rounds, 0.97)


def tiny_against_raw(rounds: int) -> list[Result]:
    """A network so small that the data path takes most of the time; random crops and flips in both."""
    return _against_raw("tiny network: images/s ÷ raw loop", "mlp", 16, 61_440, 3, rounds, 0.95, augmented=True)


def tiny_against_template(rounds: int) -> list[Result]:
    """Both with random crops and flips."""
    train, val = made_split(61_440, GREY), made_split(1_024, GREY)
    with workspace(train, val, 512):
        measured = interleave(
            {
                "refit": lambda: 3 * 61_440 / fit(epochs=3, model__network="mlp", model__width=16, **AUGMENTED),
                "template, 0 workers": partial(_template, train, workers=0),
                "template, 2 workers": partial(_template, train, workers=2),
            },
            rounds,
        )
    return [
        compare(f"tiny network: images/s ÷ {baseline}", measured["refit"], measured[baseline], target, "higher")
        for baseline, target in {"template, 0 workers": 6, "template, 2 workers": 5}.items()
    ]


def _template(train: Split, workers: int) -> float:
    return template(without_normalize(our_network("mlp", 16, GREY)), train, 512, workers)


def photos_against_reference(rounds: int) -> list[Result]:
    """A network with almost no work, on crops of 128 x 128."""
    name = "tiny network, photos, 128 px: images/s from the cache ÷ torchvision's reference style"
    return against_reference(name, "mlp", 16, 128, 2_048, 128, {0: 5, 2: 2}, rounds)


def step_overhead(rounds: int) -> list[Result]:
    """The overhead of a step over the raw loop's, with a network that costs almost nothing: linear, 16 to 10; and the
    whole step beside that of Lightning's Trainer without anything of Refit's."""
    images, batch_size, shape = 64_000, 64, (1, 4, 4)
    train, val = made_split(images, shape), made_split(64, shape)
    with workspace(train, val, batch_size), patch.dict("refit.systems.networks._OURS", mlp=_linear):
        measured = interleave(
            {
                "refit": lambda: fit(model__network="mlp"),
                "raw": lambda: images / raw_loop(our_network("mlp", None, shape), train, val, batch_size, 1),
                "bare Trainer": lambda: bare_trainer(our_network("mlp", None, shape), train, batch_size),
            },
            rounds,
        )
    steps = images / batch_size
    return [
        compare(
            "Refit's overhead a step above the raw loop, µs", measured["refit"], measured["raw"], 500, "lower",
            lambda ours, raw: (ours - raw) / steps * 1e6,
        ),
        compare("seconds of a step that does almost nothing ÷ a bare Trainer's", measured["refit"],
                measured["bare Trainer"], 1.4, "lower"),
    ]  # fmt: skip


def validation(rounds: int) -> list[Result]:
    """The speed of a fit's validation compared with its training, on the same number of images."""
    images = 5_120
    with workspace(made_split(images, GREY), made_split(images, GREY), 512):
        speeds = interleave({"validation": _speed_of_validation}, rounds)["validation"]
    return [compare("validation images/s ÷ training images/s", speeds, [1.0] * rounds, 1, "higher")]


def _speed_of_validation() -> float:
    """The ratio to the speed of the training, in one epoch."""
    begun: dict[str, float] = {}

    class Timed(pl.Callback):
        def on_train_epoch_start(self, *_: Any) -> None:
            begun["training"] = time.perf_counter()

        def on_validation_start(self, *_: Any) -> None:
            begun["validation"] = time.perf_counter()

        def on_validation_end(self, *_: Any) -> None:
            begun["rest"] = time.perf_counter()

    fit(callbacks=[Timed()], model__network="cnn", model__width=19)
    return (begun["validation"] - begun["training"]) / (begun["rest"] - begun["validation"])


def tracking(rounds: int) -> list[Result]:
    """MLflow's share of the training time, with short epochs, so that there is much to log for little work."""
    train, val = made_split(2_560, GREY), made_split(1_024, GREY)
    with workspace(train, val, 64):
        shares = interleave({"MLflow's share, %": _share_of_tracking}, rounds)["MLflow's share, %"]
    return [compare("what training waits for MLflow, % of its time", shares, [1.0] * rounds, 1, "lower")]


def _share_of_tracking() -> float:
    """Measured as the time in which training waits for MLflow: too short to measure as a difference of two fits."""
    in_tracking = 0.0

    class Timed(TrackedRun):
        def log_metrics(self, *args: Any, **options: Any) -> None:
            nonlocal in_tracking
            began = time.perf_counter()
            super().log_metrics(*args, **options)
            in_tracking += time.perf_counter() - began

    with patch("refit.tracking.loggers.TrackedRun", Timed):
        seconds = fit(epochs=2, model__width=16)
    return 100 * in_tracking / seconds


def memory(rounds: int) -> list[Result]:
    """The peak resident memory of a process that fits, compared with two that run the raw loop; one of these also
    imports Lightning, torchmetrics and MLflow, which a fit needs."""
    measured = interleave(
        {name: partial(_peak_memory, name) for name in ("refit", "raw", "raw-with-libraries")}, rounds, warm_up=0
    )
    ours = measured["refit"]
    return [
        compare("peak memory of fit ÷ raw loop", ours, measured["raw"], 1.15, "lower"),
        compare("peak memory of fit ÷ raw loop beside Lightning and MLflow", ours, measured["raw-with-libraries"], 1.15,
                "lower"),
    ]  # fmt: skip


def _against_raw(name: str, network: str, width: int, images: int, epochs: int, rounds: int, target: float,
                 augmented: bool = False) -> list[Result]:  # fmt: skip
    """Both with one PyTorch thread; then both with one thread per core. If it augments, Refit keeps one PyTorch thread,
    because another thread augments at the same time."""
    batch_size, cores = 512, os.cpu_count() or 1
    changes: dict[str, Any] = {"model__network": network, "model__width": width, **(AUGMENTED if augmented else {})}
    train, val = made_split(images, GREY), made_split(2_048, GREY)

    def ours(threads: int) -> float:
        return epochs * images / fit(epochs, **changes, trainer__threads=threads)

    def raw(threads: int) -> float:
        torch.set_num_threads(threads)
        speed = raw_loop(our_network(network, width, GREY), train, val, batch_size, epochs, augmented)
        torch.set_num_threads(TrainerParams().threads)
        return speed

    with workspace(train, val, batch_size):
        measured = interleave(
            {
                "refit, one thread": lambda: ours(1),
                "raw, one thread": lambda: raw(1),
                "refit, all cores": lambda: ours(1 if augmented else cores),
                "raw, all cores": lambda: raw(cores),
            },
            rounds,
        )
    return [
        compare(f"{name}, {how}", measured[f"refit, {how}"], measured[f"raw, {how}"], target, "higher")
        for how in ("one thread", "all cores")
    ]


def _linear(pixels: int, outputs: int, width: int = 0, dropout: float = 0.0) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(pixels, outputs))


def _peak_memory(name: str) -> float:
    """MiB, measured in a separate process."""
    done = subprocess.run([sys.executable, "-m", "benchmarks.memory", name], capture_output=True, check=True)
    return float(done.stdout)


@contextmanager
def _quietly() -> Iterator[None]:
    """With the default threads and seed of `fit`, and without warnings."""
    torch.set_num_threads(TrainerParams().threads)
    pl.seed_everything(0, verbose=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


if __name__ == "__main__":
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    with _quietly():
        command_line(
            __doc__,
            [
                step_overhead,
                cnn_against_raw,
                tiny_against_raw,
                tiny_against_template,
                photos_against_reference,
                validation,
                tracking,
                memory,
            ],
        )
