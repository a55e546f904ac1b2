"""A fit: one call of a Trainer, with what watches it."""

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback, EarlyStopping
from pytorch_lightning.loggers import Logger

from refit.data.module import PreparedData
from refit.params import Params
from refit.training.callbacks import Best, EpochFacts, History, MovingAverage
from refit.training.choices import BatchChoice
from refit.training.resume import FitState
from refit.training.trainer import make_trainer


def train(
    system: pl.LightningModule,
    data: PreparedData,
    params: Params,
    batch: BatchChoice,
    state: FitState,
    logger: Logger,
) -> tuple[History, Best]:
    """Fit `system`, from `state` on where there is one; it is left as it was in its best epoch."""
    if params.trainer.compile:
        getattr(system, "network", system).compile(mode=params.trainer.compile)
    history = History()
    average = MovingAverage(params.fit.ema_decay) if params.fit.ema_decay is not None else None
    best = Best(history, params.fit, average)
    callbacks: list[Callback] = [history, best, EpochFacts(history), state]
    if params.fit.patience is not None:
        callbacks.append(EarlyStopping(params.fit.monitor, mode=params.fit.monitor_mode, patience=params.fit.patience))
    if average is not None:
        callbacks.append(average)
    trainer = make_trainer(
        params.trainer,
        max_epochs=params.fit.max_epochs,
        accumulate_grad_batches=batch.accumulate_grad_batches,
        gradient_clip_val=params.fit.gradient_clip_val,
        gradient_clip_algorithm=params.fit.gradient_clip_algorithm,
        enable_checkpointing=True,
        callbacks=callbacks,
        plugins=[state.files],
        logger=logger,
    )
    trainer.fit(system, datamodule=data, ckpt_path=state.path, weights_only=True)
    return history, best
