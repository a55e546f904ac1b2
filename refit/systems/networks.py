"""Networks by name: normalised float images (N, C, H, W) to logits (N, classes)."""

import torchvision
from torch import Tensor, nn

from refit.params import ModelParams


def build_network(model: ModelParams, in_channels: int, image_size: tuple[int, int], classes: int) -> nn.Module:
    """The network that `model` names, freshly initialised.

    Raises ValueError for an unknown torchvision name.
    """
    if model.network.startswith("torchvision:"):
        check_torchvision_name(model.network)
        network: nn.Module = torchvision.models.get_model(
            model.network.partition(":")[2], weights=None, num_classes=classes
        )
        return nn.Sequential(GreyToRgb(), network) if in_channels == 1 else network
    width, dropout = model.width, model.dropout
    if model.network == "mlp":
        pixels = in_channels * image_size[0] * image_size[1]
        return mlp(pixels, classes, width or 256, 0.2 if dropout is None else dropout)
    if model.network == "cnn":
        return cnn(in_channels, classes, width or 32, 0.1 if dropout is None else dropout)
    assert model.network == "resnet9", model.network
    return resnet9(in_channels, classes, width or 64, 0.0 if dropout is None else dropout)


def check_torchvision_name(network: str) -> None:
    """Raises ValueError unless `network` is torchvision: and the name of one of its image classifiers."""
    name = network.partition(":")[2]
    known = torchvision.models.list_models(module=torchvision.models)
    # These two give a second output in training, which no other does.
    known = [other for other in known if other not in ("googlenet", "inception_v3")]
    if name not in known:
        raise ValueError(
            f"model.network = {network!r} is unknown; expected torchvision: and one of {', '.join(sorted(known))}"
        )


def mlp(pixels: int, classes: int, width: int, dropout: float) -> nn.Module:
    """Two hidden layers of `width` units."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(pixels, width), nn.ReLU(), nn.Dropout(dropout),
        nn.Linear(width, width), nn.ReLU(), nn.Dropout(dropout),
        nn.Linear(width, classes),
    )  # fmt: skip


def cnn(in_channels: int, classes: int, width: int, dropout: float) -> nn.Module:
    """Three stages of two 3x3 convolutions, halving the image and doubling the channels between them."""
    return nn.Sequential(
        conv(in_channels, width), conv(width, width), nn.MaxPool2d(2, ceil_mode=True),
        conv(width, 2 * width), conv(2 * width, 2 * width), nn.MaxPool2d(2, ceil_mode=True),
        conv(2 * width, 4 * width), conv(4 * width, 4 * width),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout), nn.Linear(4 * width, classes),
    )  # fmt: skip


def resnet9(in_channels: int, classes: int, width: int, dropout: float) -> nn.Module:
    """The nine-layer residual network of David Page, "How to Train Your ResNet" (2018)."""
    return nn.Sequential(
        conv(in_channels, width),
        conv(width, 2 * width), nn.MaxPool2d(2, ceil_mode=True), Residual(2 * width),
        conv(2 * width, 4 * width), nn.MaxPool2d(2, ceil_mode=True),
        conv(4 * width, 8 * width), nn.MaxPool2d(2, ceil_mode=True), Residual(8 * width),
        nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Dropout(dropout), nn.Linear(8 * width, classes),
    )  # fmt: skip


def conv(in_channels: int, out_channels: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


class Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(conv(channels, channels), conv(channels, channels))

    def forward(self, images: Tensor) -> Tensor:
        output: Tensor = images + self.branch(images)
        return output


class GreyToRgb(nn.Module):
    """Show a grey image to a network that expects three channels."""

    def forward(self, images: Tensor) -> Tensor:
        return images.expand(-1, 3, -1, -1)
