"""What the saving of states, from which a killed fit goes on, costs a fit that nothing disturbs.

python -m benchmarks.state [--rounds 5] [--only NAME]
"""

from functools import partial
from unittest.mock import patch

from benchmarks.compare import Result, command_line, compare, interleave
from benchmarks.raw import made_split
from benchmarks.workspace import fit, workspace
from refit.training.resume import FitState


def digits(rounds: int) -> list[Result]:
    """Epochs of a third of a second."""
    return [_cost("state saving, size of digits", 1_149, (1, 8, 8), 64, 20, rounds)]


def fashion_mnist(rounds: int) -> list[Result]:
    """A fifth of its images, so an epoch of a fifth of the length: its states cost five times the share they would."""
    return [_cost("state saving, size of Fashion-MNIST", 10_752, (1, 28, 28), 256, 2, rounds)]


def _cost(name: str, images: int, shape: tuple[int, int, int], batch_size: int, epochs: int, rounds: int) -> Result:
    with workspace(made_split(images, shape), made_split(images // 8, shape), batch_size):
        measured = interleave({"with": partial(fit, epochs), "without": partial(_without, epochs)}, rounds)
    return compare(f"{name}: seconds of fit ÷ without", measured["with"], measured["without"], 1.02, "lower")


def _without(epochs: int) -> float:
    with patch.object(FitState, "_is_due", lambda self: False):
        return fit(epochs)


if __name__ == "__main__":
    command_line(__doc__, [digits, fashion_mnist])
