"""The whole of params.yaml."""

from typing import Annotated

from pydantic import Field

from refit.params.data import AugmentParams, DataParams
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

    def only(self, *sections: str) -> "Params":
        """The same parameters with these sections alone; reading another raises AttributeError."""
        given = self.model_copy()
        for name in type(self).model_fields.keys() - set(sections):
            del given.__dict__[name]
        return given
