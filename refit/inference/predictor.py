"""From pixels to answers, for all stages, commands and users: everything calls the model's `forward`."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor

from refit.artifacts.model import WEIGHTS, ModelRecord, read_record, read_weights
from refit.artifacts.paths import MODEL
from refit.batches.datamodule import EVALUATION_FACTOR
from refit.batches.new_images import NewImages
from refit.data.images import find_images, open_image
from refit.data.sources.source import Unlabelled
from refit.runtime.allocator import keep_freed_memory
from refit.runtime.errors import UserError
from refit.systems.build import assemble
from refit.systems.system import System
from refit.tasks.task import TASKS, Task


def read_model(folder: Path = MODEL) -> tuple[pl.LightningModule, ModelRecord]:
    """The trained system in eval mode, and its record. `system(images)` maps uint8 images (N, C, H, W) to answers.

    Raises UserError if a file of the model is missing, damaged or does not fit the others.
    """
    record = read_record(folder)
    weights = read_weights(record, folder)
    system = assemble(record)
    try:
        # The precision of the fit, which may be double.
        system.to(next(weight.dtype for weight in weights.values() if weight.is_floating_point()))
        system.load_state_dict(weights)
    except StopIteration:
        raise UserError(f"{folder / WEIGHTS} contains no weights; run: dvc repro --force fit") from None
    except RuntimeError as error:
        raise UserError(f"{folder / WEIGHTS} does not fit the system in model.json: {error}") from None
    return system.eval(), record


def predict(trainer: pl.Trainer, system: pl.LightningModule, images: Any, task: str) -> dict[str, Tensor]:
    """The answers of `system` by name, one row per image, on the CPU. `images` is a loader of uint8 batches
    (N, C, H, W), not a list of them. Raises UserError if the answers do not have the form that the task requires."""
    return _gather(system, trainer.predict(system, images) or [], TASKS[task])


@dataclass(frozen=True)
class Prediction:
    """The answer for one image file."""

    file: Path
    probabilities: dict[str, float]
    """By class, most probable first. Empty if the file cannot be decoded."""
    more: dict[str, float]
    """The system's other answers with one number per image, by name, such as an autoencoder's reconstruction_error."""
    error: str | None = None
    """Why the file cannot be decoded."""

    @property
    def label(self) -> str | None:
        """The most probable class; None if the file cannot be decoded."""
        return next(iter(self.probabilities), None)

    @property
    def probability(self) -> float:
        """Of the most probable class; 0 if the file cannot be decoded."""
        return next(iter(self.probabilities.values()), 0.0)


class Predictor:
    """A trained model that answers for image files. It needs the model's folder alone: no params.yaml, no DVC."""

    def __init__(self, system: pl.LightningModule, record: ModelRecord) -> None:
        self.system = system
        self.record = record

    @classmethod
    def load(cls, folder: str | Path = MODEL) -> Self:
        """The model in `folder`, on a GPU if there is one. Raises UserError as read_model."""
        system, record = read_model(Path(folder))
        keep_freed_memory()
        return cls(system.to("cuda" if torch.cuda.is_available() else "cpu"), record)

    def predict(self, paths: str | Path | Iterable[str | Path]) -> list[Prediction]:
        """One prediction per image file, in the order of `paths`. A folder stands for the images in it, sorted.

        A file that cannot be decoded gets a prediction with an `error`. Raises UserError if the system's answers do not
        have the form that its task requires.
        """
        given = [Path(path) for path in ([paths] if isinstance(paths, str | Path) else paths)]
        files = [file for path in given for file in (find_images(path) if path.is_dir() else [path])]
        record, task = self.record, TASKS[self.record.task]
        batch_size = EVALUATION_FACTOR * record.batch_size
        images = [Unlabelled(str(file), partial(open_image, file)) for file in files]
        loader = NewImages(images, record.color, record.shape[1:], record.resize, batch_size)
        with torch.inference_mode():
            batches = [self.system(batch.to(self.system.device)) for batch in loader]
        answers = _gather(self.system, batches, task)
        probabilities = answers.pop(task.ANSWER).tolist() if answers else []
        more = columns_of_each(answers, len(probabilities))
        predictions = {name: Prediction(Path(name), {}, {}, why) for name, why in loader.unreadable.items()}
        for image, row, numbers in zip(loader.decoded, probabilities, more, strict=True):
            probable = _most_probable_first(row, record.classes)
            predictions[image.name] = Prediction(Path(image.name), probable, numbers)
        return [predictions[image.name] for image in images]


def _most_probable_first(probabilities: Sequence[float], classes: Sequence[str]) -> dict[str, float]:
    return dict(sorted(zip(classes, probabilities, strict=True), key=lambda pair: -pair[1]))


class TestAnswers(Callback):
    """Collects the answers of test_step. For a user's own system it checks that forward returns the same."""

    __test__ = False  # not a test class for pytest

    def __init__(self, task: str) -> None:
        self.task = TASKS[task]
        self.batches: list[Any] = []

    def on_test_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        if not self.batches and not isinstance(pl_module, System):
            _check_is_forward(pl_module, outputs, batch.images, trainer, self.task)
        self.batches.append(outputs)

    def gather(self, system: pl.LightningModule) -> dict[str, Tensor]:
        """The collected answers, in the form that `predict` returns."""
        return _gather(system, self.batches, self.task)


def columns_of_each(answers: Mapping[str, Tensor], images: int) -> list[dict[str, float]]:
    """The answers with one number per image, (images,), as one dictionary per image."""
    columns = {name: values.tolist() for name, values in answers.items() if values.ndim == 1}
    return [{name: round(column[i], 6) for name, column in columns.items()} for i in range(images)]


def _check_is_forward(
    system: pl.LightningModule, outputs: Any, images: Tensor, trainer: pl.Trainer, task: Task
) -> None:
    """Raise UserError unless test_step returns the answers of forward, which is what users of the model call."""
    with trainer.precision_plugin.test_step_context():
        answers = _named(system, system(images), task)
    tested = _named(system, outputs, task)
    if answers.keys() != tested.keys() or not all(_alike(answers[name], tested[name]) for name in answers):
        raise UserError(f"{type(system).__name__}: test_step and forward return different answers; end test_step "
                        "with `return self(batch.images)`; see docs/systems.md")  # fmt: skip


def _alike(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.allclose(one, other, atol=1e-3, equal_nan=True)


def _gather(system: pl.LightningModule, batches: Sequence[Any], task: Task) -> dict[str, Tensor]:
    named = [_named(system, batch, task) for batch in batches]
    if not named:
        return {}
    answers = {name: torch.cat([batch[name] for batch in named]).cpu() for name in named[0]}
    task.check_answer(answers[task.ANSWER])
    return answers


def _named(system: pl.LightningModule, answers: Any, task: Task) -> dict[str, Tensor]:
    """A batch's answers by name; a single tensor is the task's answer."""
    named = {task.ANSWER: answers} if isinstance(answers, Tensor) else answers
    if not isinstance(named, dict) or task.ANSWER not in named:
        raise UserError(
            f"{type(system).__name__}: forward and test_step must return {task.ANSWER}, one row per image, or a "
            f"dictionary of tensors with {task.ANSWER!r}; see docs/systems.md"
        )
    return named
