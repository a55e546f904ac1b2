"""Pretrained weights: which layers start from them, which are left out, and which files are refused."""

import io
import pickle
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
import torchvision
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from refit.params import ModelParams, check_params
from refit.runtime.errors import UserError
from refit.systems.networks import build_network, network_arguments
from refit.systems.weights import check_weights, identity, load_weights
from tests.fixtures import Values, model_params

FOLDER = Path("data/weights")
IMAGENET_MEAN = [0.485, 0.456, 0.406]
RESNET = "torchvision:resnet18"


@pytest.fixture(autouse=True)
def _folder(workspace: Path) -> None:
    FOLDER.mkdir()


def model(weights: str | None, network: str = RESNET, width: int | None = None) -> ModelParams:
    return model_params(network=network, width=width, dropout=None, weights=weights)


def build(params: ModelParams, channels: int = 3, outputs: int = 7, seed: int = 1) -> Any:
    torch.manual_seed(seed)
    return build_network(
        params.network, network_arguments(params), (channels, 32, 32), outputs, [0.5] * channels, [0.25] * channels
    )


def torchvision_file(
    name: str, outputs: int = 1000, suffix: str = ".pth", changed: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    torch.manual_seed(0)
    state: dict[str, Tensor] = torchvision.models.resnet18(num_classes=outputs).state_dict() | dict(changed or {})
    if suffix == ".safetensors":
        save_file(state, FOLDER / f"{name}{suffix}")
    else:
        torch.save(state, FOLDER / f"{name}{suffix}")
    return state


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_all_layers_except_the_head_start_from_a_file_s_weights_and_normalisation(suffix: str, channels: int) -> None:
    state = torchvision_file("photos", suffix=suffix)
    network = build(model(f"data/weights/photos{suffix}"), channels)
    load_weights(network, model(f"data/weights/photos{suffix}"))
    inner = network[1][1] if channels == 1 else network[1]
    for name, value in inner.state_dict().items():
        expected = torch.zeros_like(value) if name.startswith("fc.") else state[name]
        assert torch.equal(value, expected), name
    mean = network[0].mean.flatten().tolist()
    assert mean == pytest.approx(IMAGENET_MEAN if channels == 3 else [sum(IMAGENET_MEAN) / 3])
    assert network(torch.zeros(2, channels, 32, 32, dtype=torch.uint8)).shape == (2, 7)


def test_a_head_with_the_same_number_of_outputs_is_loaded() -> None:
    state = torchvision_file("seven", outputs=7)
    network = build(model("data/weights/seven.pth"))
    load_weights(network, model("data/weights/seven.pth"))
    assert torch.equal(network[1].fc.weight, state["fc.weight"])


def test_named_weights_are_loaded_by_torchvision_and_never_unpickled(monkeypatch: pytest.MonkeyPatch) -> None:
    state = torchvision_file("resnet18")
    asked: dict[str, Any] = {}

    def hub(url: str, **options: Any) -> dict[str, Tensor]:
        asked.update(options, url=url)
        return dict(state)

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", hub)
    network = build(model("IMAGENET1K_V1"))
    load_weights(network, model("IMAGENET1K_V1"))
    assert torch.equal(network[1].conv1.weight, state["conv1.weight"])
    assert network[0].mean.flatten().tolist() == pytest.approx(IMAGENET_MEAN)
    assert asked["url"].endswith("resnet18-f37072fd.pth")
    assert asked["weights_only"]
    assert asked["check_hash"]


def test_named_weights_without_internet_fail_with_a_one_line_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise URLError("Name or service not known")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    monkeypatch.setattr("torch.hub.urlopen", unreachable)
    with pytest.raises(
        UserError,
        match=r"model\.weights = 'DEFAULT' cannot be downloaded from https://.*: .*Name or service not known.*; or",
    ) as raised:
        load_weights(build(model("DEFAULT")), model("DEFAULT"))
    assert "\n" not in str(raised.value)


def test_old_densenet_files_and_files_without_counters_can_be_loaded() -> None:
    """Like torchvision's published files, with old layer names and without num_batches_tracked."""
    network = torchvision.models.densenet121(num_classes=7)
    old = {
        name.replace(".norm1.", ".norm.1.").replace(".conv2.", ".conv.2."): value
        for name, value in network.state_dict().items() if not name.endswith("num_batches_tracked")
    }  # fmt: skip
    assert any(".norm.1." in name for name in old)
    torch.save(old, FOLDER / "dense.pth")
    params = model("data/weights/dense.pth", "torchvision:densenet121")
    built = build(params)
    load_weights(built, params)
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in built[1].state_dict().items())


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (
            {"conv1.weight": torch.zeros(64, 1, 7, 7)},
            r"conv1.weight \(weights \[64, 1, 7, 7\], network \[64, 3, 7, 7\]\)",
        ),
        ({"extra.weight": torch.zeros(2)}, "extra.weight"),
    ],
)
def test_a_tensor_that_does_not_match_is_named(change: dict[str, Tensor], named: str) -> None:
    torchvision_file("off", changed=change)
    with pytest.raises(UserError, match=f"does not fit: missing, unexpected or of another shape: {named}; choose"):
        load_weights(build(model("data/weights/off.pth")), model("data/weights/off.pth"))


def test_four_of_many_mismatched_tensors_are_named() -> None:
    torchvision_file("other")
    params = model("data/weights/other.pth", "cnn")
    with pytest.raises(UserError, match=r"another shape: ([\w.]+, ){3}[\w.]+ and \d+ more; choose") as raised:
        load_weights(build(params), params)
    assert len(str(raised.value)) < 300


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("exploded"),)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors"])
@pytest.mark.parametrize("content", ["torch", "pickle", "cut"])
def test_a_file_without_weights_is_refused_and_nothing_in_it_is_executed(content: str, suffix: str) -> None:
    path = FOLDER / f"bad{suffix}"
    buffer = io.BytesIO()
    torch.save({"fc.weight": Bomb()} if content == "torch" else {"fc.weight": torch.zeros(99)}, buffer)
    written = buffer.getvalue()
    path.write_bytes({"torch": written, "pickle": pickle.dumps(Bomb(), protocol=2), "cut": written[:-200]}[content])
    with pytest.raises(UserError, match=r"model\.weights = 'data/weights/bad.*' is not a weights file: ") as raised:
        load_weights(build(model(str(path))), model(str(path)))
    assert "\n" not in str(raised.value)
    assert not Path("exploded").exists()


def test_a_truncated_old_file_fails_with_a_one_line_error() -> None:
    path, buffer = FOLDER / "old.pt", io.BytesIO()
    torch.save({"fc.weight": torch.zeros(3, 3)}, buffer, _use_new_zipfile_serialization=False)
    whole, network = buffer.getvalue(), build(model(str(path)))
    for kept in range(0, len(whole), 7):
        path.write_bytes(whole[:kept])
        with pytest.raises(UserError, match=r"^model\.weights = 'data/weights/old\.pt' ") as raised:
            load_weights(network, model(str(path)))
        assert "\n" not in str(raised.value)


def test_a_file_without_a_state_dict_is_refused() -> None:
    torch.save({"state_dict": {"fc.weight": torch.zeros(2)}}, FOLDER / "nested.pth")
    with pytest.raises(UserError, match="is not a state_dict; expected a dictionary of tensors"):
        load_weights(build(model("data/weights/nested.pth")), model("data/weights/nested.pth"))


@pytest.mark.parametrize(
    ("weights", "network", "line"),
    [
        ("DEFAULT", "cnn", "weights 'DEFAULT' is a name, but only networks of torchvision and timm have named weights"),
        ("data/model/model.safetensors", "cnn", "is not below data/weights/"),
        ("data/weights/../model/model.safetensors", "cnn", "is not below data/weights/"),
        ("data/weights/model.ckpt", "cnn", "has an unknown file type; expected one of .safetensors, .pt, .pth"),
    ],
)
def test_unknown_weights_names_and_wrong_paths_are_refused(
    weights: str, network: str, line: str, values: Values
) -> None:
    with pytest.raises(UserError, match=f"params.yaml: model: .*{line}"):
        check_params(values({"model.weights": weights, "model.network": network}))


def test_an_unknown_weights_name_and_a_missing_weights_file_are_refused() -> None:
    with pytest.raises(
        UserError, match=r"'IMAGENET1K_V2' is unknown; did you mean IMAGENET1K_V1.*resnet18 has IMAGENET1K_V1, DEFAULT"
    ):
        check_weights(model("IMAGENET1K_V2"))
    with pytest.raises(UserError, match=r"'data/weights/gone\.pth' does not exist; put the file into data/weights/"):
        check_weights(model("data/weights/gone.pth"))
    check_weights(model("DEFAULT"))


def test_weights_are_identified_by_their_content() -> None:
    torchvision_file("one")
    torchvision_file("two", outputs=5)
    one, two = (identity(model(f"data/weights/{name}.pth")) for name in ("one", "two"))
    assert one != two
    assert len(str(one)) == 64
    shutil.copy(FOLDER / "one.pth", FOLDER / "two.pth")
    assert identity(model("data/weights/two.pth")) == one
    assert str(identity(model("DEFAULT"))).startswith("https://")
    assert identity(model(None)) is None


def test_weights_from_refit_include_their_normalisation() -> None:
    trained: Any = nn.Module()
    trained.network = build(model(None, "cnn"), 3)
    trained.network[0].mean.fill_(0.125)
    save_file(trained.state_dict(), FOLDER / "ours.safetensors")
    params = model("data/weights/ours.safetensors", "cnn")
    network = build(params, seed=2)
    load_weights(network, params)
    assert network[0].mean.flatten().tolist() == [0.125] * 3
    assert all(torch.equal(value, load_file(FOLDER / "ours.safetensors")[f"network.{name}"])
               for name, value in network.state_dict().items())  # fmt: skip


def test_weights_of_a_grey_model_can_be_loaded_for_colour_images() -> None:
    trained: Any = nn.Module()
    trained.network = build(model(None), 1)
    save_file(trained.state_dict(), FOLDER / "grey.safetensors")
    params = model("data/weights/grey.safetensors")
    network = build(params, seed=2)
    load_weights(network, params)
    assert torch.equal(network[1].conv1.weight, trained.network[1][1].conv1.weight)
