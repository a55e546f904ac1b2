"""The interface of a fit's loggers."""

from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger
from torch import Tensor


class FitLogger(Logger):
    """A Lightning logger that is opened with all of params.yaml. It ignores what it cannot store."""

    holds_histograms = False

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the logger was opened with them."""

    def log_picture(self, name: str, png: bytes, step: int) -> None:
        """Add a picture, the bytes of a PNG file."""

    def log_histograms(self, values: Mapping[str, Tensor], step: int) -> None:
        """Add a histogram of each tensor."""

    def log_files(self, *paths: Path) -> None:
        """Add files."""

    def finish(self, model_dir: Path, images: Tensor) -> None:
        """End the log of a fit that succeeded; its model is in `model_dir`."""

    def fail(self) -> None:
        """End the log of a fit that failed or was interrupted."""
