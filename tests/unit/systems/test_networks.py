"""Every available network maps uint8 images to logits."""

import numpy as np
import pytest
import torch
from torch import nn

from refit.artifacts.prepared import Pixels
from refit.params import OUR_NETWORKS, ModelParams
from refit.runtime.errors import UserError
from refit.systems.networks import Whiten, build_network, network_arguments
from tests.fixtures import model_params

MEAN, STD = [0.2, 0.4, 0.6], [0.1, 0.2, 0.3]


def model(network: str, width: int | None = None, dropout: float | None = None) -> ModelParams:
    return model_params(network=network, width=width, dropout=dropout, test_time_flip=False)


def build(params: ModelParams, shape: tuple[int, int, int] = (3, 8, 8), classes: int = 7) -> nn.Module:
    return build_network(params.network, network_arguments(params), shape, classes, MEAN[: shape[0]], STD[: shape[0]])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("network", [*OUR_NETWORKS, "torchvision:resnet18"])
def test_a_network_maps_uint8_images_of_digit_size_to_logits(network: str, channels: int) -> None:
    built = build(model(network), (channels, 8, 8))
    images = torch.randint(0, 256, (2, channels, 8, 8), dtype=torch.uint8)
    for mode in (True, False):
        logits = built.train(mode)(images)
        assert logits.shape == (2, 7)
        assert logits.dtype == torch.float32
        assert logits.isfinite().all()


@pytest.mark.parametrize("network", OUR_NETWORKS)
@pytest.mark.parametrize("shape", [(1, 4, 4), (3, 9, 13), (1, 28, 28)])
def test_our_networks_accept_small_and_odd_sizes(network: str, shape: tuple[int, int, int]) -> None:
    images = torch.zeros(2, *shape, dtype=torch.uint8)
    assert build(model(network, width=4), shape)(images).shape == (2, 7)


@pytest.mark.parametrize("network", OUR_NETWORKS)
def test_our_networks_can_be_deterministic_on_a_cuda_device(network: str) -> None:
    """These layers have no deterministic gradient on CUDA, except average pooling to one pixel, which is a mean."""
    for layer in build(model(network)).modules():
        assert not isinstance(layer, nn.AdaptiveMaxPool2d | nn.FractionalMaxPool2d)
        assert not isinstance(layer, nn.AdaptiveAvgPool2d) or layer.output_size == 1


@pytest.mark.parametrize("network", OUR_NETWORKS)
def test_width_changes_the_size_of_our_networks(network: str) -> None:
    sizes = [sum(weight.numel() for weight in build(model(network, width)).parameters()) for width in (4, 8, None)]
    assert sizes[0] < sizes[1] < sizes[2]


@pytest.mark.parametrize("network", OUR_NETWORKS)
def test_dropout_changes_logits_in_training_only(network: str) -> None:
    built = build(model(network, width=8, dropout=0.5)).eval()
    images = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    assert torch.equal(built(images), built(images))
    for layer in built.modules():
        layer.training = isinstance(layer, nn.Dropout)  # batch norm also behaves differently in training
    assert not torch.equal(built(images), built(images))


@pytest.mark.parametrize("network", OUR_NETWORKS)
def test_zero_dropout_is_passed_to_the_layers(network: str) -> None:
    dropouts = [layer.p for layer in build(model(network, dropout=0.0)).modules() if isinstance(layer, nn.Dropout)]
    assert set(dropouts) == {0.0}


def test_the_first_layer_normalises_with_the_training_images_mean_and_std() -> None:
    built = build(model("mlp"))
    assert isinstance(built, nn.Sequential)
    pixels = torch.randint(0, 256, (16, 3, 8, 8), dtype=torch.uint8)
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    torch.testing.assert_close(built[0](pixels), (pixels / 255 - mean) / std)


@pytest.mark.parametrize("network", OUR_NETWORKS)
def test_the_channels_are_distinguished(network: str) -> None:
    """A network must distinguish, for example, a red image from a green one."""
    built = build(model(network, width=32)).eval()
    images = torch.zeros(3, 3, 8, 8, dtype=torch.uint8)
    for channel in range(3):
        images[channel, channel] = 255
    logits = built(images)
    assert not torch.allclose(logits[0], logits[1])
    assert not torch.allclose(logits[1], logits[2])


class Lazy(nn.Sequential):
    """Infers its size from its first input; one of its layers is in eval mode from the start."""

    def __init__(self, outputs: int, too_many: int = 0) -> None:
        super().__init__(nn.Flatten(), nn.Dropout(0.5).eval(), nn.BatchNorm1d(192), nn.LazyLinear(outputs + too_many))


class Pair(nn.Module):
    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return images, images


def users_model(name: str, **arguments: object) -> ModelParams:
    return model(f"{__name__}.{name}").model_copy(update={"network_arguments": arguments})


def test_a_user_s_network_can_infer_its_size_from_the_images() -> None:
    built = build(users_model("Lazy"))
    assert isinstance(built, nn.Sequential)
    layers = built[1]
    assert isinstance(layers, Lazy)
    assert layers[3].weight.shape == (7, 192)
    assert [layer.training for layer in layers] == [True, False, True, True]
    assert layers[2].num_batches_tracked == 0


@pytest.mark.parametrize(
    ("users", "line"),
    [
        (
            users_model("Lazy", too_many=1),
            r"\.Lazy' returns \(2, 8\) for 2 images; expected a tensor of shape \(2, 7\)$",
        ),
        (users_model("Pair"), r"\.Pair' returns tuple for 2 images; expected a tensor of shape \(2, 7\)$"),
    ],
)
def test_a_user_s_network_with_wrong_outputs_is_refused(users: ModelParams, line: str) -> None:
    with pytest.raises(UserError, match=line):
        build(users)


def some_images(channels: int = 3) -> Pixels:
    """Neighbouring pixels are similar, as in photos."""
    rough = torch.randint(0, 256, (40, channels, 4, 4), generator=torch.Generator().manual_seed(0)).float()
    return torch.nn.functional.interpolate(rough, size=16, mode="bilinear").to(torch.uint8).numpy()


@pytest.mark.parametrize("channels", [1, 3])
def test_a_whitening_layer_gives_uncorrelated_components_of_variance_one(channels: int) -> None:
    images, std = some_images(channels), [0.3, 0.2, 0.1][:channels]
    whiten = Whiten(channels)
    whiten.fit(images, std)
    normalized = torch.from_numpy(images) / 255 / torch.tensor(std).view(-1, 1, 1)
    components = whiten(normalized)[:, : 4 * channels].transpose(0, 1).flatten(1)
    covariance = torch.cov(components)
    # Components with almost no variance are not fully scaled up, because neighbouring pixels differ little.
    assert covariance.diagonal()[-channels:].allclose(torch.ones(channels), atol=0.02)
    assert (covariance.diagonal() < 1.02).all()
    assert (covariance - covariance.diagonal().diag()).abs().max() < 1e-3
    assert torch.equal(whiten.filters[4 * channels :], -whiten.filters[: 4 * channels])


def test_a_whitening_layer_does_not_depend_on_the_order_of_the_images() -> None:
    """Another number of threads may also change that order."""
    images, filters = some_images(), []
    for ordered in (images, images[::-1].copy()):
        whiten = Whiten(3)
        whiten.fit(ordered, [0.3, 0.2, 0.1])
        filters.append(whiten.filters)
    assert torch.equal(*filters)


def test_a_whitening_layer_samples_the_whole_data_set() -> None:
    """The images may be sorted by class, and only a sample of a large set is used."""
    images = np.zeros((4_000, 1, 32, 32), np.uint8)
    images[2_000:] = 255 * np.eye(32, dtype=np.uint8)
    whiten = Whiten(1)
    whiten.fit(images, [0.25])
    untouched = Whiten(1)
    untouched.fit(images[:2_000], [0.25])
    assert not torch.allclose(whiten.filters, untouched.filters)


@pytest.mark.parametrize("name", ["resnet19", "googlenet", "inception_v3", "fcn_resnet50", ""])
def test_an_unknown_torchvision_name_fails_with_an_error_that_lists_the_known_ones(name: str) -> None:
    """googlenet and inception_v3 are excluded because they have a second output in training."""
    with pytest.raises(UserError, match=rf"model\.network = 'torchvision:{name}' is unknown; .* resnet18"):
        build(model(f"torchvision:{name}"))


@pytest.mark.parametrize("name", ["torchvision:alexnet", "torchvision:vit_b_32"])
def test_an_image_size_that_a_torchvision_network_rejects_gives_an_error_that_names_the_key(name: str) -> None:
    with pytest.raises(
        UserError, match=rf"model\.network = '{name}' does not accept images of 8x8 pixels: .*image_size"
    ):
        build(model(name))


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "shufflenet_v2_x0_5"])
def test_other_torchvision_classifiers_also_accept_grey_images(name: str) -> None:
    images = torch.randint(0, 256, (2, 1, 32, 32), dtype=torch.uint8)
    assert build(model(f"torchvision:{name}"), (1, 32, 32))(images).shape == (2, 7)
