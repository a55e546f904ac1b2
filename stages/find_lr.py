"""Choose the learning rate: from a range test, or as params.yaml states it."""

import sys
from dataclasses import asdict

import pytorch_lightning as pl

from refit.artifacts.checked import stage_params
from refit.artifacts.choices import read_batch
from refit.artifacts.files import write_csv, write_json
from refit.artifacts.paths import LEARNING_RATE, LEARNING_RATE_CURVE
from refit.artifacts.prepared import read_info
from refit.batches.datamodule import PreparedData
from refit.params import Params
from refit.runtime.stage import run_stage
from refit.systems.build import build_system
from refit.training.tuning import find_learning_rate


def main(params: Params) -> None:
    info, batch = read_info(), read_batch()
    pl.seed_everything(params.seed, verbose=False)
    # The range test sets the learning rate itself.
    constant = params.optimizer.model_copy(update={"schedule": "constant"})
    system = build_system(params.model, info, constant, params.loss)
    data = PreparedData(params.augment, batch.micro_batch, batch.effective_batch, params.seed)
    choice, curve = find_learning_rate(system, data, batch, params.optimizer, params.trainer)
    write_json(LEARNING_RATE, asdict(choice))
    write_csv(LEARNING_RATE_CURVE, curve)
    if choice.chosen_by == "fallback":
        print(
            f"warning: the range test found no learning rate; fit uses optimizer.fallback_learning_rate = "
            f"{choice.learning_rate:g}",
            file=sys.stderr,
        )
    print(f"learning rate {choice.learning_rate:.3g}, chosen by {choice.chosen_by}")


if __name__ == "__main__":
    run_stage(lambda: main(stage_params("find_lr")))
