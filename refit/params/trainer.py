"""Sections `trainer` and `debug`: what Lightning's Trainer is given."""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

from refit.params.types import Count, Limit, Section
from refit.runtime.cores import usable_cores


def _cores_for_auto(value: Any) -> Any:
    if isinstance(value, str) and value != "auto":
        raise PydanticCustomError("threads", "Input should be auto, or an integer")
    return usable_cores() if value == "auto" else value


_AUTO_OR_COUNT = {"anyOf": [{"const": "auto", "type": "string"}, {"minimum": 1, "type": "integer"}]}


class TrainerParams(Section):
    accelerator: Literal["auto", "cpu", "gpu", "mps", "tpu"] = "auto"
    """Lightning's accelerator. auto: the best one of this machine."""
    devices: Count = 1
    """Number of devices per machine that fit trains on, one process each (docs/distributed.md). They share the
    effective batch. All other stages use one device."""
    num_nodes: Count = 1
    """Number of machines that fit trains on. torchrun or SLURM starts it on each of them."""
    strategy: Literal["auto", "ddp", "ddp_find_unused_parameters_true", "fsdp"] = "auto"
    """Lightning's strategy for several devices. auto: ddp."""
    sync_batchnorm: bool = False
    """Compute batch norm's statistics over the images of all devices instead of each device's own. CUDA only."""
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed", "64-true"] = "auto"
    """Lightning's precision. auto: bf16-mixed if the device supports it natively, else 32-true."""
    threads: Annotated[Count, BeforeValidator(_cores_for_auto), WithJsonSchema(_AUTO_OR_COUNT)] = 1
    """Number of PyTorch's CPU threads. auto: the cores that this process may use. The number is part of what is
    recorded: another one changes the last bits of the results, so auto makes the stages stale on a machine with another
    number of cores. More than one thread helps large networks on an otherwise idle machine; two such trainings at the
    same time slow each other down."""
    deterministic: bool = True
    """Use deterministic algorithms only."""
    compile: Literal["default", "reduce-overhead"] | None = None
    """Mode of torch.compile for the network in fit. reduce-overhead records CUDA graphs, which helps small networks.
    Compiling takes 30 s to several minutes and needs a C++ compiler. null: do not compile."""

    @property
    def world_size(self) -> int:
        """Devices of all machines together."""
        return self.devices * self.num_nodes

    @model_validator(mode="after")
    def _devices_work_together(self) -> Self:
        if self.world_size == 1 and self.strategy != "auto":
            raise ValueError(f"strategy = {self.strategy!r} has no effect with one device; set it to auto, or raise "
                             "devices")  # fmt: skip
        if self.world_size == 1 and self.sync_batchnorm:
            raise ValueError("sync_batchnorm = true has no effect with one device; set it to false, or raise devices")
        if self.accelerator == "cpu" and self.sync_batchnorm:
            raise ValueError("sync_batchnorm = true needs CUDA devices, but accelerator is cpu; set it to false")
        if self.accelerator == "cpu" and self.strategy == "fsdp":
            raise ValueError("strategy = 'fsdp' needs CUDA devices, but accelerator is cpu; set it to ddp")
        return self


class DebugParams(Section):
    fast_dev_run: Annotated[int, Field(ge=0)] = 0
    """Number of batches of each split that fit, test and predict run, once, to check that nothing breaks. 0: run all
    batches."""
    overfit_batches: Annotated[int, Field(ge=0)] = 0
    """Number of batches on whose images alone fit trains and validates, without augmentation. 0: use all images."""
    limit_train_batches: Limit = 1.0
    """How much of the training images one epoch uses: a fraction such as 0.1, or a number of micro-batches. 1.0: all
    images."""
    limit_val_batches: Limit = 1.0
    """How much of the validation images is used: a fraction, or a number of batches. 1.0: all images."""
    limit_test_batches: Limit = 1.0
    """How much of their images test and predict use: a fraction, or a number of batches. 1.0: all images."""
    val_check_interval: Limit = 1.0
    """How often fit validates: a fraction of an epoch, or a number of micro-batches. 1.0: after each epoch. The last
    validation must coincide with the end of the epoch, because its weights are the ones that are kept."""
    profiler: Literal["simple", "advanced", "pytorch"] | None = None
    """Lightning's profiler of fit. Its report is printed and kept in data/logs/profile/. null: off."""
    detect_anomaly: bool = False
    """Name the operation that produced a NaN gradient. Makes training several times slower."""

    @property
    def test_batches(self) -> int | float:
        """Lightning's limit of batches for test and predict."""
        return self.fast_dev_run or self.limit_test_batches

    @property
    def shortens(self) -> bool:
        """Whether the result is that of a trial, and not a model to be used."""
        limits = (self.limit_train_batches, self.limit_val_batches, self.limit_test_batches)
        return bool(self.fast_dev_run or self.overfit_batches) or any(not _is_all(limit) for limit in limits)


def _is_all(limit: int | float) -> bool:
    return isinstance(limit, float) and limit == 1
