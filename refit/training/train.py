"""A fit: one call of a Trainer, with what watches it."""

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback, EarlyStopping
from pytorch_lightning.loggers import Logger

from refit.data.module import PreparedData
from refit.params import Params
from refit.training.callbacks import Best, EpochFacts, History, MovingAverage
from refit.training.choices import BatchChoice
from refit.training.distributed import OwnRandomness, devices_of_fit, share_batch
from refit.training.resume import FitState
from refit.training.trainer import make_trainer


def train(
    system: pl.LightningModule,
    data: PreparedData,
    params: Params,
    batch: BatchChoice,
    state: FitState,
    logger: Logger | None,
) -> tuple[History, Best]:
    """Fit `system`, from `state` on where there is one; it is left as it was in its best epoch.

    On several devices each process calls it, and the first alone with a logger.
    """
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
        enable_checkpointing=True,
        callbacks=callbacks,
        plugins=[state.files],
        logger=logger or False,
    )
    trainer.fit(system, datamodule=data, ckpt_path=state.path, weights_only=True)
    return history, best
