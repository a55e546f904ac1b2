"""The choices of the tuning stages: the small files that they write for `fit`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from refit.artifacts.files import read_json
from refit.artifacts.paths import BATCH, LEARNING_RATE
from refit.params import Params


@dataclass(frozen=True)
class BatchChoice:
    """Sizes in images; effective_batch = micro_batch x accumulate_grad_batches."""

    effective_batch: int
    micro_batch: int
    accumulate_grad_batches: int
    chosen_by: Literal["params", "auto", "head"]
    """head: only the head is trained, so no training step has to fit."""
    hardware: str
    """The hardware class on which the micro-batch was found."""
    memory_budget: int | None
    """Bytes; None on an accelerator, where the budget is the device's memory."""
    tried: list[dict[str, Any]]
    """Each micro-batch that was tried: its size, the memory of one step in bytes (on a CPU), and whether it fits."""


@dataclass(frozen=True)
class LearningRateChoice:
    learning_rate: float
    chosen_by: Literal["params", "find_lr", "fallback", "head"]
    """head: only the head is trained, by a method that needs no learning rate, which is 0 here."""
    suggestion: float | None
    frozen: "LearningRateChoice | None" = None
    """The choice for the frozen epochs. None without frozen epochs, or if they use the same learning rate."""


def read_batch(path: Path = BATCH) -> BatchChoice:
    return BatchChoice(**read_json(path, "dvc repro scale_batch"))


def read_learning_rate(path: Path = LEARNING_RATE) -> LearningRateChoice:
    values = read_json(path, "dvc repro find_lr")
    frozen = values.pop("frozen", None)
    return LearningRateChoice(**values, frozen=LearningRateChoice(**frozen) if frozen else None)


def resolved_params(params: Params, batch: BatchChoice, rate: LearningRateChoice) -> dict[str, Any]:
    """The sections of `params` as plain values, with the chosen values in place of `auto`, and without what changes no
    result."""
    values = params.model_dump(mode="json", exclude={"fit": {"save_state_every"}})
    if rate.chosen_by != "head":
        values["optimizer"]["learning_rate"] = rate.learning_rate
    values["batch"] = {
        "size": batch.effective_batch,
        "micro_batch": batch.micro_batch,
        "accumulate_grad_batches": batch.accumulate_grad_batches,
    }
    return values
