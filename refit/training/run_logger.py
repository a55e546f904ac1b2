"""The MLflow run of a fit, as Lightning's logger."""

from argparse import Namespace
from typing import Any

from pytorch_lightning.loggers import Logger

from refit.tracking import EXPERIMENT, TrackedRun


class RunLogger(TrackedRun, Logger):
    """`Trainer(logger=RunLogger(params, tags))` opens the run and sends what is logged, once an epoch."""

    @property
    def name(self) -> str:
        return EXPERIMENT

    @property
    def version(self) -> str | None:
        return self.run_id

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Nothing: the run was opened with all of params.yaml."""
