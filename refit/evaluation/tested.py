"""What the test of a model gives: the answers, and what the evaluation of their task finds in them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import pytorch_lightning as pl
from torch import Tensor

from refit.artifacts.model import ModelRecord
from refit.artifacts.prepared import Split


@dataclass(frozen=True)
class Tested:
    """A model and its answers for the test images."""

    __test__ = False  # not a test class for pytest
    model: ModelRecord
    system: pl.LightningModule
    split: Split
    """The test images, (N, C, H, W), and their labels."""
    answer: npt.NDArray[np.floating[Any]]
    """The task's answer, one row per image."""
    others: Mapping[str, Tensor]
    """The system's other answers by name, such as an autoencoder's embedding, one row per image."""
    logged: Mapping[str, float]
    """The metrics that the system itself logs in its test."""
    debug: bool
    """Whether the debug section of params.yaml shortened the fit or the test."""


class Finding(NamedTuple):
    what: str
    """What was seen, with its figures."""
    remedy: str
    """What may help. Commands are in backticks and work as pasted; the summary offers the first one."""


class Report(Protocol):
    """The metrics of a test."""

    def headline(self) -> str:
        """The result in one line."""
        ...

    def test_summary(self) -> dict[str, float]:
        """The metrics to compare models by. One has the name of the task's SCORE."""
        ...

    def tables(self) -> dict[str, list[dict[str, object]]]:
        """Rows by table name."""
        ...


AnyReport = TypeVar("AnyReport", bound=Report, covariant=True)


@dataclass(frozen=True)
class Evaluation(Generic[AnyReport]):
    report: AnyReport
    baselines: dict[str, float]
    """What simple methods reach on the same images, by name."""
    findings: Sequence[Finding]
    """The most serious first."""
    worst: npt.NDArray[np.int64]
    """Indices of the test images that the report shows as the worst answers, (M,), the worst first."""
