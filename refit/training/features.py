"""Compute the outputs of the layers before a network's head for the prepared images."""

from typing import Any

import pytorch_lightning as pl
import torch

from refit.artifacts.features import Array, FeaturesInfo
from refit.artifacts.prepared import read_info, read_split
from refit.batches.datamodule import EVALUATION_FACTOR, ImageLoader
from refit.params import OptimizerParams, Params
from refit.systems.build import build_system
from refit.systems.classifier import Classifier
from refit.systems.features import Features, backbone_sha256
from refit.training.trainer import inference_trainer


def compute_features(params: Params, micro_batch: int, **options: Any) -> tuple[FeaturesInfo, dict[str, Array]]:
    """The features of each split, float32 (N, D), in the order of its rows, by the classifier of `params` before any
    training. `options` are arguments of the Trainer. Raises UserError as Features."""
    info = read_info()
    pl.seed_everything(params.seed, verbose=False)
    classifier = build_system(params.model, info, OptimizerParams())
    assert isinstance(classifier, Classifier)  # checked by the rules
    extractor = Features(classifier)
    features = {}
    for split in info.counts:
        images = ImageLoader(read_split(split), EVALUATION_FACTOR * micro_batch)
        batches = inference_trainer(params.trainer, **options).predict(extractor, images) or []
        features[split] = torch.cat(batches).cpu().numpy()  # type: ignore[arg-type]
    return FeaturesInfo(list(features), backbone_sha256(classifier), info.sha256), features
