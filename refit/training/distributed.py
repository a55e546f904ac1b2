"""Distributed fits: one process per device. Only the leader, the first process, writes files and messages."""

import logging
import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from refit.artifacts.choices import BatchChoice
from refit.params import TrainerParams
from refit.runtime.errors import UserError
from refit.training.trainer import make_trainer

_LEADER = "REFIT_LEADER"  # environment variable with the leader's process id


def devices_of_fit(params: TrainerParams, hardware: str) -> dict[str, Any]:
    """The Trainer's arguments for the devices of a fit, of a class of `hardware`.

    Raises UserError if sync_batchnorm is not available on them.
    """
    if params.world_size == 1:
        return {}
    if params.sync_batchnorm and hardware in ("cpu", "mps", "tpu"):
        raise UserError(f"trainer.sync_batchnorm: true needs CUDA devices, not {hardware}; set it to false")
    os.environ["OMP_NUM_THREADS"] = str(params.threads)  # otherwise Lightning chooses the number of PyTorch's threads
    if params.num_nodes == 1:  # keep the communication on this machine
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
    # At this level Lightning reports that it kills the other processes because one has ended.
    logging.getLogger("lightning_fabric.strategies.launchers.subprocess_script").setLevel(logging.INFO)
    return {
        "devices": params.devices,
        "num_nodes": params.num_nodes,
        "strategy": params.strategy,
        "sync_batchnorm": params.sync_batchnorm,
    }


def leads_fit(params: TrainerParams, devices: Mapping[str, Any]) -> bool:
    """Whether this process is the first or the only one of the fit on these `devices`.

    Lightning, torchrun or SLURM tell in the environment. Raises UserError if the devices are not available.
    """
    if params.world_size == 1:
        return True
    leads = make_trainer(params, **devices).is_global_zero
    parent = str(os.getppid())
    if leads:
        os.environ[_LEADER] = str(os.getpid())  # read by the processes that Lightning starts
    elif os.environ.get(_LEADER, parent) != parent:  # the leader ended while this one started
        sys.exit("error: the leader of this distributed fit was killed")
    return leads


def share_batch(batch: BatchChoice, devices: int) -> BatchChoice:
    """Split the effective batch over the devices, with the largest micro-batch that fits and divides it evenly.

    Raises UserError if there is no such micro-batch.
    """
    if devices == 1:
        return batch
    per_device, rest = divmod(batch.effective_batch, devices)
    # At least 2: batch norm cannot train on one image.
    sizes = [size for size in range(2, min(batch.micro_batch, per_device) + 1) if per_device % size == 0]
    if rest or not sizes:
        raise UserError(
            f"an effective batch of {batch.effective_batch} images cannot be split evenly by {devices} devices into "
            f"micro-batches of 2 to {batch.micro_batch} images; choose another batch.size, or fewer trainer.devices"
        )
    return replace(batch, micro_batch=sizes[-1], accumulate_grad_batches=per_device // sizes[-1])


class OwnRandomness(Callback):
    """Seeds each process differently, for dropout for example, after all of them have built the same system."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        (seed,) = np.random.SeedSequence([self.seed, trainer.global_rank]).generate_state(1).tolist()
        pl.seed_everything(seed, verbose=False)
