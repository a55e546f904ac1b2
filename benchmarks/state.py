"""The cost of saving states, from which a killed fit resumes, for a fit that is not interrupted.

python -m benchmarks.state [--rounds 5] [--only NAME]
"""

from functools import partial
from unittest.mock import patch

import pytorch_lightning as pl

from benchmarks.compare import Result, command_line, compare, interleave
from benchmarks.raw import made_split
from benchmarks.workspace import fit, workspace
from refit.training.resume import FitState

_SAVE = FitState._save


def digits(rounds: int) -> list[Result]:
    """Epochs of a third of a second."""
    return [_cost("state saving, size of digits", 1_149, (1, 8, 8), 64, 60, rounds)]


def fashion_mnist(rounds: int) -> list[Result]:
    """A fifth of its images. An epoch is a fifth as long, so the share of the states is five times as large."""
    return [_cost("state saving, size of Fashion-MNIST", 10_752, (1, 28, 28), 256, 2, rounds)]


def _cost(name: str, images: int, shape: tuple[int, int, int], batch_size: int, epochs: int, rounds: int) -> Result:
    with workspace(made_split(images, shape), made_split(images // 8, shape), batch_size):
        measured = interleave({"with": partial(_with, epochs), "without": partial(_without, epochs)}, rounds)
    return compare(f"{name}: seconds of fit ÷ without", measured["with"], measured["without"], 1.02, "lower")


def _with(epochs: int) -> float:
    saved: list[int] = []

    def save(state: FitState, trainer: pl.Trainer) -> None:
        saved.append(trainer.global_step)
        _SAVE(state, trainer)

    with patch.object(FitState, "_save", save):
        seconds = fit(epochs)
    assert saved, f"a fit of {seconds:.1f} s has saved no state: give it more epochs"
    return seconds


def _without(epochs: int) -> float:
    with patch.object(FitState, "_is_due", lambda self: False):
        return fit(epochs)


if __name__ == "__main__":
    command_line(__doc__, [digits, fashion_mnist])
