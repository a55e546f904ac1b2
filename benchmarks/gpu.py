"""Benchmarks that need a GPU: speed compared with the raw loop, host synchronisations, CIFAR-10's 94 %, and photos.

python -m benchmarks.gpu [--rounds 5] [--only NAME]

`cifar10` reads the images from $CIFAR10: a folder with class folders in `train` and `test`, or a folder for
torchvision's files, which are downloaded if it does not contain them.
"""

import os
import statistics
import sys
import time
import warnings
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import yaml

import stages.fit
import stages.prepare
from benchmarks.compare import Result, command_line, compare, interleave
from benchmarks.photos import against_reference
from benchmarks.raw import made_split, our_network, raw_loop
from benchmarks.workspace import empty_workspace, fit, workspace, write_tuning
from refit.artifacts.prepared import read_split
from refit.batches.datamodule import ImageLoader
from refit.inference.predictor import predict, read_model
from refit.params import TrainerParams, check_params
from refit.params.reads import READS
from refit.training.trainer import inference_trainer

COLOUR, PHOTO, FULL = (3, 32, 32), (3, 176, 176), (3, 224, 224)
BATCH_SIZE = 512
CHOICES: dict[str, Any] = {"model__network": "resnet9", "augment__shift": 2, "augment__flip": True}
RECIPE = Path(__file__).resolve().parents[1] / "docs/recipes/cifar10.yaml"


def small_images() -> AbstractContextManager[None]:
    """A workspace with images of the number and size of CIFAR-10's."""
    return workspace(made_split(51_200, COLOUR), made_split(2_048, COLOUR), BATCH_SIZE)


def against_raw(rounds: int) -> list[Result]:
    """ResNet-9 on images of CIFAR-10's size, random crops and flips, bfloat16 in both; then with both compiled, without
    the round that compiles."""
    name = "GPU, ResNet-9: images/s ÷ raw loop"
    return [_against_raw(name, None, rounds), _against_raw(f"{name}, both compiled", "reduce-overhead", rounds)]


def _against_raw(name: str, mode: str | None, rounds: int) -> Result:
    train, val, epochs = made_split(51_200, COLOUR), made_split(2_048, COLOUR), 4
    network = our_network("resnet9", None, COLOUR)
    with workspace(train, val, BATCH_SIZE):
        measured = interleave(
            {
                "refit": lambda: epochs * len(train.labels) / fit(epochs, **CHOICES, trainer__compile=mode),
                "raw": lambda: raw_loop(network, train, val, BATCH_SIZE, epochs, augmented=True, compile_mode=mode),
            },
            rounds,
        )
    return compare(name, measured["refit"], measured["raw"], 0.95, "higher")


class _Waits(pl.Callback):
    """Counts PyTorch's warnings of synchronisations with the device, after the first ten batches of each epoch."""

    steps = waits = 0
    warned: list[warnings.WarningMessage] | None = None

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, number: int) -> None:
        self._count()
        if number >= 10:
            self.caught = warnings.catch_warnings(record=True)
            self.warned = self.caught.__enter__()
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any,
                           number: int) -> None:  # fmt: skip
        if number + 1 == trainer.num_training_batches:
            self._count()  # the end of an epoch may synchronise

    def _count(self) -> None:
        if self.warned is None:
            return
        torch.cuda.set_sync_debug_mode("default")
        self.caught.__exit__(None, None, None)
        waits = [str(one.message) for one in self.warned if "synchronizing CUDA operation" in str(one.message)]
        print(*waits, sep="\n", end="\n" if waits else "", file=sys.stderr)
        self.steps, self.waits, self.warned = self.steps + 1, self.waits + len(waits), None


def host_waits(rounds: int) -> list[Result]:
    """How often a step synchronises with the device, with weight averaging and augmentation on."""
    each = []
    with small_images():
        for _ in range(rounds):
            waits = _Waits()
            fit(callbacks=[waits], **CHOICES, fit__averaging="ema", augment__cutout=8)
            each.append(waits.waits / waits.steps)
    return [compare("GPU: host synchronisations a step", each, [1.0] * rounds, 0, "lower")]


def determinism(rounds: int) -> list[Result]:
    """The cost of `trainer.deterministic: true`, and whether the same fit gives the same bits."""
    epochs, models = 4, set()

    def same_again() -> float:
        seconds = fit(epochs, **CHOICES)
        models.add(read_model()[1].sha256)
        return seconds

    with small_images():
        measured = interleave(
            {"deterministic": same_again, "not": lambda: fit(epochs, **CHOICES, trainer__deterministic=False)}, rounds
        )
    return [
        compare(
            "GPU, ResNet-9: seconds, deterministic ÷ not", measured["deterministic"], measured["not"], 1.05, "lower"
        ),
        compare("GPU, ResNet-9: different models of one deterministic fit", [float(len(models))], [1.0], 1, "lower"),
    ]


def compiled(rounds: int) -> list[Result]:
    """The speed-up of `trainer.compile`, without the compilation itself."""
    epochs = 4
    with small_images():
        measured = interleave(
            {
                mode or "none": partial(fit, epochs, **CHOICES, trainer__compile=mode)
                for mode in (None, "default", "reduce-overhead")
            },
            rounds,
        )
    return [
        compare(f"GPU, ResNet-9: images/s, compile: {mode} ÷ none", measured["none"], measured[mode], 1.0, "higher")
        for mode in ("default", "reduce-overhead")
    ]


def cifar10(rounds: int) -> list[Result]:
    """The recipe in docs/recipes with a different seed in each round, at least ten rounds."""
    values = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))
    root = Path(os.environ.get("CIFAR10", "data/raw")).absolute()
    values["data"] |= {"root": str(root)} | ({"source": "folder"} if (root / "train").is_dir() else {})
    accuracies, of_training, of_stage = [], [], []
    with empty_workspace():
        write_tuning(values["batch"]["size"], values["optimizer"]["learning_rate"])
        stages.prepare.main(check_params(values).only(*READS["prepare"]))
        for seed in range(-1, max(rounds, 10)):  # the first one is a warm-up
            values["seed"] = seed + 1
            began = time.perf_counter()
            seconds = fit(values["fit"]["max_epochs"], params=values)
            of_stage.append(time.perf_counter() - began)
            accuracies.append(100 * _test_accuracy(check_params(values).trainer))
            of_training.append(seconds)
            print(f"  seed {values['seed']}: {accuracies[-1]:.2f} %, {seconds:.2f} s, stage {of_stage[-1]:.2f} s",
                  file=sys.stderr)  # fmt: skip
    mean = statistics.mean(accuracies[1:])
    count = len(accuracies) - 1
    return [
        Result("GPU, CIFAR-10: mean test accuracy, %", mean, min(accuracies[1:]), max(accuracies[1:]), 94, "higher",
               count),
        compare("GPU, CIFAR-10: training, s", of_training[1:], [1.0] * count, 4, "lower"),
        compare("GPU, CIFAR-10: all of a fit after one that compiled, s", of_stage[1:], [1.0] * count, 15, "lower"),
    ]  # fmt: skip


def _test_accuracy(trainer: TrainerParams) -> float:
    system, model = read_model()
    split = read_split("test")
    images = ImageLoader(split, 2 * model.batch_size)
    predicted = predict(inference_trainer(trainer), system, images, model.task)["probabilities"].argmax(dim=1)
    return (predicted == torch.from_numpy(split.labels)).float().mean().item()


def photos(rounds: int) -> list[Result]:
    """ResNet-18 on random resized crops of 176 x 176 pixels."""
    images = 16_384
    with workspace(made_split(images, PHOTO), made_split(1_024, PHOTO), BATCH_SIZE):
        choices: dict[str, Any] = {
            "model__network": "torchvision:resnet18",
            "augment__crop_area": 0.35,
            "augment__flip": True,
        }
        measured = interleave({"images/s": lambda: 2 * images / fit(2, **choices)}, rounds)
    return [compare("GPU, ResNet-18 at 176 px: images/s", measured["images/s"], [1.0] * rounds, 10_000, "higher")]


def fine_tuning(rounds: int) -> list[Result]:
    """All layers of a ResNet-50 and of a ViT-S at 224 pixels, with random weights: the speed does not depend on them.
    In Refit the head has ten times the learning rate of the others, as in a fine-tuning."""
    return [_fine_tuning(network, rounds) for network in ("torchvision:resnet50", "timm:vit_small_patch16_224")]


def _fine_tuning(network: str, rounds: int) -> Result:
    train, val, epochs, batch_size = made_split(8_192, FULL), made_split(512, FULL), 2, 128
    choices: dict[str, Any] = {
        "model__network": network,
        "optimizer__backbone_learning_rate": 0.1,
        "augment__shift": 2,
        "augment__flip": True,
    }
    raw = our_network(network, None, FULL)
    with workspace(train, val, batch_size):
        measured = interleave(
            {
                "refit": lambda: epochs * len(train.labels) / fit(epochs, **choices),
                "raw": lambda: raw_loop(raw, train, val, batch_size, epochs, augmented=True),
            },
            rounds,
        )
    name = f"GPU, fine-tuning of {network}: images/s ÷ raw loop"
    return compare(name, measured["refit"], measured["raw"], 0.95, "higher")


def photos_against_reference(rounds: int) -> list[Result]:
    """The same on photo files, which the baseline decodes with one worker per core."""
    name = "GPU, ResNet-18 at 176 px: images/s from the cache ÷ torchvision's reference style"
    return against_reference(name, "torchvision:resnet18", None, 176, 8_192, 256, {os.cpu_count() or 1: 2}, rounds)


if __name__ == "__main__":
    if not torch.cuda.is_available() and not {"-h", "--help"} & set(sys.argv):
        sys.exit("error: no CUDA device; make bench runs the benchmarks that do not need one")
    command_line(
        __doc__,
        [against_raw, host_waits, determinism, compiled, cifar10, photos, photos_against_reference, fine_tuning],
    )
