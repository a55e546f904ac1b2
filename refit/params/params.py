"""The whole of params.yaml."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from refit.params.data import AugmentParams, DataParams
from refit.params.dotted import flatten
from refit.params.model import ModelParams
from refit.params.operations import PipelinesParams, TrackingParams
from refit.params.results import PredictParams, PromoteParams, TestParams
from refit.params.trainer import DebugParams, TrainerParams
from refit.params.training import BatchParams, FitParams, LossParams, OptimizerParams
from refit.params.types import Section


class Params(Section):
    """All of params.yaml. `Params()` equals the shipped one. Rules across sections are in rules.py."""

    seed: Annotated[int, Field(ge=0, le=2**32 - 1)] = 0
    """Seed of every random choice: splits, initial weights, batch order, augmentation, dropout."""
    data: DataParams = DataParams()
    augment: AugmentParams = AugmentParams()
    model: ModelParams = ModelParams()
    batch: BatchParams = BatchParams()
    optimizer: OptimizerParams = OptimizerParams()
    loss: LossParams = LossParams()
    fit: FitParams = FitParams()
    trainer: TrainerParams = TrainerParams()
    test: TestParams = TestParams()
    predict: PredictParams = PredictParams()
    promote: PromoteParams = PromoteParams()
    debug: DebugParams = DebugParams()
    pipelines: PipelinesParams = PipelinesParams()
    tracking: TrackingParams = TrackingParams()

    def only(self, *keys: str) -> "Params":
        """The same parameters with these sections, or keys by dotted name, alone.

        Reading another section raises AttributeError. The other keys of a section are at their defaults.
        """
        given = self.model_copy()
        for name, value in vars(self).items():
            named = {key.partition(".")[2] for key in keys if key.partition(".")[0] == name}
            if not named:
                del given.__dict__[name]
            elif "" not in named:
                given.__dict__[name] = type(value)().model_copy(update={key: getattr(value, key) for key in named})
        return given

    def replaced(self, values: Mapping[str, Any]) -> "Params":
        """The same parameters with these values, by dotted name SECTION.KEY."""
        given = self.model_copy()
        for key, value in values.items():
            section, _, name = key.partition(".")
            given.__dict__[section] = getattr(given, section).model_copy(update={name: value})
        return given

    def values(self, *keys: str) -> dict[str, Any]:
        """The JSON values of these sections and keys, each under its dotted name."""
        values = flatten(self.model_dump(mode="json", include={key.partition(".")[0] for key in keys}))
        return {name: value for name, value in values.items() if f"{name}.".startswith(tuple(f"{k}." for k in keys))}
