"""The optimizer and the learning rate's schedule of a system."""

import math
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler

from refit.params import OptimizerParams
from refit.runtime.errors import UserError
from refit.systems.freezing import FrozenBackbone
from refit.systems.head import backbone_parameters
from refit.systems.libraries import depths, without_decay

FACTOR = "learning_rate_factor"
"""Of a parameter group: its learning rate ÷ that of the head. Missing where it is 1."""


def configure_optimizers(
    system: pl.LightningModule, params: OptimizerParams, learning_rate: float
) -> OptimizerLRScheduler:
    """The optimizer and the schedule for all weights of `system`, in the form that Lightning's configure_optimizers
    returns. The number of steps is from the system's trainer. With a FrozenBackbone among its callbacks the schedule
    begins after the frozen epochs, whose learning rate is constant."""
    optimizer = make_optimizer(system, params, learning_rate)
    frozen = next((one for one in system.trainer.callbacks if isinstance(one, FrozenBackbone)), None)  # type: ignore[attr-defined]
    if params.schedule == "constant" and frozen is None:
        return optimizer
    by_epoch = params.schedule == "plateau"
    epochs = system.trainer.max_epochs or 1
    updates = epochs if by_epoch else int(system.trainer.estimated_stepping_batches)  # of the learning rate
    delay = min(frozen.epochs, epochs) * (updates // epochs) if frozen else 0
    scheduler = _scheduler(optimizer, params, max(updates - delay, 1))
    if frozen:
        scheduler = Delayed(scheduler, delay, frozen.learning_rate or learning_rate)
    when = {"monitor": "val_loss", "reduce_on_plateau": True} if by_epoch else {"interval": "step"}
    config: Any = {"scheduler": scheduler, **when}
    return {"optimizer": optimizer, "lr_scheduler": config}


def _scheduler(
    optimizer: torch.optim.Optimizer, params: OptimizerParams, steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    if params.schedule == "constant":
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    if params.schedule == "plateau":
        return torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer, factor=params.plateau_factor, patience=params.plateau_patience
        )
    if params.schedule == "cosine":
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
    if params.schedule == "cosine_warm_up":
        warm_up_steps = max(1, round(params.warm_up * steps))

        def fraction_of_peak(step: int) -> float:
            if step < warm_up_steps:
                return (step + 1) / (warm_up_steps + 1)
            return 0.5 + 0.5 * math.cos(math.pi * (step - warm_up_steps) / max(1, steps - warm_up_steps))

        return torch.optim.lr_scheduler.LambdaLR(optimizer, fraction_of_peak)
    warm_up = params.warm_up
    if warm_up * steps == 1:  # OneCycleLR would divide 0 by 0 for a warm-up of exactly one step
        warm_up *= 1 + 1e-9
    return torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        [group["lr"] for group in optimizer.param_groups],
        total_steps=steps,
        pct_start=warm_up,
        anneal_strategy="linear" if params.schedule == "triangular" else "cos",
        cycle_momentum=False,
    )


class Delayed(torch.optim.lr_scheduler.LRScheduler):
    """A schedule that begins after `delay` updates. Until then the learning rate is constant."""

    def __init__(self, schedule: torch.optim.lr_scheduler.LRScheduler, delay: int, learning_rate: float) -> None:
        # Not the base class's, which would update the rates.
        self.schedule, self.delay, self.updates = schedule, delay, 0
        self.optimizer = schedule.optimizer
        self.first = [group["lr"] for group in self.optimizer.param_groups]
        self._set([learning_rate * group.get(FACTOR, 1.0) for group in self.optimizer.param_groups])

    def step(self, *metrics: Any) -> None:
        self.updates += 1
        if self.updates == self.delay:
            self._set(self.first)
        elif self.updates > self.delay:
            self.schedule.step(*metrics)

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.updates, "schedule": self.schedule.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.updates = state_dict["updates"]
        self.schedule.load_state_dict(state_dict["schedule"])

    def _set(self, rates: list[float]) -> None:
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate


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
    spared = without_decay(system)
    decays = {weight: weight.ndim > 1 and weight not in spared for weight in system.parameters()}
    weights = [weight for weight, does in decays.items() if does]
    others = [weight for weight, does in decays.items() if not does]
    groups: list[dict[str, Any]] = [
        {"params": weights, "lr": learning_rate, "weight_decay": params.weight_decay},
        {"params": others, "lr": learning_rate, "weight_decay": 0.0},
    ]
    # Frozen weights get their own groups too: a fused kernel cannot update an unfrozen weight, which has no momentum
    # yet, together with weights that have it.
    if params.backbone_learning_rate == params.layer_decay == 1 and all(w.requires_grad for w in system.parameters()):
        return groups
    backbone = backbone_parameters(system)
    depth = depths(system) if params.layer_decay != 1 else {}
    parts: dict[tuple[bool, int, float], list[torch.nn.Parameter]] = {}
    for number, group in enumerate(groups):
        for weight in group["params"]:
            factor = params.layer_decay ** depth.get(weight, 0)
            factor *= params.backbone_learning_rate if weight in backbone else 1.0
            parts.setdefault((weight in backbone, number, factor), []).append(weight)
    from_head = sorted(parts.items(), key=lambda part: (*part[0][:2], -part[0][2]))
    return [
        groups[number] | {"params": weights, "lr": factor * learning_rate, FACTOR: factor}
        for (_, number, factor), weights in from_head
    ]


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
