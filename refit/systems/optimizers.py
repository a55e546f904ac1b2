"""The optimizer and the learning rate's schedule of a system."""

import math
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler

from refit.params import OptimizerParams
from refit.runtime.errors import UserError
from refit.systems.head import backbone_parameters


def configure_optimizers(
    system: pl.LightningModule, params: OptimizerParams, learning_rate: float
) -> OptimizerLRScheduler:
    """The optimizer and the schedule for all weights of `system`, in the form that Lightning's configure_optimizers
    returns. The number of steps is from the system's trainer."""
    optimizer = make_optimizer(system, params, learning_rate)
    if params.schedule == "constant":
        return optimizer
    if params.schedule == "plateau":
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer, factor=params.plateau_factor, patience=params.plateau_patience
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, "monitor": "val_loss"}}
    steps = int(system.trainer.estimated_stepping_batches)
    scheduler: torch.optim.lr_scheduler.LRScheduler
    if params.schedule == "cosine":
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
    elif params.schedule == "cosine_warm_up":
        warm_up_steps = max(1, round(params.warm_up * steps))

        def fraction_of_peak(step: int) -> float:
            if step < warm_up_steps:
                return (step + 1) / (warm_up_steps + 1)
            return 0.5 + 0.5 * math.cos(math.pi * (step - warm_up_steps) / max(1, steps - warm_up_steps))

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, fraction_of_peak)
    else:
        warm_up = params.warm_up
        if warm_up * steps == 1:  # OneCycleLR would divide 0 by 0 for a warm-up of exactly one step
            warm_up *= 1 + 1e-9
        scheduler = torch.optim.lr_scheduler.OneCycleLR(
            optimizer,
            [group["lr"] for group in optimizer.param_groups],
            total_steps=steps,
            pct_start=warm_up,
            anneal_strategy="linear" if params.schedule == "triangular" else "cos",
            cycle_momentum=False,
        )
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def make_optimizer(system: pl.LightningModule, params: OptimizerParams, learning_rate: float) -> torch.optim.Optimizer:
    groups = parameter_groups(system, params, learning_rate)
    if params.name == "muon":
        return _muon(system, params, groups)
    # Fused: one kernel for all weights, if the device has one. It unscales the gradients of a scaled loss itself, so
    # Lightning refuses to clip them.
    clips_scaled = bool(system.trainer.gradient_clip_val) and system.trainer.precision == "16-mixed"
    fused = system.device.type in ("cpu", "cuda") and not clips_scaled
    optimizer: torch.optim.Optimizer
    if params.name == "adamw":
        optimizer = torch.optim.AdamW(groups, lr=learning_rate, betas=(params.momentum, 0.999), fused=fused)
    else:
        nesterov = params.momentum > 0
        optimizer = torch.optim.SGD(groups, lr=learning_rate, momentum=params.momentum, nesterov=nesterov, fused=fused)
    if system.trainer.precision == "bf16-mixed":  # its loss is not scaled, but Lightning checks only this attribute
        optimizer._step_supports_amp_scaling = False
    return optimizer


def parameter_groups(system: pl.LightningModule, params: OptimizerParams, learning_rate: float) -> list[dict[str, Any]]:
    """All weights of `system` in groups, each with a peak learning rate and a weight decay; the head's groups first."""
    # As is usual, weight decay is for matrices and kernels, not for biases and normalisation layers.
    weights = [weight for weight in system.parameters() if weight.ndim > 1]
    others = [weight for weight in system.parameters() if weight.ndim <= 1]
    groups: list[dict[str, Any]] = [
        {"params": weights, "lr": learning_rate, "weight_decay": params.weight_decay},
        {"params": others, "lr": learning_rate, "weight_decay": 0.0},
    ]
    # Frozen weights get their own groups too: a fused kernel cannot update an unfrozen weight, which has no momentum
    # yet, together with weights that have it.
    if params.backbone_learning_rate == 1 and all(weight.requires_grad for weight in system.parameters()):
        return groups
    backbone = backbone_parameters(system)
    parts = [
        group | {"params": [weight for weight in group["params"] if (weight in backbone) == is_backbone],
                 "lr": learning_rate * (params.backbone_learning_rate if is_backbone else 1)}
        for is_backbone in (False, True) for group in groups
    ]  # fmt: skip
    return [group for group in parts if group["params"]]


def _muon(system: pl.LightningModule, params: OptimizerParams, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """Muon (Jordan et al. 2024) for the matrices and kernels of hidden layers, flattened to (out, in x height x width);
    AdamW for all other weights.

    Muon's steps are scaled to the size of AdamW's (Liu et al. 2025), so that both use the same learning rate and weight
    decay. Raises UserError if there is no layer between the first and the last.
    """
    from timm.optim.muon import Muon  # seconds of imports that only this needs

    layers = [weight for module in system.modules() if (weight := _matrix(module)) is not None]
    hidden = {
        weight for weight in layers[1:-1] if min(weight.shape[:2]) > 1
    }  # not depthwise kernels, which mix no channels
    if not hidden:
        raise UserError(
            f"optimizer.name = 'muon' is for the layers between the first and the last, but {type(system).__name__} "
            "has none; choose adamw, or a deeper model.network"
        )
    adamw = {"use_fallback": True, "nesterov": False}  # with nesterov it would be NAdamW
    parts = [
        group | {"params": [weight for weight in group["params"] if (weight in hidden) == is_hidden]} | options
        for group in groups
        for is_hidden, options in ((True, {}), (False, adamw))
    ]
    optimizer: torch.optim.Optimizer = Muon(
        [part for part in parts if part["params"]],
        momentum=params.momentum,
        nesterov=True,
        betas=(params.momentum, 0.999),
        adjust_lr_fn="match_rms_adamw",
    )
    return optimizer


def _matrix(module: torch.nn.Module) -> torch.nn.Parameter | None:
    """The weight matrix or the kernels of a layer; None if it has neither."""
    weight = getattr(module, "weight", None)
    return weight if isinstance(weight, torch.nn.Parameter) and weight.ndim > 1 else None
