"""An observed fit as a process: `python -m tests.integration.fit_on_two_devices`, in a prepared workspace.

Each of its processes writes to `seen_RANK.pt` its training batches, its random numbers and its final state.
With POISON="RANK:BATCH" its network returns NaN from that batch on.
"""

import os
import random
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

from refit.artifacts.checked import stage_params
from refit.batches.datamodule import TrainLoader
from refit.runtime.parent import die_with_parent
from refit.runtime.stage import run_stage
from refit.training import train
from refit.training.trainer import make_trainer
from stages import fit


class Witness(Callback):
    def __init__(self) -> None:
        self.seen: dict[str, Any] = {"batches": {}, "drawn": {}, "validated": []}

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        number = trainer.current_epoch * int(trainer.num_training_batches) + batch_idx
        if os.environ.get("POISON") == f"{trainer.global_rank}:{number}":
            pl_module.get_submodule("network").register_forward_hook(
                lambda _module, _inputs, output: output * float("nan")
            )
        self.seen["batches"][number] = batch.images.clone()
        self.seen["drawn"][number] = (torch.rand(()).item(), np.random.rand(), random.random())

    def on_validation_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any,
                                  *args: Any) -> None:  # fmt: skip
        if trainer.current_epoch == 0:
            self.seen["validated"].append(batch.images.clone())

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(trainer.train_dataloader, TrainLoader)
        self.seen |= {
            "micro_batch": trainer.train_dataloader.batch_size,
            "weights": pl_module.state_dict(),
            "optimizer": trainer.optimizers[0].state_dict(),
            "schedulers": [config.scheduler.state_dict() for config in trainer.lr_scheduler_configs],
            "steps": trainer.global_step,
            "threads": torch.get_num_threads(),
        }
        torch.save(self.seen, f"seen_{trainer.global_rank}.pt")


if __name__ == "__main__":
    die_with_parent()
    train.make_trainer = lambda *args, callbacks, **options: make_trainer(  # type: ignore[attr-defined]
        *args, callbacks=[Witness(), *callbacks], **options
    )
    run_stage(lambda: fit.main(stage_params("fit")))
