"""The first epochs of a fine-tuning: only the head learns."""

import pytorch_lightning as pl
from pytorch_lightning.callbacks import BaseFinetuning
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from refit.runtime.errors import UserError
from refit.systems.head import backbone


class FrozenBackbone(BaseFinetuning):
    """All layers of the network but its head neither learn nor decay for some epochs, and batch norm among them keeps
    the statistics it has; then all learn.

    The optimizer has all weights from the start, as schedules and fused kernels cannot take up more later: it passes
    over a weight without a gradient. Lightning's own `freeze` is not used: it has a frozen norm go by the batch.
    """

    def __init__(self, epochs: int) -> None:
        super().__init__()
        self.epochs = epochs

    def state_dict(self) -> dict[str, object]:
        return {}  # the epoch says it all

    def load_state_dict(self, state_dict: dict[str, object]) -> None:
        pass

    def freeze_before_training(self, pl_module: pl.LightningModule) -> None:
        layers = backbone(pl_module)
        self.weights = [
            weight for layer in layers for weight in layer.parameters(recurse=False) if weight.requires_grad
        ]
        self.norms = [layer for layer in layers if isinstance(layer, _BatchNorm)]
        if not self.weights:
            raise UserError(
                f"fit.freeze_epochs = {self.epochs}, but {type(pl_module).__name__} has no layer before its head to "
                "freeze; set it to 0"
            )
        for weight in self.weights:
            weight.requires_grad_(False)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Here, as a fit that goes on may do so in the middle of an epoch, and as Lightning has by now looked for what
        # is left in eval mode by mistake.
        self._set_frozen(trainer.current_epoch < self.epochs)

    def finetune_function(self, pl_module: pl.LightningModule, epoch: int, optimizer: Optimizer) -> None:
        self._set_frozen(epoch < self.epochs)

    def _set_frozen(self, frozen: bool) -> None:
        for weight in self.weights:
            weight.requires_grad_(not frozen)
        for norm in self.norms:
            norm.train(not frozen)
