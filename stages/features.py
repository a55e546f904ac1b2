"""Compute the outputs of the layers before the head for each prepared image, if fit trains the head alone."""

from refit.artifacts.checked import stage_params
from refit.artifacts.features import NONE, write_features
from refit.params import Params
from refit.runtime.stage import run_stage


def main(params: Params) -> None:
    if params.fit.train == "all":
        write_features(NONE, {})
        print("no features: fit trains all layers")
        return
    from refit.artifacts.choices import read_batch
    from refit.training.features import compute_features  # imports of seconds, and a fit of all layers needs none

    limit = params.debug.test_batches
    info, features = compute_features(params, read_batch().micro_batch, limit_predict_batches=limit)
    write_features(info, features)
    print(f"{features['train'].shape[1]:,} features of {sum(map(len, features.values())):,} images")


if __name__ == "__main__":
    run_stage(lambda: main(stage_params("features")))
