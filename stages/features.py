"""Compute the outputs of the layers before the head for each prepared image, if fit trains the head alone."""

from refit.artifacts.checked import stage_params
from refit.artifacts.features import NONE, FeaturesInfo, write_features
from refit.params import Params
from refit.runtime.stage import run_stage


def main(params: Params) -> None:
    if params.fit.train == "all":
        write_features(NONE, {})
        print("no features: fit trains all layers")
        return
    import pytorch_lightning as pl  # these imports take seconds, and a fit of all layers needs none
    import torch

    from refit.artifacts.choices import read_batch
    from refit.artifacts.prepared import read_info, read_split
    from refit.batches.datamodule import EVALUATION_FACTOR, ImageLoader
    from refit.params import OptimizerParams
    from refit.systems.build import build_system
    from refit.systems.classifier import Classifier
    from refit.systems.features import Features, backbone_sha256
    from refit.training.trainer import inference_trainer

    info, batch = read_info(), read_batch()
    pl.seed_everything(params.seed, verbose=False)
    classifier = build_system(params.model, info, OptimizerParams())
    assert isinstance(classifier, Classifier)  # checked by the rules
    extractor = Features(classifier)
    features = {}
    for split in info.counts:
        images = ImageLoader(read_split(split), EVALUATION_FACTOR * batch.micro_batch)
        trainer = inference_trainer(params.trainer, limit_predict_batches=params.debug.test_batches)
        batches = trainer.predict(extractor, images) or []
        features[split] = torch.cat(batches).cpu().numpy()  # type: ignore[arg-type]
    write_features(FeaturesInfo(list(features), backbone_sha256(classifier), info.sha256), features)
    print(f"{features['train'].shape[1]:,} features of {sum(map(len, features.values())):,} images")


if __name__ == "__main__":
    run_stage(lambda: main(stage_params("features")))
