"""The optimizer and the learning rate's schedule of a system."""

from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler

from refit.params import OptimizerParams
from refit.systems.head import backbone_parameters


def configure_optimizers(
    system: pl.LightningModule, params: OptimizerParams, learning_rate: float
) -> OptimizerLRScheduler:
    """For all weights of `system`, as its own `configure_optimizers` returns it; its trainer gives the steps."""
    optimizer = make_optimizer(system, params, learning_rate)
    if params.schedule == "constant":
        return optimizer
    steps = int(system.trainer.estimated_stepping_batches)
    scheduler: torch.optim.lr_scheduler.LRScheduler
    if params.schedule == "cosine":
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
    else:
        scheduler = torch.optim.lr_scheduler.OneCycleLR(
            optimizer,
            [group["lr"] for group in optimizer.param_groups],
            total_steps=steps,
            pct_start=params.warm_up,
            anneal_strategy="linear" if params.schedule == "triangular" else "cos",
            cycle_momentum=False,
        )
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def make_optimizer(system: pl.LightningModule, params: OptimizerParams, learning_rate: float) -> torch.optim.Optimizer:
    groups = parameter_groups(system, params, learning_rate)
    # One kernel for all weights, where the device has it; Lightning will not clip for it in mixed precision.
    clips_mixed = bool(system.trainer.gradient_clip_val) and system.trainer.precision.endswith("-mixed")
    fused = system.device.type in ("cpu", "cuda") and not clips_mixed
    if params.name == "adamw":
        return torch.optim.AdamW(groups, lr=learning_rate, betas=(params.momentum, 0.999), fused=fused)
    nesterov = params.momentum > 0
    return torch.optim.SGD(groups, lr=learning_rate, momentum=params.momentum, nesterov=nesterov, fused=fused)


def parameter_groups(system: pl.LightningModule, params: OptimizerParams, learning_rate: float) -> list[dict[str, Any]]:
    """All weights of `system`, each with its peak learning rate and its decay; the head's in the first groups."""
    # Decay shrinks what multiplies; norms and biases only shift and scale.
    weights = [weight for weight in system.parameters() if weight.ndim > 1]
    others = [weight for weight in system.parameters() if weight.ndim <= 1]
    groups: list[dict[str, Any]] = [
        {"params": weights, "lr": learning_rate, "weight_decay": params.weight_decay},
        {"params": others, "lr": learning_rate, "weight_decay": 0.0},
    ]
    # A fused kernel cannot take up a weight that was frozen among others that have momentum by then.
    if params.backbone_learning_rate == 1 and all(weight.requires_grad for weight in system.parameters()):
        return groups
    before_head = backbone_parameters(system)
    parts = [
        group | {"params": [weight for weight in group["params"] if (weight in before_head) == slower],
                 "lr": learning_rate * (params.backbone_learning_rate if slower else 1)}
        for slower in (False, True) for group in groups
    ]  # fmt: skip
    return [group for group in parts if group["params"]]
