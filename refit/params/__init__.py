"""Every choice a user can make: what params.yaml may hold, the defaults, and its one reader."""

from refit.params.data import AugmentParams, DataParams
from refit.params.model import LIBRARIES, OUR_NETWORKS, OUR_SYSTEMS, TIMM, TORCHVISION, WEIGHTS_FILES, ModelParams
from refit.params.operations import PipelinesParams, TrackingParams
from refit.params.params import Params
from refit.params.reader import PARAMS_FILE, check_params, load_params
from refit.params.results import PredictParams, PromoteParams, TestParams
from refit.params.spelling import nearest
from refit.params.trainer import DebugParams, TrainerParams
from refit.params.training import BatchParams, FitParams, LossParams, OptimizerParams

__all__ = [
    "LIBRARIES",
    "OUR_NETWORKS",
    "OUR_SYSTEMS",
    "PARAMS_FILE",
    "TIMM",
    "TORCHVISION",
    "WEIGHTS_FILES",
    "AugmentParams",
    "BatchParams",
    "DataParams",
    "DebugParams",
    "FitParams",
    "LossParams",
    "ModelParams",
    "OptimizerParams",
    "Params",
    "PipelinesParams",
    "PredictParams",
    "PromoteParams",
    "TestParams",
    "TrackingParams",
    "TrainerParams",
    "check_params",
    "load_params",
    "nearest",
]
