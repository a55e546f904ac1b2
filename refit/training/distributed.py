"""A fit on several devices: a process for each, of which the leader alone writes files and talks."""

import logging
import os
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from refit.artifacts.choices import BatchChoice
from refit.params import TrainerParams
from refit.runtime.errors import UserError
from refit.training.trainer import hardware_class, make_trainer

_LEADER = "REFIT_LEADER"  # in the environment: the leader's process id


def devices_of_fit(params: TrainerParams) -> dict[str, Any]:
    """The Trainer's arguments that spread a fit over all its devices.

    Raises UserError where one of them cannot be had on these.
    """
    if params.world_size == 1:
        return {}
    if params.sync_batchnorm and (hardware := hardware_class(params)) in ("cpu", "mps", "tpu"):
        raise UserError(f"trainer.sync_batchnorm: true is for CUDA devices, and this is {hardware}; set it to false")
    os.environ["OMP_NUM_THREADS"] = str(params.threads)  # else Lightning sets PyTorch's to its own idea
    if params.num_nodes == 1:  # what the processes tell each other stays on this machine
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
    # Where one process has ended and Lightning kills the others, it says so at this level.
    logging.getLogger("lightning_fabric.strategies.launchers.subprocess_script").setLevel(logging.INFO)
    return {
        "devices": params.devices,
        "num_nodes": params.num_nodes,
        "strategy": params.strategy,
        "sync_batchnorm": params.sync_batchnorm,
    }


def leads_fit(params: TrainerParams) -> bool:
    """Whether this process is the fit's first, or its only one, by what Lightning, torchrun or SLURM says in its
    environment.

    Raises UserError where the devices are not there.
    """
    if params.world_size == 1:
        return True
    leads = make_trainer(params, **devices_of_fit(params)).is_global_zero
    parent = str(os.getppid())
    if leads:
        os.environ[_LEADER] = str(os.getpid())  # for the processes that Lightning starts
    elif os.environ.get(_LEADER, parent) != parent:  # before this one could ask to die with it
        sys.exit("error: the fit that this process is part of was killed")
    return leads


def share_batch(batch: BatchChoice, devices: int) -> BatchChoice:
    """The same effective batch for several devices: each takes the largest micro-batch that fits and shares it evenly.

    Raises UserError where there is none.
    """
    each, rest = divmod(batch.effective_batch, devices)
    # Batch norm cannot train on one image.
    shares = [size for size in range(2, min(batch.micro_batch, each) + 1) if each % size == 0]
    if rest or not shares:
        raise UserError(
            f"an effective batch of {batch.effective_batch} images, of which a device holds {batch.micro_batch} at "
            f"once, cannot be shared evenly by {devices} devices, two images or more at a time; choose another "
            "batch.size, or fewer trainer.devices"
        )
    return replace(batch, micro_batch=shares[-1], accumulate_grad_batches=each // shares[-1])


class OwnRandomness(Callback):
    """Each process draws its own random numbers, as for dropout, once all of them have built the same system."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        (seed,) = np.random.SeedSequence([self.seed, trainer.global_rank]).generate_state(1).tolist()
        pl.seed_everything(seed, verbose=False)
