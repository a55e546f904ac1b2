"""What the processes of a fit on several devices tell one another beside gradients; one alone talks to nobody."""

from typing import Any, TypeVar

import pytorch_lightning as pl
import torch
import torch.distributed as dist

T = TypeVar("T")


class Together:
    """Every process of a fit calls these, in the same order.

    They use the processors and the network, so that no step waits for an accelerator.
    """

    def __init__(self, trainer: pl.Trainer) -> None:
        self.rank = trainer.global_rank
        self.world_size = trainer.world_size
        if self.world_size > 1:
            self.group: Any = dist.new_group(backend="gloo")

    def highest(self, *numbers: int) -> list[int]:
        """The highest of each number that any process gives."""
        if self.world_size == 1:
            return [*numbers]
        highest = torch.tensor(numbers)
        dist.all_reduce(highest, dist.ReduceOp.MAX, group=self.group)
        return highest.tolist()

    def gather(self, value: T) -> list[T]:
        """What each process gives, in the order of their ranks."""
        if self.world_size == 1:
            return [value]
        values: list[T] = [value] * self.world_size
        dist.all_gather_object(values, value, group=self.group)
        return values
