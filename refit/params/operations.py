"""Sections `tracking` and `pipelines`: how runs are recorded and scheduled. They change no result."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from refit.params.types import Positive, Section


class TrackingParams(Section):
    loggers: list[Literal["mlflow", "tensorboard", "csv", "wandb"]] = Field(default=["mlflow"])
    """Where curves, pictures and parameters of fit and test are logged: MLflow, and below data/logs TensorBoard, CSV
    files and W&B. W&B is an extra: uv pip install 'wandb>=0.25'. Changes no result and makes no stage stale."""

    @model_validator(mode="after")
    def _no_repeats(self) -> Self:
        if repeated := sorted({name for name in self.loggers if self.loggers.count(name) > 1}):
            raise ValueError(f"loggers names {', '.join(repeated)} more than once; remove the repeats")
        return self


class PipelinesParams(Section):
    stage_time_limit: Positive = 120.0
    """Time limit of each stage, and of each other step, of a Prefect flow, in minutes. A stage that exceeds it is
    ended with all its processes."""
    stage_retries: Annotated[int, Field(ge=0, le=10)] = 0
    """How often a Prefect flow repeats a stage or step that failed. A user's error (exit code 2) is never repeated."""
    publish: Literal["none", "commit", "push"] = "none"
    """What a retraining flow does with a new champion. none: nothing. commit: git commit of dvc.lock and *.dvc. push:
    also dvc push and git push."""
