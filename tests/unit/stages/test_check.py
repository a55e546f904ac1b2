"""The stage `check`: the values that it refuses before any work."""

import urllib.request
from importlib.util import find_spec
from pathlib import Path

import pytest
from pytorch_lightning.accelerators import MPSAccelerator

from refit.params import check_params
from refit.runtime.errors import UserError
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
            "tests/unit/stages/elsewhere.py, which the stage find_lr uses, is in no folder that dvc.yaml watches",
        ),
        ("model.system", "torch.nn.Linear", "model.system = 'torch.nn.Linear' is not a LightningModule"),
        ("model.system", "mine.Own", "there is no package 'mine'"),
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
        ("predict.images", "data/newer", "predict.images = 'data/newer' is not a folder; create it"),
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
