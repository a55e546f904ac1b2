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
    """For all weights of `system`, as its own `configure_optimizers` returns it; its trainer gives the steps."""
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
        climb = max(1, round(params.warm_up * steps))

        def share_of_the_peak(step: int) -> float:
            if step < climb:
                return (step + 1) / (climb + 1)
            return 0.5 + 0.5 * math.cos(math.pi * (step - climb) / max(1, steps - climb))

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, share_of_the_peak)
    else:
        warm_up = params.warm_up
        if warm_up * steps == 1:  # of a climb that ends with its first step OneCycleLR makes 0 / 0
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
    # One kernel for all weights, where the device has it. It takes the scale of a scaled loss away by itself, so that
    # Lightning will not clip for it.
    clips_scaled = bool(system.trainer.gradient_clip_val) and system.trainer.precision == "16-mixed"
    fused = system.device.type in ("cpu", "cuda") and not clips_scaled
    optimizer: torch.optim.Optimizer
    if params.name == "adamw":
        optimizer = torch.optim.AdamW(groups, lr=learning_rate, betas=(params.momentum, 0.999), fused=fused)
    else:
        nesterov = params.momentum > 0
        optimizer = torch.optim.SGD(groups, lr=learning_rate, momentum=params.momentum, nesterov=nesterov, fused=fused)
    if system.trainer.precision == "bf16-mixed":  # whose loss is not scaled; Lightning looks at this alone
        optimizer._step_supports_amp_scaling = False
    return optimizer


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


def _muon(system: pl.LightningModule, params: OptimizerParams, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """Muon (Jordan et al. 2024) for hidden matrices and kernels, flattened to (out, in x height x width), AdamW for
    all else.

    A step of Muon is scaled to the size of AdamW's (Liu et al. 2025), so that both go by one learning rate and decay.
    Raises UserError where there is nothing between the first layer and the last.
    """
    from timm.optim.muon import Muon  # seconds of imports that only this needs

    layers = [weight for module in system.modules() if (weight := _matrix(module)) is not None]
    hidden = {weight for weight in layers[1:-1] if min(weight.shape[:2]) > 1}  # depthwise kernels are no matrices
    if not hidden:
        raise UserError(
            f"optimizer.name = 'muon' is for the layers between the first and the last, and {type(system).__name__} "
            "has none; choose adamw, or a deeper model.network"
        )
    by_adamw = {"use_fallback": True, "nesterov": False}  # with nesterov it would be NAdamW
    parts = [
        group | {"params": [weight for weight in group["params"] if (weight in hidden) == is_hidden]} | way
        for group in groups
        for is_hidden, way in ((True, {}), (False, by_adamw))
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
    """The matrix or the kernels of a layer; None where it has none."""
    weight = getattr(module, "weight", None)
    return weight if isinstance(weight, torch.nn.Parameter) and weight.ndim > 1 else None
