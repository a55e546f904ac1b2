"""What is printed of the time of a fit, by a clock of the test's own."""

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from refit.artifacts.prepared import DatasetInfo, read_info
from refit.params import AugmentParams, Params
from refit.training import pace
from refit.training.pace import Pace, announce_pace


class Clock:
    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(pace, "time", clock)
    return clock


Epochs = Callable[..., None]


@pytest.fixture
def run(clock: Clock, digits: Any, params: Params) -> Epochs:
    """Epochs of ten steps; the first step takes a minute more, as a compilation does."""
    info: DatasetInfo = read_info(digits)
    watcher = Pace(info, params.trainer, params.augment)

    def epochs(count: int, step: float, validation: float, resumed: bool = False) -> None:
        trainer: Any = SimpleNamespace(is_global_zero=True, num_training_batches=10, max_epochs=11, current_epoch=0)
        system: Any = None
        for trainer.current_epoch in range(count):
            if not (resumed and trainer.current_epoch == 0):
                watcher.on_train_epoch_start(trainer, system)
            for number in range(10):
                clock.now += step + 60 * (trainer.current_epoch == number == 0)
                watcher.on_train_batch_end(trainer, system, None, None, number)
            clock.now += validation
            watcher.on_train_epoch_end(trainer, system)

    return epochs


def test_the_time_is_announced_once_and_stays_if_it_was_right(run: Epochs, capsys: pytest.CaptureFixture[str]) -> None:
    run(3, step=2.0, validation=2.0)
    (line,) = capsys.readouterr().out.splitlines()
    assert line == "about 22 s an epoch, 4 min for 11 epochs"


def test_a_wrong_estimate_is_corrected_once_after_the_first_epoch(
    run: Epochs, capsys: pytest.CaptureFixture[str]
) -> None:
    run(3, step=2.0, validation=20.0)
    _, line = capsys.readouterr().out.splitlines()
    assert line == "an epoch takes 42 s, not 22 s: about 7 min left"


def test_a_short_fit_corrects_no_estimate(run: Epochs, capsys: pytest.CaptureFixture[str]) -> None:
    run(3, step=0.1, validation=2.0)
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_the_rest_of_a_resumed_epoch_corrects_no_estimate(run: Epochs, capsys: pytest.CaptureFixture[str]) -> None:
    run(3, step=2.0, validation=20.0, resumed=True)
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_images_of_validation_take_as_much_longer_as_they_have_more_pixels(digits: Any, params: Params) -> None:
    info: DatasetInfo = read_info(digits)
    info = replace(info, shape=[3, 224, 224], counts={"train": 1000, "val": 1000, "test": 0})
    same = announce_pace(0.01, info, 2, params.trainer, AugmentParams())
    smaller = announce_pace(0.01, info, 2, params.trainer, AugmentParams(train_size=112))
    assert same == "about 14 s an epoch, 28 s for 2 epochs"
    assert smaller == "about 26 s an epoch, 52 s for 2 epochs"


def test_the_size_that_shortens_a_fit_is_that_of_training(digits: Any, params: Params) -> None:
    info: DatasetInfo = replace(read_info(digits), shape=[3, 224, 224])
    assert "data.image_size: 112 (a quarter" in announce_pace(1.0, info, 2, params.trainer, AugmentParams())
    advice = announce_pace(1.0, info, 2, params.trainer, AugmentParams(train_size=160))
    assert "augment.train_size: 80 (a quarter of the work)" in advice
    assert "data.image_size" not in advice
