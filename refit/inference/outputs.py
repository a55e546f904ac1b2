"""What a test or a prediction says of each image."""

from collections.abc import Iterable, Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor

from refit.params import DebugParams, TrainerParams
from refit.runtime.errors import UserError
from refit.training.trainer import make_trainer, translate_lightning_errors

ROUNDING = 0.05  # by which bfloat16's probabilities may miss a sum of one


class Outputs(Callback):
    """What test_step or predict_step returns of each image: a dictionary of tensors, a row an image.

    Raises UserError where there are no probabilities among them."""

    def __init__(self) -> None:
        self.batches: list[dict[str, Tensor]] = []

    def on_test_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, *args: Any) -> None:
        if not isinstance(outputs, dict) or "probabilities" not in outputs:
            raise UserError(
                f"{type(pl_module).__name__}: test_step and predict_step must return a dictionary of tensors with "
                "'probabilities', (images, classes); see docs/systems.md"
            )
        self.batches.append(outputs)

    def on_predict_batch_end(self, *args: Any) -> None:
        self.on_test_batch_end(*args)

    def gather(self) -> dict[str, Tensor]:
        """Of all images, in their order, on the CPU. Raises UserError where a row of probabilities is none."""
        outputs = {name: torch.cat([batch[name] for batch in self.batches]).cpu() for name in self.batches[0]}
        sums = outputs["probabilities"].float().sum(dim=1)
        if bool((outputs["probabilities"] < 0).any() or ((sums - 1).abs() > ROUNDING).any()):
            raise UserError(
                "the 'probabilities' of test_step or predict_step are none: expected 0 or more, and 1 in all for each "
                "image; of logits make them by logits.softmax(dim=1)"
            )
        return outputs


def predict_each(
    system: pl.LightningModule, loader: Iterable[Any], params: TrainerParams, debug: DebugParams
) -> Outputs:
    """What predict_step returns of the images of `loader`, or of the first that the debug section leaves."""
    collected = Outputs()
    trainer = make_trainer(params, callbacks=[collected], limit_predict_batches=debug.test_batches)
    with translate_lightning_errors(debug):
        trainer.predict(system, loader, return_predictions=False)
    return collected


def columns_of_each(outputs: Mapping[str, Tensor], images: int) -> list[dict[str, float]]:
    """Of each image those outputs that are one number, (images,), by their names."""
    columns = {name: values.tolist() for name, values in outputs.items() if values.ndim == 1}
    return [{name: round(column[i], 6) for name, column in columns.items()} for i in range(images)]
