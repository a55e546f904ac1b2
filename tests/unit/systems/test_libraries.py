"""The networks of torchvision and timm: names, arguments, sizes, heads and the weights that the libraries have."""

import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from timm.layers.drop import DropPath
from timm.optim._param_groups import param_groups_layer_decay
from torch import Tensor, nn

from refit.params import ModelParams
from refit.runtime.errors import UserError
from refit.systems import libraries
from refit.systems.head import backbone, head, head_names
from refit.systems.libraries import library_of
from refit.systems.networks import build_network, check_network
from refit.systems.weights import check_weights, check_weights_can_be_had, identity, input_size, load_weights
from tests.fixtures import model_params

ROOT = Path(__file__).resolve().parents[3]
FOLDER = Path("data/weights")
VIT, CONVNEXT, EFFICIENTNET = "timm:test_vit", "timm:test_convnext", "timm:test_efficientnet"
DISTILLED = "timm:deit_tiny_distilled_patch16_224"


def model(network: str, weights: str | None = None, **arguments: object) -> ModelParams:
    return model_params(network=network, network_arguments=arguments, weights=weights, width=None, dropout=None)


def build(params: ModelParams, size: int = 32, channels: int = 3, outputs: int = 7) -> Any:
    torch.manual_seed(1)
    return build_network(
        params.network, params.network_arguments, (channels, size, size), outputs, [0.4] * channels, [0.2] * channels
    )


def inner(network: Any) -> Any:
    """The library's network, after what Refit puts before it."""
    return network[1][1] if isinstance(network[1], nn.Sequential) else network[1]


def timm_file(name: str, path: str = "photos.safetensors", **arguments: Any) -> dict[str, Tensor]:
    """A file in data/weights of a network with random weights; returns what is in it."""
    torch.manual_seed(0)
    state: dict[str, Tensor] = timm.create_model(name, **arguments).state_dict()
    FOLDER.mkdir(exist_ok=True)
    save_file(state, FOLDER / path)
    return state


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("network", [VIT, CONVNEXT, EFFICIENTNET, "timm:vit_tiny_patch16_224", DISTILLED])
def test_a_network_of_timm_takes_uint8_images_to_logits(network: str, channels: int) -> None:
    built = build(model(network), channels=channels)
    images = torch.randint(0, 256, (2, channels, 32, 32), dtype=torch.uint8)
    for mode in (True, False):
        logits = built.train(mode)(images)
        assert logits.shape == (2, 7)
        assert logits.isfinite().all()


@pytest.mark.parametrize(
    ("network", "line"),
    [
        ("timm:resnet81", "'timm:resnet81' is unknown; did you mean timm:resnet18?; expected timm: and a name of"),
        ("timm:resnet18.a1_in1k", "did you mean timm:resnet18?; expected .* without a tag, .*; model.weights names"),
        ("timm:", "'timm:' is unknown; expected timm: and a name of"),
    ],
)
def test_an_unknown_name_is_an_error_that_names_the_nearest(network: str, line: str) -> None:
    for check in (check_network, build):
        with pytest.raises(UserError, match=line.replace("?", r"\?")):
            check(model(network))


def test_a_vision_transformer_is_built_for_the_images_size_and_refuses_one_that_it_cannot_divide() -> None:
    assert inner(build(model(VIT), size=48)).pos_embed.shape[1] == 3 * 3 + 1
    with pytest.raises(
        UserError, match=r"model\.network = 'timm:test_vit' does not accept images of 40x40 pixels: .*data\.image_size$"
    ):
        build(model(VIT), size=40)
    assert build(model(CONVNEXT), size=40)(torch.zeros(1, 3, 40, 40, dtype=torch.uint8)).shape == (1, 7)


def test_arguments_reach_the_network() -> None:
    layers = build(model(VIT, drop_path_rate=0.3)).modules()
    assert max(layer.drop_prob for layer in layers if isinstance(layer, DropPath)) == pytest.approx(0.3)
    by_torchvision = build(model("torchvision:vit_b_16", image_size=32))
    assert inner(by_torchvision).seq_length == 2 * 2 + 1


@pytest.mark.parametrize(
    ("network", "arguments", "line"),
    [
        (VIT, {"drop_pth_rate": 0.1}, "do not fit timm:test_vit: .*unexpected keyword argument 'drop_pth_rate'"),
        (VIT, {"drop_path_rate": "much"}, "do not fit timm:test_vit: "),
        (VIT, {"img_size": 64}, "model.network_arguments.img_size: Refit itself sets img_size; remove it"),
        (VIT, {"pretrained": True}, "model.network_arguments.pretrained: Refit itself sets pretrained; remove it"),
        ("torchvision:resnet18", {"dropout": 0.1}, "do not fit torchvision:resnet18: .*argument 'dropout'"),
        ("torchvision:resnet18", {"num_classes": 3}, "Refit itself sets num_classes; remove it"),
    ],
)
def test_arguments_that_a_network_does_not_take_are_refused_before_any_work(
    network: str, arguments: dict[str, Any], line: str
) -> None:
    with pytest.raises(UserError, match=line) as raised:
        check_network(model(network, **arguments))
    assert "\n" not in str(raised.value)
    check_network(model(network))


def test_the_head_is_what_timm_names_even_if_other_layers_come_after_it() -> None:
    network = build(model(DISTILLED))
    assert head_names(network) == ["1.head", "1.head_dist"]
    assert {layer.out_features for layer in head(network) if isinstance(layer, nn.Linear)} == {7}
    assert not set(head(network)) & set(backbone(network))
    with_norms = build(model("timm:levit_128s"), size=64)
    assert head_names(with_norms) == ["1.head.bn", "1.head.linear", "1.head_dist.bn", "1.head_dist.linear"]


def test_a_users_network_that_contains_one_of_timm_s_has_its_own_last_layer_as_head() -> None:
    network = nn.Sequential(timm.create_model("test_resnet", num_classes=5), nn.Linear(5, 3))
    assert head(network) == [network[1]]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("network", [VIT, CONVNEXT, EFFICIENTNET, DISTILLED])
def test_a_file_of_another_image_size_and_number_of_classes_fills_all_but_the_head(
    network: str, channels: int, workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = timm_file(network.removeprefix("timm:"))
    params = model(network, "data/weights/photos.safetensors")
    built = build(params, size=48, channels=channels)
    load_weights(built, params)
    heads = head_names(inner(built))
    for name, value in inner(built).state_dict().items():
        if name.rpartition(".")[0] in heads:
            assert not value.any(), f"{name} does not start at zero"
        elif name == "pos_embed":
            assert value.shape != state[name].shape
            assert float(value.mean()) == pytest.approx(float(state[name].mean()), abs=1e-3)
        else:
            assert torch.equal(value, state[name]), name
    config = timm.get_pretrained_cfg(network.removeprefix("timm:"))
    assert config is not None
    expected = config.mean if channels == 3 else [sum(config.mean) / 3]
    assert built[0].mean.flatten().tolist() == pytest.approx(expected)
    told = f"weights from data/weights/photos.safetensors, and a new last layer, {' and '.join(heads)}"
    assert f"{told}, which starts at zero\n" in capsys.readouterr().out


def test_the_positions_of_another_image_size_are_resampled_by_timm(workspace: Path) -> None:
    """As by timm itself, which makes the network for the size and loads the file."""
    timm_file("test_vit")
    params = model(VIT, "data/weights/photos.safetensors")
    built = build(params, size=96)
    load_weights(built, params)
    file = {"file": str(FOLDER / "photos.safetensors")}
    by_timm: Any = timm.create_model(
        "test_vit", pretrained=True, img_size=96, num_classes=7, pretrained_cfg_overlay=file
    )
    assert torch.equal(inner(built).pos_embed, by_timm.pos_embed)


def test_a_backbone_without_a_head_is_loaded_and_a_head_of_as_many_outputs_is_kept(workspace: Path) -> None:
    timm_file("test_vit", "backbone.safetensors", num_classes=0)
    params = model(VIT, "data/weights/backbone.safetensors")
    load_weights(built := build(params), params)
    assert not inner(built).head.weight.any()
    state = timm_file("test_vit", "seven.safetensors", num_classes=7)
    params = model(VIT, "data/weights/seven.safetensors")
    load_weights(built := build(params), params)
    assert torch.equal(inner(built).head.weight, state["head.weight"])


def test_a_new_head_of_an_encoder_does_not_start_at_zero(workspace: Path) -> None:
    """It maps to embeddings, of which none are alike."""
    timm_file("test_vit")
    params = model(VIT, "data/weights/photos.safetensors")
    load_weights(built := build(params), params, to_logits=False)
    assert inner(built).head.weight.any()


def test_a_new_head_before_a_relu_does_not_start_at_zero(workspace: Path) -> None:
    """The gradient of a ReLU is zero there: it would never learn."""
    FOLDER.mkdir()
    torch.save(torchvision.models.squeezenet1_1().state_dict(), FOLDER / "squeeze.pth")
    params = model("torchvision:squeezenet1_1", "data/weights/squeeze.pth")
    load_weights(built := build(params), params)
    assert inner(built).classifier[1].weight.any()


def test_of_a_head_with_hidden_layers_only_the_outputs_start_at_zero(workspace: Path) -> None:
    timm_file("caformer_s18", num_classes=0)
    params = model("timm:caformer_s18", "data/weights/photos.safetensors")
    load_weights(built := build(params, size=64), params)
    assert inner(built).head.fc.fc1.weight.any()
    assert not inner(built).head.fc.fc2.weight.any()


def test_weights_of_another_architecture_are_refused_with_the_differing_tensors(workspace: Path) -> None:
    timm_file("test_resnet")
    params = model(VIT, "data/weights/photos.safetensors")
    with pytest.raises(UserError, match=r"does not fit: missing, unexpected or of another shape: .* more; choose"):
        load_weights(build(params), params)


def test_a_model_that_refit_trained_gives_its_weights_to_one_of_another_size(workspace: Path) -> None:
    trained: Any = nn.Module()
    trained.network = build(model(VIT), channels=1)
    FOLDER.mkdir()
    save_file(trained.state_dict(), FOLDER / "grey.safetensors")
    params = model(VIT, "data/weights/grey.safetensors")
    load_weights(built := build(params, size=48, outputs=3), params)
    assert torch.equal(inner(built).patch_embed.proj.weight, inner(trained.network).patch_embed.proj.weight)
    assert built[0].mean.flatten().tolist() == pytest.approx([0.4] * 3)


def test_the_names_of_weights_are_timm_s_tags() -> None:
    check_weights(model("timm:resnet18", "DEFAULT"))
    check_weights(model("timm:resnet18", "a1_in1k"))
    assert identity(model("timm:resnet18", "a1_in1k")) == (
        "https://huggingface.co/timm/resnet18.a1_in1k/resolve/main/model.safetensors"
    )
    with pytest.raises(UserError, match=r"'a1_in2k' is unknown; did you mean a1_in1k\?; timm:resnet18 has .*DEFAULT"):
        check_weights(model("timm:resnet18", "a1_in2k"))
    without = next(name for name in timm.list_models() if not timm.list_pretrained(f"{name}*"))
    with pytest.raises(UserError, match=rf"'DEFAULT', but timm has no weights for timm:{without}; set it to null or"):
        check_weights(model(f"timm:{without}", "DEFAULT"))


def test_named_weights_bring_their_own_normalisation(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tag's, which need not be that of the network's default weights."""
    state = timm.create_model("vit_tiny_patch16_224").state_dict()
    asked = []

    def hub(name: str) -> dict[str, Tensor]:
        asked.append(name)
        return dict(state)

    monkeypatch.setattr("timm.models.load_state_dict_from_hf", hub)
    monkeypatch.setattr(libraries, "fault_of", lambda urls: None)
    params = model("timm:vit_tiny_patch16_224", "augreg_in21k_ft_in1k")
    load_weights(built := build(params), params)
    assert asked == ["timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k"]
    assert built[0].mean.flatten().tolist() == pytest.approx([0.5] * 3)
    assert torch.equal(inner(built).norm.weight, state["norm.weight"])
    assert not inner(built).head.weight.any()


def test_weights_that_cannot_be_downloaded_fail_with_a_one_line_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    block_sockets(monkeypatch)
    params = model("timm:resnet18", "a1_in1k")
    began = time.monotonic()
    for refuse in (check_weights_can_be_had, lambda params: load_weights(build(params), params)):
        with pytest.raises(
            UserError, match=r"model\.weights = 'a1_in1k' cannot be downloaded from https://.*; or put the file into"
        ) as raised:
            refuse(params)
        assert "\n" not in str(raised.value)
    assert time.monotonic() - began < 20


def block_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    """No process reaches a network from here on."""

    def unreachable(*_: object, **__: object) -> None:
        raise OSError("the network is away")

    monkeypatch.setattr(socket.socket, "connect", unreachable)
    monkeypatch.setattr(socket, "getaddrinfo", unreachable)


def test_weights_that_were_downloaded_are_used_without_the_internet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    block_sockets(monkeypatch)
    repository = tmp_path / "models--timm--test_vit.r160_in1k"  # as the hub's client stores it
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text("0" * 40)
    (repository / "snapshots" / ("0" * 40)).mkdir(parents=True)
    state = timm.create_model("test_vit").state_dict()
    save_file(state, repository / "snapshots" / ("0" * 40) / "model.safetensors")
    params = model(VIT, "DEFAULT")
    check_weights_can_be_had(params)
    load_weights(built := build(params), params)
    assert torch.equal(inner(built).norm.weight, state["norm.weight"])


@pytest.mark.parametrize("network", [VIT, CONVNEXT, EFFICIENTNET, DISTILLED, "timm:pit_ti_224"])
def test_the_depth_of_a_weight_is_the_number_of_timm_s_groups_between_it_and_the_head(network: str) -> None:
    size = 224 if "pit" in network else 32
    system = nn.Module()
    system.network = built = build(model(network), size=size)
    depth, timms = libraries.depths(system), inner(built)
    heads = [weight for layer in head(built) for weight in layer.parameters()]
    assert {depth[weight] for weight in heads} == {0}
    assert max(depth.values()) > 1
    by_timm = param_groups_layer_decay(timms, layer_decay=0.5)
    assert {weight: group["lr_scale"] for group in by_timm for weight in group["params"]} == {
        weight: 0.5**number for weight, number in depth.items()
    }


def test_the_weights_that_timm_names_do_not_decay() -> None:
    system = nn.Module()
    system.network = network = timm.create_model("test_vit", num_classes=3)
    assert libraries.without_decay(system) == {network.pos_embed, network.cls_token}
    assert libraries.without_decay(nn.Linear(2, 2)) == set()


def test_a_system_without_a_network_of_timm_has_no_depths() -> None:
    with pytest.raises(UserError, match=r"optimizer\.layer_decay needs a timm: network as `network` of Linear; set it"):
        libraries.depths(nn.Linear(2, 2))


def test_refit_s_own_networks_are_built_without_importing_timm() -> None:
    """It takes seconds, in each of the processes of a run."""
    code = """
import sys
import stages.find_lr, stages.fit, stages.predict, stages.scale_batch, stages.test
from refit.params import Params
from refit.systems.build import check_model
check_model(Params().model, Params().loss)
from stages.check import check_train_size, image_size
check_train_size(Params(), image_size(Params()))
from refit.systems.networks import build_network
build_network("cnn", {}, (1, 8, 8), 10, [0.5], [0.5])
print([name for name in ("timm", "huggingface_hub") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_each_library_is_found_by_its_prefix_alone() -> None:
    assert library_of("cnn") is None
    assert library_of("timm.models.resnet.ResNet") is None
    names = {network: type(library_of(network)).__name__ for network in ("timm:resnet18", "torchvision:resnet18")}
    assert names == {"timm:resnet18": "Timm", "torchvision:resnet18": "Torchvision"}


def test_the_size_of_named_weights_is_their_own_and_of_a_file_the_network_s_usual_one() -> None:
    """Not the larger one that some are tested at."""
    assert input_size(model("timm:vit_base_patch16_384", "DEFAULT")) == 384
    assert input_size(model("timm:resnet18", "a1_in1k")) == 224
    assert input_size(model("timm:tf_efficientnet_b4", "ns_jft_in1k")) == 380
    assert input_size(model("torchvision:vit_b_16", "IMAGENET1K_SWAG_E2E_V1")) == 384
    assert input_size(model("torchvision:vit_b_16", "data/weights/any.pth")) == 224
    assert input_size(model("timm:vit_base_patch16_384", "data/weights/any.pth")) == 384
    assert input_size(model("timm:resnet18")) is None
