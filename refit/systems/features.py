"""The two parts of a classifier: the layers before its head, which give features, and the head, which answers."""

import hashlib

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from refit.artifacts.features import Array, has_features, read_features
from refit.artifacts.model import ModelRecord
from refit.batches.datamodule import Batch
from refit.runtime.errors import UserError
from refit.systems.classifier import Classifier
from refit.systems.head import head


class Features(pl.LightningModule):
    """uint8 images (N, C, H, W) to the input of the head, float32 (N, D)."""

    def __init__(self, classifier: Classifier) -> None:
        """Raises UserError as output_layer."""
        super().__init__()
        self.network = classifier.network
        self.layer = output_layer(self.network)

    def forward(self, images: Tensor) -> Tensor:
        """Raises UserError if the network's outputs are not those of its last layer on the features."""
        inputs: list[Tensor] = []
        hook = self.layer.register_forward_pre_hook(lambda _layer, given: inputs.append(given[0]))
        try:
            logits = self.network(images)
        finally:
            hook.remove()
        if len(inputs) != 1 or inputs[0].ndim != 2 or not torch.equal(self.layer(inputs[0]), logits):
            raise _unfit(self.network)
        return inputs[0]


class Head(pl.LightningModule):
    """Features (N, D) to the classifier's answers. Their batches have features in place of images."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.task = classifier.task
        self.layer = output_layer(classifier.network)

    def forward(self, features: Tensor) -> Tensor:
        return self.task.to_answer(self.layer(features))

    def test_step(self, batch: Batch, batch_idx: int) -> Tensor:
        answers: Tensor = self(batch.images)
        return answers


def output_layer(network: nn.Module) -> nn.Linear:
    """Raises UserError unless the head is one linear layer."""
    layers = head(network)
    if len(layers) != 1 or not isinstance(layers[0], nn.Linear):
        raise _unfit(network)
    return layers[0]


def _unfit(network: nn.Module) -> UserError:
    return UserError(
        f"fit.train = head needs a network that ends with one linear layer, and {type(network[-1]).__name__} does not; "  # type: ignore[index]
        "set fit.train to all, or choose another model.network"
    )


def backbone_sha256(classifier: Classifier) -> str:
    """The sha256 of all weights and statistics before the head."""
    of_head = {id(weight) for weight in output_layer(classifier.network).state_dict(keep_vars=True).values()}
    digest = hashlib.sha256()
    for name, weight in classifier.network.state_dict(keep_vars=True).items():
        if id(weight) not in of_head:
            digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
            digest.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def features_of(model: ModelRecord, classifier: Classifier, split: str) -> Array | None:
    """The features of a split, if this model's own layers computed them; otherwise None. None also for a model with
    test_time_flip, whose answers need the mirror images too."""
    if model.test_time_flip or not has_features():
        return None
    return read_features(split, backbone_sha256(classifier), model.data_sha256)
