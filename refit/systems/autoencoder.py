"""The convolutional autoencoder: an encoder and a decoder; the nearest neighbours of an embedding give the class."""

import math

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torchmetrics import MeanMetric

from refit.batches.datamodule import EVALUATION_FACTOR, Batch, EvaluationLoader, PreparedData, WeightedBatch
from refit.params import OptimizerParams
from refit.systems.networks import Normalize, conv
from refit.systems.system import System

NEIGHBOURS = 20
TEMPERATURE = 0.07


class Autoencoder(System):
    """Encodes images to embeddings, from which a decoder reconstructs the images.

    The loss is the mean squared error of the normalised pixels; a constant image of the mean colour would get 1. After
    the fit the system stores the embeddings of the training images: the nearest ones vote on the class of a new image.
    """

    train_metrics = ("loss",)

    def __init__(
        self,
        encoder: nn.Module,
        shape: tuple[int, int, int],
        classes: int,
        mean: list[float],
        std: list[float],
        optimizer: OptimizerParams | None = None,
        learning_rate: float = 0.0,
    ) -> None:
        """`encoder` maps uint8 images (N, C, H, W) to embeddings (N, D). `shape` is the (C, H, W) of one image."""
        super().__init__(encoder, optimizer, learning_rate, {"loss": MeanMetric(nan_strategy="disable")})
        with torch.no_grad():
            size = encoder.eval()(torch.zeros(1, *shape, dtype=torch.uint8)).shape[1]
        encoder.train()
        self.decoder = decoder(size, shape)
        self.normalize = Normalize(mean, std)
        self.neighbours = Neighbours(size, classes)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """For uint8 images (N, C, H, W), all float32: the neighbours' votes (N, classes) as `probabilities`, the mean
        squared error of the normalised pixels (N,) as `reconstruction_error`, and the `embedding` (N, D)."""
        embedding = self.network(images)
        return {
            "probabilities": self.neighbours(embedding).float(),
            "reconstruction_error": self._errors(images, self.decoder(embedding)).float(),
            "embedding": embedding.float(),
        }

    def training_step(self, batch: Batch | WeightedBatch, batch_idx: int) -> Tensor:
        errors = self._errors(batch.images, self.decoder(self.network(batch.images)))
        loss = (batch.weights * errors if isinstance(batch, WeightedBatch) else errors).mean()
        self.add_train_metrics(len(batch.images), (loss.detach() * len(batch.images))[None])
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.update_val_metric("loss", self._errors(batch.images, self.decoder(self.network(batch.images))))

    def on_fit_end(self) -> None:
        """Embed the training images with the best epoch's weights."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(data, PreparedData)
        loader = EvaluationLoader(data.train, EVALUATION_FACTOR * data.batch_size, self.device)
        self.eval()
        with torch.no_grad(), self.trainer.precision_plugin.val_step_context():
            embeddings = [self.network(batch.images.to(self.device)).float() for batch in loader]
        self.neighbours.remember(torch.cat(embeddings), torch.from_numpy(data.train.labels))

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        answers: dict[str, Tensor] = self(batch.images)
        self.log("reconstruction_error", answers["reconstruction_error"].mean(), batch_size=len(batch.images))
        return answers

    def reconstruct(self, images: Tensor) -> Tensor:
        """Reconstruct `images` from their embeddings: uint8 (N, C, H, W) to uint8 (N, C, H, W)."""
        pixels = self.decoder(self.network(images)) * self.normalize.std + self.normalize.mean
        reconstructed: Tensor = (pixels.float().clamp(0, 1) * 255).round().to(torch.uint8)
        return reconstructed

    def _errors(self, images: Tensor, decoded: Tensor) -> Tensor:
        """Mean squared error of each image's normalised pixels, (N,)."""
        errors: Tensor = F.mse_loss(decoded, self.normalize(images), reduction="none").mean(dim=(1, 2, 3))
        return errors


class Neighbours(nn.Module):
    """Weighted vote of the k nearest training images: a cosine similarity s has the weight exp(s / temperature), as in
    Wu et al. 2018, "Unsupervised Feature Learning via Non-Parametric Instance Discrimination"."""

    def __init__(self, size: int, classes: int) -> None:
        super().__init__()
        self.classes = classes
        self.embeddings: Tensor
        self.labels: Tensor
        self.register_buffer("embeddings", torch.zeros(0, size))
        self.register_buffer("labels", torch.zeros(0, dtype=torch.int64))
        self.register_load_state_dict_pre_hook(_resize)  # type: ignore[no-untyped-call]

    def remember(self, embeddings: Tensor, labels: Tensor) -> None:
        """Store embeddings, float (N, D), and their labels, int64 (N,)."""
        self.embeddings, self.labels = F.normalize(embeddings), labels.to(embeddings.device)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Shares of the votes, (N, classes), for embeddings (N, D); always computed in full precision."""
        with torch.autocast(embeddings.device.type, enabled=False):
            embeddings = F.normalize(embeddings.to(self.embeddings.dtype))
            similarity, nearest = (embeddings @ self.embeddings.T).topk(min(NEIGHBOURS, len(self.labels)))
        weights = (similarity / TEMPERATURE).softmax(dim=1)
        voted = F.one_hot(self.labels[nearest], self.classes)
        votes: Tensor = (weights[:, :, None] * voted).sum(dim=1)
        return votes


def _resize(neighbours: nn.Module, state_dict: dict[str, Tensor], prefix: str, *_: object) -> None:
    """The number of stored images is that of the state that is loaded."""
    for name in ("embeddings", "labels"):
        if (saved := state_dict.get(prefix + name)) is not None:
            setattr(neighbours, name, torch.empty_like(saved, device=getattr(neighbours, name).device))


def decoder(size: int, shape: tuple[int, int, int], width: int = 32) -> nn.Module:
    """A network from embeddings (N, size) to images (N, *shape) of normalised pixels. Twice a convolution's channels
    become pixels (Shi et al. 2016): unlike a transposed convolution, this is deterministic on every device."""
    channels, height, width_of_image = shape
    rows, columns = math.ceil(height / 4), math.ceil(width_of_image / 4)
    return nn.Sequential(
        nn.Linear(size, 4 * width * rows * columns),
        nn.Unflatten(1, (4 * width, rows, columns)),
        conv(4 * width, 8 * width), nn.PixelShuffle(2),
        conv(2 * width, 4 * width), nn.PixelShuffle(2),
        conv(width, width), nn.Conv2d(width, channels, kernel_size=3, padding=1),
        Crop(height, width_of_image),
    )  # fmt: skip


class Crop(nn.Module):
    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        self.height, self.width = height, width

    def forward(self, images: Tensor) -> Tensor:
        return images[:, :, : self.height, : self.width]
