"""The fit: one Trainer with its callbacks."""

from collections.abc import Sequence

import numpy as np
import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback, EarlyStopping
from pytorch_lightning.loggers import Logger

from refit.artifacts.choices import BatchChoice
from refit.artifacts.paths import DIVERGED
from refit.batches.datamodule import PreparedData
from refit.params import Params
from refit.training.averaging import make_average
from refit.training.callbacks import Best, History
from refit.training.distributed import OwnRandomness, devices_of_fit, share_batch
from refit.training.divergence import FiniteLoss
from refit.training.finetuning import FrozenBackbone
from refit.training.profile import make_profiler, show_profile
from refit.training.resume import FitState
from refit.training.trainer import make_trainer, translate_lightning_errors


def train(
    system: pl.LightningModule,
    data: PreparedData,
    params: Params,
    batch: BatchChoice,
    state: FitState,
    watchers: Sequence[Callback] = (),
    loggers: Sequence[Logger] = (),
) -> tuple[History, Best]:
    """Fit `system`, resuming from `state` if there is one. It ends with the weights of its best epoch.

    `watchers` and `loggers` change no result. On several devices each process calls this function, and only the first
    has loggers.
    """
    if params.trainer.compile:
        getattr(system, "network", system).compile(mode=params.trainer.compile)
    if params.debug.overfit_batches:
        shuffled = np.random.default_rng(params.seed).permutation(len(data.train.labels))
        data.only(shuffled[: params.debug.overfit_batches * data.effective_batch])
    history = History()
    average = make_average(params.fit)
    best = Best(history, params.fit, average)
    finite_loss = FiniteLoss(state.folder / DIVERGED)
    callbacks: list[Callback] = [history, best, *watchers, finite_loss, state]
    if params.fit.patience is not None:
        callbacks.append(
            EarlyStopping(
                params.fit.monitor,
                mode=params.fit.monitor_mode,
                patience=params.fit.patience,
                check_on_train_epoch_end=True,
            )
        )
    if average is not None:
        callbacks.append(average)
    if params.fit.freeze_epochs:
        callbacks.append(FrozenBackbone(params.fit.freeze_epochs))
    if params.trainer.world_size > 1:
        batch = share_batch(batch, params.trainer.world_size)
        data.batch_size = batch.micro_batch
        callbacks.append(OwnRandomness(params.seed))
    trainer = make_trainer(
        params.trainer,
        **devices_of_fit(params.trainer),
        max_epochs=params.fit.max_epochs,
        accumulate_grad_batches=batch.accumulate_grad_batches,
        gradient_clip_val=params.fit.gradient_clip_val,
        gradient_clip_algorithm=params.fit.gradient_clip_algorithm,
        enable_checkpointing=True,
        fast_dev_run=params.debug.fast_dev_run,
        limit_train_batches=params.debug.limit_train_batches,
        limit_val_batches=params.debug.limit_val_batches,
        val_check_interval=params.debug.val_check_interval,
        detect_anomaly=params.debug.detect_anomaly,
        profiler=make_profiler(params.debug.profiler),
        callbacks=callbacks,
        plugins=[state.files],
        logger=list(loggers),
    )
    with translate_lightning_errors(params.debug):
        trainer.fit(system, datamodule=data, ckpt_path=state.path, weights_only=True)
    if params.debug.profiler and trainer.is_global_zero:
        show_profile(params.debug.profiler)
    return history, best
