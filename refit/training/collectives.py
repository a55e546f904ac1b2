"""Communication between the processes of a distributed fit, apart from gradients. No-op on one device."""

from typing import Any, TypeVar

import pytorch_lightning as pl
import torch
import torch.distributed as dist

T = TypeVar("T")


class Collectives:
    """Collective operations on the CPU. All processes of a fit must call them in the same order.

    They use the gloo backend, so that no step waits for an accelerator.
    """

    def __init__(self, trainer: pl.Trainer) -> None:
        self.rank = trainer.global_rank
        self.world_size = trainer.world_size
        if self.world_size > 1:
            self.group: Any = dist.new_group(backend="gloo")

    def maximum(self, *numbers: int) -> list[int]:
        """The maximum of each number over all processes."""
        if self.world_size == 1:
            return [*numbers]
        maxima = torch.tensor(numbers)
        dist.all_reduce(maxima, dist.ReduceOp.MAX, group=self.group)
        return maxima.tolist()

    def gather(self, value: T) -> list[T]:
        """The value of each process, ordered by rank."""
        if self.world_size == 1:
            return [value]
        values: list[T] = [value] * self.world_size
        dist.all_gather_object(values, value, group=self.group)
        return values
