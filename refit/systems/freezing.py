"""Freezing in a fine-tuning: of all layers but the head in the first epochs, and of the first layers for good."""

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from torch import nn

from refit.runtime.errors import UserError
from refit.systems.head import backbone, has_parameters

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def freeze_first_layers(system: nn.Module, share: float) -> None:
    """Freeze this share of the layers before the head, counted from the input in the order of `modules()`, for good:
    nothing in them learns or decays, and batch norm uses and keeps its statistics.

    Raises UserError if that is no layer.
    """
    if not share:
        return
    layers = backbone(system)
    weighted = [number for number, layer in enumerate(layers) if has_parameters(layer)]
    frozen = round(share * len(weighted))
    if not frozen:
        raise UserError(
            f"fit.freeze_share = {share:g} freezes no layer: {type(system).__name__} has {len(weighted)} before its "
            "head; raise it, or set it to 0"
        )
    for layer in layers[: weighted[frozen - 1] + 1]:  # with those between them that have no weights
        for weight in layer.parameters(recurse=False):
            weight.requires_grad_(False)
        if isinstance(layer, _BATCH_NORMS):
            layer.register_forward_pre_hook(_use_statistics)
            layer.register_forward_hook(_back_to_training)


def _use_statistics(layer: nn.Module, _: object) -> None:
    layer.training = False


def _back_to_training(layer: nn.Module, *_: object) -> None:
    layer.training = True  # Lightning warns of layers that are in evaluation mode when a fit or a trial begins


class FrozenBackbone(Callback):
    """Freezes all layers of the network but its head for some epochs. Then all layers are trained.

    A frozen weight neither learns nor decays, and frozen batch norm keeps its statistics and uses them.

    The optimizer holds all weights from the start and skips those without a gradient: learning-rate schedules and fused
    kernels cannot add weights later. Lightning's BaseFinetuning would add them, and its frozen batch norm normalises by
    the batch.
    """

    def __init__(self, epochs: int, learning_rate: float | None = None) -> None:
        """`learning_rate` is that of the frozen epochs, in which it is constant; None for the peak of those after
        them."""
        self.epochs = epochs
        self.learning_rate = learning_rate
        self.weights: list[nn.Parameter] = []
        self.norms: list[nn.Module] = []

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self.freeze(pl_module)

    def freeze(self, system: nn.Module) -> None:
        """Freeze the weights. Raises UserError if there are none before the head."""
        self.weights = [
            weight for layer in backbone(system) for weight in layer.parameters(recurse=False) if weight.requires_grad
        ]
        if not self.weights:
            raise UserError(
                f"fit.freeze_epochs = {self.epochs}, but {type(system).__name__} has no layer before its head that "
                "could learn; set it to 0"
            )
        for weight in self.weights:
            weight.requires_grad_(False)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Not in setup: sync_batchnorm replaces these layers after it, and Lightning then warns of layers in eval mode.
        self.hold(pl_module)
        self.set_frozen(trainer.current_epoch < self.epochs)  # a resumed fit may begin within an epoch

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.set_frozen(trainer.current_epoch < self.epochs)

    def hold(self, system: nn.Module) -> None:
        """Keep the statistics of batch norm in the backbone, and use them. The weights are frozen before."""
        self.norms = [layer for layer in backbone(system) if isinstance(layer, _BATCH_NORMS)]
        self.set_frozen(True)

    def set_frozen(self, frozen: bool) -> None:
        for weight in self.weights:
            weight.requires_grad_(not frozen)
        for norm in self.norms:
            norm.train(not frozen)
