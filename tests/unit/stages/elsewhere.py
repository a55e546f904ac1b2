"""A system of a user's own in a folder that dvc.yaml does not watch."""

import pytorch_lightning as pl
from torch import Tensor


class Own(pl.LightningModule):
    def forward(self, images: Tensor) -> Tensor:
        return images.float().mean(dim=(1, 2, 3))[:, None].expand(-1, 10).softmax(1)
