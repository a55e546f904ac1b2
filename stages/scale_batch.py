"""Choose the effective batch, and the micro-batch that fits into this machine's memory."""

from dataclasses import asdict

import pytorch_lightning as pl

from refit.artifacts.checked import stage_params
from refit.artifacts.choices import BatchChoice
from refit.artifacts.files import write_json
from refit.artifacts.paths import BATCH
from refit.artifacts.prepared import read_info
from refit.batches.augment import trained_size
from refit.batches.datamodule import PreparedData
from refit.params import OptimizerParams, Params, load_params
from refit.runtime.stage import run_stage
from refit.systems.build import build_system
from refit.systems.freezing import freeze_first_layers
from refit.systems.sizes import check_train_size
from refit.training.pace import announce_pace
from refit.training.trainer import hardware_class
from refit.training.tuning import choose_effective_batch, scale_batch

OF_HEAD_ALONE = 16  # images; without gradients they take little memory, and a CPU gains nothing by more


def main(params: Params) -> None:
    if params.fit.train == "head":
        hardware = hardware_class(params.trainer)
        write_json(BATCH, asdict(BatchChoice(OF_HEAD_ALONE, OF_HEAD_ALONE, 1, "head", hardware, None, [])))
        print("no batch size: fit trains the head alone, on all images at once")
        return
    info = read_info()
    effective_batch = choose_effective_batch(params.batch, info.counts["train"])
    # Neither the seed nor the optimizer nor the augmentation changes the result: the scaler assumes the largest
    # optimizer state, and an augmented image has the same size, that of augment.train_size.
    pl.seed_everything(0, verbose=False)
    system = build_system(params.model, info, OptimizerParams(schedule="constant"))
    freeze_first_layers(system, params.fit.freeze_share)
    data = PreparedData(params.augment, effective_batch, effective_batch, seed=0)
    if params.augment.train_size is not None:  # `check` knows neither the size nor the colour of all data
        height, width = info.shape[1:]
        check_train_size(params.model, (info.shape[0], height, width), trained_size(params.augment, height, width))
    choice, seconds_an_image = scale_batch(system, data, params.batch, params.trainer)
    write_json(BATCH, asdict(choice))
    print(
        f"effective batch {choice.effective_batch}: {choice.accumulate_grad_batches} x {choice.micro_batch} images "
        f"({choice.hardware})"
    )
    epochs = load_params().fit.max_epochs  # for people only
    print(announce_pace(seconds_an_image, info, epochs, params.trainer, params.augment))


if __name__ == "__main__":
    run_stage(lambda: main(stage_params("scale_batch")))
