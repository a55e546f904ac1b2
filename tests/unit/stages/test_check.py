"""The stage `check`: the values that it refuses before any work."""

import urllib.request
from importlib.util import find_spec
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
import yaml
from PIL import Image
from pytorch_lightning.accelerators import MPSAccelerator
from safetensors.torch import save_file

from refit.artifacts.checked import stage_params
from refit.params import check_params, load_params
from refit.runtime.errors import UserError
from refit.systems.sizes import check_train_size
from stages import check
from tests.fixtures import Changed, Values, model_params
from tests.unit.training.test_trainer import ABSENT

ROOT = Path(__file__).resolve().parents[3]


def test_check_writes_the_committed_schema(
    workspace: Path, changed: Changed, capsys: pytest.CaptureFixture[str]
) -> None:
    check.main(changed({}))
    assert capsys.readouterr().out.startswith("params.yaml is valid\n")
    assert (workspace / "docs/params.schema.json").read_bytes() == (ROOT / "docs/params.schema.json").read_bytes()


def timm_model(name: str, **keys: object) -> dict[str, object]:
    return model_params(network=f"timm:{name}", width=None, dropout=None, **keys).model_dump()


def own_model(arguments: dict[str, int]) -> dict[str, object]:
    return model_params(system="refit.systems.classifier.Classifier", system_arguments=arguments).model_dump()


@pytest.mark.parametrize(
    ("key", "value", "line"),
    [
        ("fit.max_epoch", 3, "fit.max_epoch is not a known key; did you mean fit.max_epochs?"),
        ("optimizer.learning_rate", -1, "optimizer.learning_rate = -1 must be"),
        ("data.source", "digit", "data.source = 'digit' is unknown"),
        (
            "model",
            model_params(network="torchvision:resnet8", width=None, dropout=None).model_dump(),
            "model.network = ",
        ),
        ("model.system", "os.path", "model.system = 'os.path': os has no class 'path'"),
        ("model.system", "refit.systems.build.build_system", "has no class 'build_system'"),
        ("model.system", "refit.systems.clasifier.Classifier", "there is no module 'refit.systems.clasifier'"),
        (
            "model",
            model_params(system="tests.unit.stages.elsewhere.Own").model_dump(),
            "tests/unit/stages/elsewhere.py, which the stage fit uses, is in no folder that dvc.yaml watches",
        ),
        ("model.system", "torch.nn.Linear", "model.system = 'torch.nn.Linear' is not a LightningModule"),
        ("model.system", "no_such_package.Own", "there is no package 'no_such_package'"),
        ("model.system_arguments", {"classes": 3}, "model.system_arguments = {"),
        ("model", own_model({"klasses": 3}), "has no such argument; did you mean classes?"),
        ("model", own_model({"classes": 3}), "Refit provides classes to Classifier("),
        ("model.weights", "data/weights/gone.pth", "model.weights = 'data/weights/gone.pth' does not exist; put"),
        ("model.network", "resnet18", "network 'resnet18' is unknown; did you mean torchvision:resnet18?"),
        ("model.network", "efficientnet_b7x", "did you mean torchvision:efficientnet_b7?"),
        ("model.network", "vit_tiny_patch16_224", "did you mean timm:vit_tiny_patch16_224?"),
        ("model.network", "convnext_ato", "did you mean timm:convnext_atto?"),
        ("model", timm_model("vit_tiny_patch16_225"), "'timm:vit_tiny_patch16_225' is unknown; did you mean timm:vit_"),
        ("model", timm_model("test_vit", network_arguments={"drop": 1}), "do not fit timm:test_vit"),
        ("model", timm_model("test_vit", weights="data/weights/gone.pth"), "gone.pth' does not exist; put the file"),
        ("model", timm_model("test_vit", weights="r161_in1k"), "'r161_in1k' is unknown; did you mean r160_in1k?"),
        ("loss.class_weights", [1.0, 2.0], "loss.class_weights has 2 weights for 10 classes; expected one per class"),
        ("predict.images", "data/newer", "predict.images = 'data/newer' does not exist; create the folder"),
    ],
)
def test_a_wrong_value_gives_a_one_line_error_and_no_file(
    key: str, value: object, line: str, workspace: Path, values: Values
) -> None:
    with pytest.raises(UserError) as raised:
        check.main(check_params(values({key: value})))
    assert line in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not (workspace / "docs").exists()


TORCHVISION = model_params(network="torchvision:resnet18", width=None, dropout=None).model_dump()


def test_invalid_weights_and_weights_that_cannot_be_downloaded_are_refused(
    workspace: Path, changed: Changed, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = workspace / "data/weights/photos.safetensors"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"no weights")
    with pytest.raises(UserError, match=r"model\.weights = 'data/weights/photos\.safetensors' is not a weights file"):
        check.main(changed({"model.weights": "data/weights/photos.safetensors"}))

    monkeypatch.setenv("TORCH_HOME", str(workspace))  # where torchvision caches its downloads
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # a closed port
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.setattr(urllib.request, "_opener", None)  # it caches the proxies of its first use
    default = {"model": {**TORCHVISION, "weights": "DEFAULT"}}
    with pytest.raises(UserError, match=r"'DEFAULT' cannot be downloaded from https://.*; or put the file into"):
        check.main(changed(default))
    downloaded = workspace / "hub/checkpoints/resnet18-f37072fd.pth"
    downloaded.parent.mkdir(parents=True)
    downloaded.touch()
    check.main(changed(default))


@pytest.mark.parametrize("accelerator", [name for name, absent in ABSENT.items() if absent])
def test_an_unavailable_accelerator_is_refused(accelerator: str, workspace: Path, changed: Changed) -> None:
    with pytest.raises(UserError, match=rf"^trainer\.accelerator = '{accelerator}': "):
        check.main(changed({"trainer.accelerator": accelerator}))


def test_more_devices_than_available_are_refused_except_processes_on_a_cpu(
    workspace: Path, changed: Changed, monkeypatch: pytest.MonkeyPatch
) -> None:
    two = {"trainer.accelerator": "cpu", "trainer.devices": 2}
    check.main(changed(two))
    monkeypatch.setattr("refit.training.trainer.CPUAccelerator", MPSAccelerator)  # like another accelerator
    with pytest.raises(UserError, match=r"^trainer\.devices = 2, but this machine has 1 of trainer\.acc"):
        check.main(changed(two))


def test_compiling_without_a_compiler_is_refused(
    workspace: Path, changed: Changed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(workspace))
    monkeypatch.setenv("CXX", "")
    with pytest.raises(UserError, match=r"^trainer\.compile = 'default' needs a C\+\+ compiler"):
        check.main(changed({"trainer.compile": "default"}))


def test_a_logger_whose_package_is_not_installed_is_refused(
    workspace: Path, changed: Changed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stages.check.find_spec", lambda name: None if name == "wandb" else find_spec(name))
    with pytest.raises(UserError, match=r"^tracking.loggers names wandb, .*; run: uv pip install wandb$"):
        check.main(changed({"tracking.loggers": ["csv", "wandb"]}))
    check.main(changed({"tracking.loggers": ["csv", "tensorboard", "mlflow"]}))


def photo(folder: Path) -> None:
    for split in ("train/cat", "test/cat", "train/dog", "test/dog"):
        (folder / split).mkdir(parents=True)
        Image.new("RGB", (40, 30)).save(folder / split / "1.png")


def weights_file(workspace: Path) -> str:
    (workspace / "data/weights").mkdir()
    save_file({"a": torch.zeros(1)}, workspace / "data/weights/some.safetensors")
    return "data/weights/some.safetensors"


@pytest.mark.parametrize(
    ("network", "size"),
    [
        ("timm:test_vit", 160), ("timm:resnet18", 224), ("timm:tf_efficientnet_b4", 380), ("torchvision:resnet18", 224),
        ("torchvision:efficientnet_b4", 380),
    ],
)  # fmt: skip
def test_the_image_size_of_photos_is_that_of_the_pretrained_weights_and_told_to_prepare(
    network: str, size: int, workspace: Path, values: Values, capsys: pytest.CaptureFixture[str]
) -> None:
    photo(workspace / "data/raw")
    model = model_params(network=network, width=None, dropout=None, weights=weights_file(workspace)).model_dump()
    keys = {"data.source": "folder", "model": model}
    Path("params.yaml").write_text(yaml.safe_dump(values(keys)))
    check.main(load_params())
    line = f"data.image_size = auto is {size}, the size that data/weights/some.safetensors of {network} was trained at"
    assert line in capsys.readouterr().out.splitlines()
    assert stage_params("prepare").data.image_size == size
    assert load_params().data.image_size == "auto"


@pytest.mark.parametrize(
    "keys", [{"data.source": "digits"}, {"model.weights": None}, {"data.image_size": 64}, {"model.network": "cnn"}]
)
def test_the_image_size_of_other_data_networks_and_numbers_does_not_depend_on_weights(
    keys: dict[str, object], workspace: Path, values: Values
) -> None:
    photo(workspace / "data/raw")
    whole = {"model.width": None, "model.dropout": None, "model.network": "torchvision:resnet18"}
    whole |= {"data.source": "folder", "model.weights": weights_file(workspace)}
    params = check_params(values(whole | keys))
    assert check.image_size(params) == params.data.image_size


def test_the_network_is_built_again_only_if_something_it_depends_on_has_changed(
    workspace: Path, values: Values, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a run with another learning rate would wait seconds for imports."""
    photo(workspace / "data/raw")
    weights = weights_file(workspace)
    choices = {
        "model": {**TORCHVISION, "weights": weights}, "data.source": "folder", "augment.train_size": 32
    }  # fmt: skip
    build = Mock(wraps=check.check_network)
    monkeypatch.setattr(check, "check_network", build)

    def builds(**keys: object) -> bool:
        build.reset_mock()
        whole = values(choices | keys)
        Path("params.yaml").write_text(yaml.safe_dump(whole))
        check.main(check_params(whole))
        assert stage_params("prepare").data.image_size == keys.get("data.image_size", 224)
        return build.called

    assert builds()
    assert not builds()
    assert not builds(**{"optimizer.learning_rate": 0.01, "fit.max_epochs": 7})
    for keys in (
        {"model": {**TORCHVISION, "weights": weights, "test_time_flip": True}}, {"loss.label_smoothing": 0.1},
        {"augment.train_size": 64}, {"data.image_size": 96},
    ):  # fmt: skip
        assert builds(**keys)
        assert not builds(**keys)
    assert builds()
    record = Path("data/checked/network.json")
    record.write_text(record.read_text().replace('"torchvision": "', '"torchvision": "0.'))
    assert builds(), "another version of a package"
    Path(weights).unlink()
    with pytest.raises(UserError, match="does not exist; put the file into"):
        builds()


VIT = timm_model("vit_tiny_patch16_224")


@pytest.mark.parametrize(
    ("model", "size", "remedy"),
    [
        (VIT, "auto", r'set model.network_arguments to {"dynamic_img_size": true}, or augment.train_size to null$'),
        (VIT, 64, r'set model.network_arguments to {"dynamic_img_size": true}, or augment.train_size to null$'),
        (timm_model("levit_128s"), 64, "or choose a network whose input size is not fixed$"),
        ({**TORCHVISION, "network": "torchvision:vit_b_16"}, 224, "or choose a network whose input size is not fixed$"),
    ],
)
def test_a_network_that_cannot_be_trained_at_another_size_is_refused_before_any_work(
    model: dict[str, object], size: object, remedy: str, workspace: Path, changed: Changed
) -> None:
    keys = {"data.image_size": size, "augment.train_size": 32, "model": model}
    with pytest.raises(UserError, match=remedy) as raised:
        check.main(changed(keys))
    assert str(raised.value).startswith(f"augment.train_size = 32, but model.network = '{model['network']}' for images")
    assert "\n" not in str(raised.value)
    assert not (workspace / "docs").exists()


@pytest.mark.parametrize(
    "model",
    [
        TORCHVISION, timm_model("vit_tiny_patch16_224", network_arguments={"dynamic_img_size": True}),
        timm_model("test_efficientnet"), model_params(network="cnn").model_dump(),
        model_params(network="resnet9", width=4).model_dump(), model_params(network="airbench").model_dump(),
    ],
)  # fmt: skip
def test_a_network_without_a_fixed_size_can_be_trained_at_another(
    model: dict[str, object], workspace: Path, changed: Changed
) -> None:
    check.main(changed({"data.image_size": 64, "augment.train_size": 32, "model": model}))
    network = changed({"model": model}).model
    check_train_size(network, (3, 64, 64), (32, 32))


def test_a_size_to_train_at_that_exceeds_the_weights_size_is_refused(workspace: Path, changed: Changed) -> None:
    photo(workspace / "data/raw")
    model = {**TORCHVISION, "weights": weights_file(workspace)}
    with pytest.raises(UserError, match=r"^augment.train_size = 256 is larger than data.image_size, 224; lower it$"):
        check.main(changed({"data.source": "folder", "augment.train_size": 256, "model": model}))


def test_group_duplicates_without_the_extra_is_refused_in_one_line(
    workspace: Path, changed: Changed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("refit.data.duplicates.find_spec", lambda _: None)
    with pytest.raises(UserError, match="need the extra audit; run: uv pip install cleanlab imagehash") as raised:
        check.main(changed({"data.group_duplicates": True}))
    assert "\n" not in str(raised.value)
    check.main(changed({"data.group_duplicates": False}))
