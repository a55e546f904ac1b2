"""Creates every Lightning Trainer, and says on which hardware it runs."""

import logging
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.accelerators import CPUAccelerator, CUDAAccelerator, MPSAccelerator, XLAAccelerator
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.profilers import Profiler

from refit.params import DebugParams, TrainerParams
from refit.runtime.allocator import keep_freed_memory
from refit.runtime.errors import UserError
from refit.training.callbacks import EpochLines, TerminalBar

_ACCELERATORS = {"gpu": CUDAAccelerator, "mps": MPSAccelerator, "tpu": XLAAccelerator, "cpu": CPUAccelerator}
_LIBRARIES = ("torch", "torchvision", "pytorch-lightning", "torchmetrics", "numpy", "timm")  # timm for Muon


def make_trainer(
    params: TrainerParams,
    *,
    callbacks: Sequence[Callback] = (),
    profiler: Profiler | None = None,
    quiet: bool = False,
    **options: Any,
) -> pl.Trainer:
    """A Trainer that writes no files of its own, on one device unless `options` say otherwise.

    It shows its progress unless `quiet`. `options` are arguments of the Trainer. Raises UserError if the devices are
    not available.
    """
    torch.set_num_threads(params.threads)
    keep_freed_memory()
    _silence_notices()
    _drop_costly_defaults()
    in_terminal = sys.stdout.isatty() and not quiet
    progress: list[Callback] = [] if quiet else [TerminalBar(leave=True) if in_terminal else EpochLines()]
    try:
        return pl.Trainer(
            accelerator=params.accelerator,
            precision=choose_precision(params),
            deterministic=params.deterministic,
            benchmark=not params.deterministic,  # cuDNN times its algorithms and takes the fastest
            callbacks=[*callbacks, *progress],
            enable_progress_bar=in_terminal,
            num_sanity_val_steps=0,
            enable_model_summary=False,
            use_distributed_sampler=False,
            profiler=profiler,
            **{"devices": 1, "logger": False, "enable_checkpointing": False, **options},
        )
    except (MisconfigurationException, ModuleNotFoundError) as error:
        there = [name for name, kind in _ACCELERATORS.items() if kind.is_available()]
        if params.accelerator not in there and not (params.accelerator == "gpu" and "mps" in there):
            raise UserError(
                f"trainer.accelerator = {params.accelerator!r}: PyTorch finds no {params.accelerator} on this machine, "
                f"only {', '.join(there)}; set it to {' or '.join(['auto', *there])}"
            ) from None
        devices = f", devices = {params.devices}" if "devices" in options else ""
        raise UserError(f"trainer.accelerator = {params.accelerator!r}{devices}: {error}") from None


def inference_trainer(params: TrainerParams, **options: Any) -> pl.Trainer:
    """As make_trainer, for test and predict. It computes in the precision of the model's weights, whatever the fit's
    was, so that the answers are those of the model outside Lightning."""
    return make_trainer(params.model_copy(update={"precision": "32-true"}), **options)


def check_devices(params: TrainerParams) -> None:
    """Raises UserError if this machine lacks the accelerator, or has fewer devices than a fit on one machine needs."""
    accelerator = make_trainer(params, quiet=True).accelerator
    available = accelerator.auto_device_count()
    if params.num_nodes == 1 and params.devices > available and not isinstance(accelerator, CPUAccelerator):
        raise UserError(
            f"trainer.devices = {params.devices}, but this machine has {available} of trainer.accelerator = "
            f"{params.accelerator!r}; lower it"
        )


@contextmanager
def translate_lightning_errors(debug: DebugParams) -> Iterator[None]:
    """Raises UserError in place of Lightning's errors about a configuration.

    Examples are a limit in the debug section that leaves no batch, and a schedule that monitors a metric which the
    system does not log.
    """
    try:
        yield
    except MisconfigurationException as error:
        where = "the debug section does not fit this data: " if debug.shortens or debug.val_check_interval != 1 else ""
        raise UserError(f"{where}{' '.join(str(error).split())}") from None
    except ValueError as error:
        if "`val_check_interval`" not in str(error):
            raise
        raise UserError(
            f"debug.val_check_interval = {debug.val_check_interval} exceeds the number of batches in an epoch; lower it"
        ) from None


def choose_precision(params: TrainerParams) -> Any:
    """For auto: bf16-mixed on a CUDA device with native bfloat16, otherwise 32-true."""
    if params.precision != "auto":
        return params.precision
    on_cuda = params.accelerator in ("auto", "gpu") and torch.cuda.is_available()
    return "bf16-mixed" if on_cuda and torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"


def hardware_class(params: TrainerParams) -> str:
    """The hardware for which tuning results are valid: `cpu`, or the accelerator's name and rounded memory."""
    if params.accelerator in ("auto", "gpu") and torch.cuda.is_available():
        device = torch.cuda.get_device_properties(0)
        return f"{device.name}, {round(device.total_memory / 2**30)} GiB"
    if params.accelerator in ("auto", "gpu", "mps") and torch.backends.mps.is_available():
        return "mps"
    return params.accelerator if params.accelerator == "tpu" else "cpu"


def environment(params: TrainerParams) -> dict[str, str]:
    """What determines the bits of a training besides parameters, code and data."""
    packages = {name: version(name) for name in _LIBRARIES}
    return {"hardware": hardware_class(params), "cpu": torch.backends.cpu.get_cpu_capability(), **packages}


def _drop_costly_defaults() -> None:
    """Turn off two defaults that cost time at each step; docs/performance.md says how much."""
    # `deterministic` also fills new memory with NaN, to reveal operations that read it before they write it.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    # Lightning sets it when imported. Each optimizer step asks for a GPU, and would load NVIDIA's library to do so.
    os.environ.pop("PYTORCH_NVML_BASED_CUDA_CHECK", None)


def _silence_notices() -> None:
    """Silence Lightning's notices about products and hardware, and warnings that do not apply here."""
    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # Metrics are logged once per epoch, so the number of steps between two logs does not matter.
    warnings.filterwarnings("ignore", ".*smaller than the logging interval.*")
    # PyTorch's, for calls that Lightning makes.
    warnings.filterwarnings("ignore", ".*LeafSpec.*is deprecated")
    warnings.filterwarnings("ignore", ".*all_gather is deprecated")
