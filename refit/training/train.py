"""The fit: one Trainer with its callbacks."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback, EarlyStopping
from pytorch_lightning.loggers import Logger
from torch import Tensor

from refit.artifacts.paths import DIVERGED
from refit.batches.datamodule import PreparedData
from refit.params import DebugParams, FitParams, TrainerParams
from refit.systems.freezing import FrozenBackbone
from refit.training.averaging import make_average
from refit.training.callbacks import Best, History
from refit.training.distributed import OwnRandomness
from refit.training.divergence import FiniteLoss
from refit.training.profile import make_profiler, show_profile
from refit.training.resume import FitState
from refit.training.trainer import make_trainer, translate_lightning_errors


def train(
    system: pl.LightningModule,
    data: PreparedData,
    fit: FitParams,
    trainer_params: TrainerParams,
    debug: DebugParams,
    devices: Mapping[str, Any],
    accumulate_grad_batches: int,
    state: FitState,
    frozen_rate: float | None = None,
    watchers: Sequence[Callback] = (),
    loggers: Sequence[Logger] = (),
) -> tuple[list[dict[str, float]], dict[str, float], dict[str, Tensor]]:
    """Fit `system`, resuming from `state` if there is one. It ends with the weights of its best epoch.

    Returns the rows of history.csv, that of the best epoch, and the weights of `system` by name.

    `frozen_rate` is the learning rate of the frozen epochs; None for the peak of those after them. `watchers` and
    `loggers` change no result. On several devices each process calls this function, and only the first
    has loggers.
    """
    if trainer_params.compile:
        getattr(system, "network", system).compile(mode=trainer_params.compile)
    history = History()
    average = make_average(fit)
    best = Best(history, fit, average)
    finite_loss = FiniteLoss(state.folder / DIVERGED)
    callbacks: list[Callback] = [history, best, *watchers, finite_loss, state]
    if fit.patience is not None:
        callbacks.append(
            EarlyStopping(
                fit.monitor,
                mode=fit.monitor_mode,
                patience=fit.patience,
                check_on_train_epoch_end=True,
            )
        )
    if average is not None:
        callbacks.append(average)
    if fit.freeze_epochs:
        callbacks.append(FrozenBackbone(fit.freeze_epochs, frozen_rate))
    if trainer_params.world_size > 1:
        callbacks.append(OwnRandomness(data.seed))
    trainer = make_trainer(
        trainer_params,
        **devices,
        max_epochs=fit.max_epochs,
        accumulate_grad_batches=accumulate_grad_batches,
        gradient_clip_val=fit.gradient_clip_val,
        gradient_clip_algorithm=fit.gradient_clip_algorithm,
        enable_checkpointing=True,
        fast_dev_run=debug.fast_dev_run,
        limit_train_batches=debug.limit_train_batches,
        limit_val_batches=debug.limit_val_batches,
        val_check_interval=debug.val_check_interval,
        detect_anomaly=debug.detect_anomaly,
        profiler=make_profiler(debug.profiler),
        callbacks=callbacks,
        plugins=[state.files],
        logger=list(loggers),
    )
    with translate_lightning_errors(debug):
        trainer.fit(system, datamodule=data, ckpt_path=state.path, weights_only=True)
    if debug.profiler and trainer.is_global_zero:
        show_profile(debug.profiler)
    # With fsdp each device has only a part of the trained system.
    weights = best.weights if trainer_params.strategy == "fsdp" else system.state_dict()
    return history.rows, best.row, weights
