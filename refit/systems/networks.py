"""Networks by name: uint8 images (N, C, H, W) to floats (N, outputs)."""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from refit.artifacts.prepared import Images
from refit.params import OUR_NETWORKS, ModelParams
from refit.runtime.errors import UserError
from refit.systems.libraries import Library, library_of
from refit.systems.user_code import Provided, check_arguments, construct, user_class


def build_network(
    name: str,
    arguments: Mapping[str, Any],
    shape: tuple[int, int, int],
    outputs: int,
    mean: Sequence[float],
    std: Sequence[float],
) -> nn.Module:
    """The network `name` (model.network in params.yaml), newly initialised, after a layer that normalises its input.

    It maps uint8 images of `shape` (C, H, W) to floats (N, outputs). `arguments` come from network_arguments().
    `mean` and `std` are of the training images, by channel, pixels scaled to 0..1.
    Raises UserError if the network is unknown or does not accept these arguments.
    """
    return Chain(Normalize(mean, std), _build(name, arguments, shape, outputs))


def network_arguments(model: ModelParams) -> dict[str, Any]:
    """The arguments of the network that `model` names; for our networks, defaults are filled in."""
    if model.network not in OUR_NETWORKS:
        return model.network_arguments
    chosen = {"width": model.width, "dropout": model.dropout}
    defaults = inspect.signature(_OURS[model.network]).parameters
    return {name: defaults[name].default if value is None else value for name, value in chosen.items()}


def _build(name: str, arguments: Mapping[str, Any], shape: tuple[int, int, int], outputs: int) -> nn.Module:
    in_channels = shape[0]
    if library := library_of(name):
        return _from_library(library, name, arguments, shape, outputs)
    if name in OUR_NETWORKS:
        return _OURS[name](math.prod(shape) if name == "mlp" else in_channels, outputs, **arguments)
    network_class = _users_network(name)
    provided: Provided = {"shape": lambda: shape, "in_channels": lambda: in_channels, "outputs": lambda: outputs}
    built: nn.Module = construct(network_class, provided, arguments, "model.network_arguments")
    _check_outputs(built, shape, outputs, name)
    return built


def _from_library(
    library: Library, name: str, arguments: Mapping[str, Any], shape: tuple[int, int, int], outputs: int
) -> nn.Module:
    try:
        network = library.build(name, arguments, shape, outputs)
        _check_outputs(network, shape, outputs, name)
    except UserError:
        raise
    except Exception as error:  # noqa: BLE001, the libraries raise anything for a size that they do not accept
        reason = " ".join(str(error).split())
        raise UserError(
            f"model.network = {name!r} does not accept images of {shape[1]}x{shape[2]} pixels: {reason}; "
            "set another data.image_size"
        ) from None
    return network


def check_network(model: ModelParams) -> None:
    """Raises UserError unless the network that `model` names can be found and built."""
    if library := library_of(model.network):
        library.check(model.network, model.network_arguments)
    elif model.network not in OUR_NETWORKS:
        provided = {"shape", "in_channels", "outputs"}
        check_arguments(_users_network(model.network), provided, model.network_arguments, "model.network_arguments")


@torch.no_grad()
def _check_outputs(network: nn.Module, shape: tuple[int, int, int], outputs: int, name: str) -> None:
    """Run the network on two blank images, which also initialises lazy layers such as nn.LazyLinear.

    Raises UserError unless the output is a tensor of shape (2, outputs).
    """
    training = {module: module.training for module in network.modules()}
    try:
        output = network.eval()(torch.zeros(2, *shape))
    except Exception as error:
        error.add_note(f"model.network = {name!r} was called with 2 images, float {(2, *shape)}")
        raise
    for module, mode in training.items():
        module.training = mode
    found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
    if found != (2, outputs):
        raise UserError(
            f"model.network = {name!r} returns {found} for 2 images; expected a tensor of shape (2, {outputs})"
        )


def _users_network(name: str) -> type:
    network = user_class(name, "model.network")
    if not issubclass(network, nn.Module):
        raise UserError(f"model.network = {name!r} is not a torch.nn.Module; see docs/systems.md")
    from pytorch_lightning import LightningModule  # slow, and only needed for the user's own networks

    if issubclass(network, LightningModule):
        raise UserError(f"model.network = {name!r} is a system, not a network; set model.system to it")
    return network


def fit_whitening(network: nn.Module, images: Images) -> None:
    """Fit the whitening layer of a network from build_network, if it has one, to training images (N, C, H, W).

    A layer that is already fitted, because weights were loaded, stays as it is.
    """
    for layer in network.modules():
        if isinstance(layer, Whiten) and not layer.is_fitted():
            assert isinstance(network, Chain)
            assert isinstance(network[0], Normalize)
            layer.fit(images, network[0].std.flatten().tolist())


def mlp(pixels: int, outputs: int, width: int = 256, dropout: float = 0.2) -> nn.Module:
    """Two hidden layers of `width` units."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(pixels, width), nn.ReLU(), nn.Dropout(dropout),
        nn.Linear(width, width), nn.ReLU(), nn.Dropout(dropout),
        nn.Linear(width, outputs),
    )  # fmt: skip


def cnn(in_channels: int, outputs: int, width: int = 32, dropout: float = 0.1) -> nn.Module:
    """Three stages of two 3x3 convolutions, halving the image and doubling the channels between them."""
    return nn.Sequential(
        conv(in_channels, width), conv(width, width), nn.MaxPool2d(2, ceil_mode=True),
        conv(width, 2 * width), conv(2 * width, 2 * width), nn.MaxPool2d(2, ceil_mode=True),
        conv(2 * width, 4 * width), conv(4 * width, 4 * width),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout), nn.Linear(4 * width, outputs),
    )  # fmt: skip


def resnet9(in_channels: int, outputs: int, width: int = 64, dropout: float = 0.0) -> nn.Module:
    """The nine-layer residual network of David Page, "How to Train Your ResNet" (2018)."""
    return nn.Sequential(
        conv(in_channels, width),
        conv(width, 2 * width), nn.MaxPool2d(2, ceil_mode=True), Residual(2 * width),
        conv(2 * width, 4 * width), nn.MaxPool2d(2, ceil_mode=True),
        conv(4 * width, 8 * width), nn.MaxPool2d(2, ceil_mode=True), Residual(8 * width),
        GlobalMaxPool(), nn.Dropout(dropout), nn.Linear(8 * width, outputs), Scale(0.125),
    )  # fmt: skip


def airbench(in_channels: int, outputs: int, width: int = 64, dropout: float = 0.0) -> nn.Module:
    """The network of Keller Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU" (2024): a third of resnet9's
    arithmetic, after a whitening layer."""
    return nn.Sequential(
        Whiten(in_channels), nn.GELU(),
        _group(2 * in_channels * Whiten.SIDE**2, width), _group(width, 4 * width), _group(4 * width, 4 * width),
        GlobalMaxPool(), nn.Dropout(dropout), nn.Linear(4 * width, outputs, bias=False), Scale(1 / 9),
    )  # fmt: skip


_OURS: dict[str, Callable[..., nn.Module]] = {"mlp": mlp, "cnn": cnn, "resnet9": resnet9, "airbench": airbench}


def _group(in_channels: int, out_channels: int) -> nn.Module:
    """Two 3x3 convolutions, each initialised to pass on as many of its input channels as possible unchanged."""
    layers = nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1, bias=False),
        nn.MaxPool2d(2, ceil_mode=True), _norm(out_channels), nn.GELU(),
        nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1, bias=False), _norm(out_channels), nn.GELU(),
    )  # fmt: skip
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            nn.init.dirac_(layer.weight.data[: layer.in_channels])
    return layers


def _norm(channels: int) -> nn.Module:
    return nn.Sequential(nn.BatchNorm2d(channels, eps=1e-12, momentum=0.4, affine=False), Shift(channels))


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


class Whiten(nn.Module):
    """A convolution from 2x2 patches to their principal components, each scaled to variance 1, and to the negatives of
    these. The filters are computed from training images and are not trained; only the bias is.

    (N, C, H, W) to (N, 8 C, H - 1, W - 1). Before `fit`, each component is one pixel of one channel.
    """

    SIDE = 2
    _LEAST_VARIANCE = 5e-4

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.filters: Tensor
        self.register_buffer("filters", self._both_signs(torch.eye(channels * self.SIDE**2)))
        self.bias = nn.Parameter(torch.zeros(len(self.filters)))

    def is_fitted(self) -> bool:
        return not torch.equal(self.filters, self._both_signs(torch.eye(len(self.filters) // 2).to(self.filters)))

    def fit(self, images: Images, std: Sequence[float]) -> None:
        """Compute the filters from about a million patches of the training images `images`, (N, C, H, W). `std` has one
        value per channel: the layer's input is the pixels divided by 255 `std`."""
        enough = max(1, 1_000_000 // (images.shape[2] * images.shape[3]))
        some = torch.from_numpy(images[:: -(-len(images) // enough)]).double()
        patches = F.unfold(some, self.SIDE).transpose(1, 2).flatten(0, 1)
        # The sums of integers are exact, so their order changes no bit.
        mean, moments = patches.sum(0) / len(patches), patches.T @ patches / len(patches)
        scale = 255 * torch.tensor(std).double().repeat_interleave(self.SIDE**2)
        variances, components = torch.linalg.eigh((moments - torch.outer(mean, mean)) / torch.outer(scale, scale))
        self.filters.copy_(self._both_signs((components / (variances + self._LEAST_VARIANCE).sqrt()).T))

    def _both_signs(self, components: Tensor) -> Tensor:
        """(4 C, 4 C) to kernels, (8 C, C, 2, 2)."""
        return torch.cat((components, -components)).view(2 * len(components), -1, self.SIDE, self.SIDE)

    def forward(self, images: Tensor) -> Tensor:
        return F.conv2d(images, self.filters, self.bias)


class Shift(nn.Module):
    """A bias per channel, which SGD learns 64 times as fast as the weights."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.eighth = nn.Parameter(torch.zeros(channels))

    def forward(self, images: Tensor) -> Tensor:
        return images + 8 * self.eighth.view(-1, 1, 1)


class GlobalMaxPool(nn.Module):
    """The maximum of each channel: (N, C, H, W) to (N, C). Unlike that of nn.AdaptiveMaxPool2d(1), its gradient is
    deterministic on a CUDA device."""

    def forward(self, images: Tensor) -> Tensor:
        return images.amax(dim=(2, 3))


class Scale(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, values: Tensor) -> Tensor:
        return self.factor * values


class Chain(nn.Sequential):
    """PyTorch 2.11 compiles each part of a plain nn.Sequential separately; with its own `forward` it is one graph."""

    def forward(self, images: Tensor) -> Tensor:
        for part in self:
            images = part(images)
        return images


class Normalize(nn.Module):
    """uint8 pixels to floats of mean 0 and standard deviation 1 over the training images."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        # In place after the first: for a batch of photos, one more copy costs as much as the arithmetic.
        return torch.div(images.to(self.mean.dtype), 255).sub_(self.mean).div_(self.std)
