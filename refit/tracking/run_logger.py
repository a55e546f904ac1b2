"""What a fit asks of each of its loggers, and MLflow's run as one of them."""

from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger
from torch import Tensor

from refit.tracking.runs import EXPERIMENT, TrackedRun


class FitLogger(Logger):
    """A logger that is opened with all of params.yaml. What it cannot hold, it leaves."""

    holds_histograms = False

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Nothing: it has them already."""

    def log_picture(self, name: str, png: bytes, step: int) -> None:
        """Add a picture, the bytes of a PNG file."""

    def log_histograms(self, values: Mapping[str, Tensor], step: int) -> None:
        """Add how the numbers of each tensor are spread."""

    def log_files(self, *paths: Path) -> None:
        """Add files."""

    def finish(self, model_dir: Path, images: Tensor) -> None:
        """The fit ended well, and its model lies in `model_dir`."""

    def fail(self) -> None:
        """The fit was broken off."""


class RunLogger(TrackedRun, FitLogger):
    """`Trainer(logger=RunLogger(params, tags))` opens the run and sends what is logged, once an epoch."""

    @property
    def name(self) -> str:
        return EXPERIMENT

    @property
    def version(self) -> str | None:
        return self.run_id
