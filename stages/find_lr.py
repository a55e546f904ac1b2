"""Choose the learning rate: from a range test, or as params.yaml states it."""

import sys
from collections.abc import Sequence
from dataclasses import asdict

from refit.artifacts.checked import stage_params
from refit.artifacts.choices import LearningRateChoice, read_batch
from refit.artifacts.files import write_bytes, write_csv, write_json
from refit.artifacts.paths import FROZEN_LEARNING_RATE_CURVE, LEARNING_RATE, LEARNING_RATE_CURVE
from refit.artifacts.prepared import read_info
from refit.params import Params
from refit.runtime.stage import run_stage

Curve = Sequence[dict[str, float]]


def main(params: Params) -> None:
    choice, curve, frozen_curve = choose(params)
    write_json(LEARNING_RATE, asdict(choice))
    for file, points in {LEARNING_RATE_CURVE: curve, FROZEN_LEARNING_RATE_CURVE: frozen_curve}.items():
        if points:
            write_csv(file, points)
        else:
            write_bytes(file, b"learning_rate,loss\n")  # DVC warns of an empty file
    if choice.chosen_by == "head":
        print("no learning rate: fit trains the head alone, by a method that needs none")
        return
    if choice.frozen is not None:
        tell(choice.frozen, " of the frozen epochs")
    tell(choice, "", "" if curve else ": no range test")


def choose(params: Params) -> tuple[LearningRateChoice, Curve, Curve]:
    """The learning rate, the curve of its range test, and that of the test of the frozen epochs' rate."""
    if params.fit.train == "head":
        return LearningRateChoice(0.0, "head", suggestion=None), [], []
    stated = params.optimizer.learning_rate
    if stated != "auto":
        return LearningRateChoice(stated, "params", suggestion=None), [], []
    import pytorch_lightning as pl  # these imports take seconds, and a learning rate in params.yaml needs none

    from refit.batches.datamodule import PreparedData
    from refit.systems.build import build_system
    from refit.systems.freezing import freeze_first_layers
    from refit.training.tuning import find_both_learning_rates, find_learning_rate, range_test_batch

    info, batch = read_info(), read_batch()
    pl.seed_everything(params.seed, verbose=False)
    # The range test sets the learning rate itself.
    constant = params.optimizer.model_copy(update={"schedule": "constant"})
    system = build_system(params.model, info, constant, params.loss)
    freeze_first_layers(system, params.fit.freeze_share)
    size = range_test_batch(batch.effective_batch, info.counts["train"])
    data = PreparedData(params.augment, min(size, batch.micro_batch), size, params.seed)
    if params.fit.freeze_epochs:
        return find_both_learning_rates(system, data, params.optimizer, params.trainer)
    return *find_learning_rate(system, data, params.optimizer, params.trainer), []


def tell(choice: LearningRateChoice, what: str, why: str = "") -> None:
    if choice.chosen_by == "fallback":
        print(
            f"warning: the range test{what} found no learning rate; fit uses optimizer.fallback_learning_rate = "
            f"{choice.learning_rate:g}",
            file=sys.stderr,
        )
    print(f"learning rate{what} {choice.learning_rate:.3g}, chosen by {choice.chosen_by}{why}")


if __name__ == "__main__":
    run_stage(lambda: main(stage_params("find_lr")))
