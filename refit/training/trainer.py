"""The one place that makes a Lightning Trainer."""

import logging
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib.metadata import version
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.profilers import PassThroughProfiler, Profiler

from refit.params import DebugParams, TrainerParams
from refit.runtime.errors import UserError
from refit.training.callbacks import EpochLines, TerminalBar

_LIBRARIES = ("torch", "torchvision", "pytorch-lightning", "torchmetrics", "numpy", "timm")  # timm: Muon


def make_trainer(
    params: TrainerParams,
    *,
    callbacks: Sequence[Callback] = (),
    profiler: Profiler | None = None,
    quiet: bool = False,
    **options: Any,
) -> pl.Trainer:
    """A Trainer on one device of `params.accelerator`, unless told otherwise, which writes nothing of its own accord.

    It shows its progress, unless it is to be `quiet`. `options` are the Trainer's own arguments. Raises UserError
    where the devices are not there.
    """
    torch.set_num_threads(params.threads)
    _silence_notices()
    _skip_needless_work()
    in_terminal = sys.stdout.isatty() and not quiet
    progress: list[Callback] = [] if quiet else [TerminalBar(leave=True) if in_terminal else EpochLines()]
    try:
        return pl.Trainer(
            accelerator=params.accelerator,
            precision=choose_precision(params),
            deterministic=params.deterministic,
            benchmark=not params.deterministic,  # try which of cuDNN's algorithms is fastest
            callbacks=[*callbacks, *progress],
            enable_progress_bar=in_terminal,
            num_sanity_val_steps=0,
            enable_model_summary=False,
            use_distributed_sampler=False,
            profiler=profiler or _NoProfiler(),
            **{"devices": 1, "logger": False, "enable_checkpointing": False, **options},
        )
    except (MisconfigurationException, ModuleNotFoundError) as error:
        devices = f", devices = {params.devices}" if "devices" in options else ""
        raise UserError(f"trainer.accelerator = {params.accelerator!r}{devices}: {error}") from None


@contextmanager
def translate_lightning_errors(debug: DebugParams) -> Iterator[None]:
    """Raises UserError of one line for what Lightning itself refuses, such as a limit of the debug section that leaves
    nothing, or a schedule that goes by a metric that the system does not log."""
    try:
        yield
    except MisconfigurationException as error:
        whose = "the debug section does not fit this data: " if debug.shortens or debug.val_check_interval != 1 else ""
        raise UserError(f"{whose}{' '.join(str(error).split())}") from None
    except ValueError as error:
        if "`val_check_interval`" not in str(error):
            raise
        raise UserError(
            f"debug.val_check_interval = {debug.val_check_interval} is more than the batches of an epoch; lower it"
        ) from None


class _NoProfiler(PassThroughProfiler):
    """Lightning's own makes a new context manager for each of some 30 places in a step, to do nothing in it."""

    _context = nullcontext("")

    def profile(self, action_name: str) -> AbstractContextManager[str]:  # type: ignore[override]
        return self._context


def choose_precision(params: TrainerParams) -> Any:
    """auto: bf16-mixed on a CUDA device that computes it natively; else 32-true."""
    if params.precision != "auto":
        return params.precision
    on_cuda = params.accelerator in ("auto", "gpu") and torch.cuda.is_available()
    return "bf16-mixed" if on_cuda and torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"


def hardware_class(params: TrainerParams) -> str:
    """What tuning results hold for: `cpu`, or the accelerator's name and rounded memory."""
    if params.accelerator in ("auto", "gpu") and torch.cuda.is_available():
        device = torch.cuda.get_device_properties(0)
        return f"{device.name}, {round(device.total_memory / 2**30)} GiB"
    if params.accelerator in ("auto", "gpu", "mps") and torch.backends.mps.is_available():
        return "mps"
    return params.accelerator if params.accelerator == "tpu" else "cpu"


def environment(params: TrainerParams) -> dict[str, str]:
    """What, beside the parameters, the code and the data, decides the bits that a training comes to."""
    packages = {name: version(name) for name in _LIBRARIES}
    return {"hardware": hardware_class(params), "cpu": torch.backends.cpu.get_cpu_capability(), **packages}


def _skip_needless_work() -> None:
    """What costs time at each step and gives nothing here; docs/performance.md has the figures."""
    # `deterministic` also fills all fresh memory with NaN, for operations that read it before they write it.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    # Lightning's way of looking for a GPU, which each optimizer step does: it opens NVIDIA's library every time.
    os.environ.pop("PYTORCH_NVML_BASED_CUDA_CHECK", None)


def _silence_notices() -> None:
    """Leave Lightning its warnings, but not its advertisements and its list of absent accelerators."""
    for name in ("pytorch_lightning", "lightning.pytorch", "lightning_fabric", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # Batches are gathered from one tensor: a worker process would only copy them once more.
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    # Metrics are logged once an epoch, whatever its number of steps.
    warnings.filterwarnings("ignore", ".*smaller than the logging interval.*")
    warnings.filterwarnings("ignore", ".*LeafSpec.*is deprecated")
    warnings.filterwarnings("ignore", ".*all_gather is deprecated")
