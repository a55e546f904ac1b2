"""From pixels to answers, for every stage and command: a model's `forward`, called by a Trainer."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor

from refit.artifacts.model import WEIGHTS, ModelRecord, read_record, read_weights
from refit.artifacts.paths import MODEL
from refit.runtime.errors import UserError
from refit.systems.build import assemble
from refit.systems.system import System
from refit.tasks.task import TASKS, Task


def read_model(folder: Path = MODEL) -> tuple[pl.LightningModule, ModelRecord]:
    """The trained system in eval mode, and its record. `system(images)` takes uint8 images (N, C, H, W) to answers.

    Raises UserError that says what is missing or wrong.
    """
    record = read_record(folder)
    weights = read_weights(record, folder)
    system = assemble(record)
    try:
        # Double precision, if it was fitted in that.
        system.to(next(weight.dtype for weight in weights.values() if weight.is_floating_point()))
        system.load_state_dict(weights)
    except StopIteration:
        raise UserError(f"{folder / WEIGHTS} holds no weights; run: dvc repro --force fit") from None
    except RuntimeError as error:
        raise UserError(f"{folder / WEIGHTS} does not fit the system in model.json: {error}") from None
    return system.eval(), record


def predict(trainer: pl.Trainer, system: pl.LightningModule, images: Any, task: str) -> dict[str, Tensor]:
    """What `system` answers, by name, one row per image, on the CPU. `images` is an iterable of uint8 batches
    (N, C, H, W). Raises UserError if these are no answers of the task."""
    return _gather(system, trainer.predict(system, images) or [], TASKS[task])


class TestAnswers(Callback):
    """Collects what test_step returns: the answers of `forward`, which a system of the user's own may miss."""

    __test__ = False  # for pytest

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
        """As `predict`."""
        return _gather(system, self.batches, self.task)


def columns_of_each(answers: Mapping[str, Tensor], images: int) -> list[dict[str, float]]:
    """Those answers that are one number per image, (images,): a dictionary per image."""
    columns = {name: values.tolist() for name, values in answers.items() if values.ndim == 1}
    return [{name: round(column[i], 6) for name, column in columns.items()} for i in range(images)]


def _check_is_forward(
    system: pl.LightningModule, outputs: Any, images: Tensor, trainer: pl.Trainer, task: Task
) -> None:
    """What is tested must be what is served."""
    with trainer.precision_plugin.test_step_context():
        answers = _named(system, system(images), task)
    tested = _named(system, outputs, task)
    if not torch.allclose(answers[task.ANSWER], tested[task.ANSWER], atol=1e-3):
        raise UserError(f"{type(system).__name__}: test_step returns other {task.ANSWER} than forward; end it with "
                        "`return self(batch.images)`: see docs/systems.md")  # fmt: skip


def _gather(system: pl.LightningModule, batches: Sequence[Any], task: Task) -> dict[str, Tensor]:
    named = [_named(system, batch, task) for batch in batches]
    if not named:
        return {}
    answers = {name: torch.cat([batch[name] for batch in named]).cpu() for name in named[0]}
    task.check_answer(answers[task.ANSWER])
    return answers


def _named(system: pl.LightningModule, answers: Any, task: Task) -> dict[str, Tensor]:
    """A batch's answers by name; a single tensor is the task's own answer."""
    named = {task.ANSWER: answers} if isinstance(answers, Tensor) else answers
    if not isinstance(named, dict) or task.ANSWER not in named:
        raise UserError(
            f"{type(system).__name__}: forward and test_step must return {task.ANSWER}, one row per image, or a "
            f"dictionary of tensors with {task.ANSWER!r}; see docs/systems.md"
        )
    return named
