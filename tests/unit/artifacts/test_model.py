"""The model artifact: reading it returns the same model, or fails with a one-line error."""

import contextlib
import hashlib
import json
import os
import pickle
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from safetensors.torch import load_file
from torch import nn

from refit.artifacts.model import Blueprint, ModelRecord, identity, read_fit_params, read_record, write_model
from refit.artifacts.prepared import DatasetInfo
from refit.inference.predictor import read_model
from refit.params import ModelParams
from refit.runtime.errors import UserError
from refit.runtime.fingerprint import own_code
from refit.systems.build import blueprint_of, build_system
from refit.systems.system import System
from tests.fixtures import model_params

INFO = DatasetInfo(
    format=1, source="digits", classes=["cat", "dog", "Größe"], color="rgb", shape=[3, 8, 8],
    counts={"train": 9, "val": 3, "test": 3}, mean=[0.1, 0.2, 0.3], std=[0.4, 0.5, 0.6], sha256="of the data",
)  # fmt: skip
IMAGES = torch.randint(0, 256, (6, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))

Write = Callable[..., System]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "model"


@pytest.fixture
def write(folder: Path) -> Write:
    """Write a model that has seen a few batches, so that batch norm's running statistics are not the initial ones."""

    def written(network: str = "mlp") -> System:
        ours = not network.startswith("torchvision:")
        params = model_params(
            network=network, width=8 if ours else None, dropout=0.5 if ours else None, test_time_flip=False
        )
        system = build_system(params, INFO).train()
        assert isinstance(system, System)
        for _ in range(3):
            system(IMAGES)
        store(system, params, folder)
        return system.eval()

    return written


def store(system: pl.LightningModule, params: ModelParams, folder: Path) -> ModelRecord:
    return write_model(
        system.state_dict(), blueprint_of(params, INFO), data_sha256=INFO.sha256, batch_size=16, params={"seed": 7},
        folder=folder,
    )  # fmt: skip


def change_json(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Also update the sha256, as anyone could."""
    values = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    change(values)
    with contextlib.suppress(KeyError):
        blueprint = {name: values[name] for name in Blueprint.model_fields if name in values}
        values["sha256"] = identity(blueprint, values["weights_sha256"])
    (folder / "model.json").write_text(json.dumps(values))


@pytest.mark.parametrize("network", ["mlp", "cnn", "resnet9", "airbench", "torchvision:resnet18"])
def test_a_model_read_back_gives_bitwise_identical_logits(network: str, write: Write, folder: Path) -> None:
    system = write(network)
    again = read_model(folder)[0].eval()
    with torch.inference_mode():
        assert torch.equal(again(IMAGES), system(IMAGES))


def test_a_double_precision_model_read_back_gives_bitwise_identical_logits(write: Write, folder: Path) -> None:
    """trainer.precision = 64-true trains such a model."""
    system = write().double()
    for weight in system.network.parameters():
        weight.data += 1e-12  # single precision cannot represent this difference
    store(system, model_params(network="mlp", width=8, dropout=0.5, test_time_flip=False), folder)
    again = read_model(folder)[0].eval()
    with torch.inference_mode():
        assert torch.equal(again(IMAGES), system(IMAGES))


class Tied(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(4, 4), nn.Linear(4, 4)
        self.other.weight = self.one.weight


def test_a_weight_that_two_layers_share_is_written_for_both(folder: Path) -> None:
    system = Tied()
    store(system, model_params(), folder)
    weights = load_file(folder / "model.safetensors")
    assert weights.keys() == system.state_dict().keys()
    assert torch.equal(weights["one.weight"], weights["other.weight"])


def test_the_record_contains_everything_needed_to_use_the_model(write: Write, folder: Path) -> None:
    write()
    record = read_record(folder)
    assert (record.format, record.task) == (3, "classification")
    assert record.classes == INFO.classes
    assert (record.color, record.shape) == (INFO.color, tuple(INFO.shape))
    assert (record.mean, record.std) == (INFO.mean, INFO.std)
    assert record.network_arguments == {"width": 8, "dropout": 0.5}
    assert record.batch_size == 16
    assert record.data_sha256 == INFO.sha256
    assert read_fit_params(folder) == {"seed": 7}


def test_the_record_contains_the_default_arguments_of_the_network(folder: Path) -> None:
    params = model_params(network="cnn", width=None, dropout=None)
    store(build_system(params, INFO), params, folder)
    assert read_record(folder).network_arguments == {"width": 32, "dropout": 0.1}


def test_the_sha256_changes_with_everything_that_affects_the_answers(folder: Path) -> None:
    params = model_params(network="mlp", width=8)
    system = build_system(params, INFO)
    names = {store(system, params, folder).sha256, store(system, params, folder).sha256}
    assert len(names) == 1
    names.add(store(system, params.model_copy(update={"test_time_flip": True}), folder).sha256)
    for weight in system.parameters():
        weight.data += 1
    names.add(store(system, params, folder).sha256)
    assert len(names) == 3


def test_an_edited_record_is_refused(write: Write, folder: Path) -> None:
    write()
    text = (folder / "model.json").read_text(encoding="utf-8")
    (folder / "model.json").write_text(text.replace('"test_time_flip": false', '"test_time_flip": true'))
    with pytest.raises(UserError, match=r"model\.json was changed: .*; run: dvc checkout"):
        read_record(folder)


OLD = Path(__file__).resolve().parents[2] / "fixtures/models"


@pytest.mark.parametrize("name", sorted(path.name for path in OLD.iterdir()))
def test_a_model_of_an_earlier_format_loads_and_gives_the_same_answers(name: str) -> None:
    system, record = read_model(OLD / name)
    recorded = dict(np.load(OLD / name / "answers.npz"))
    with torch.inference_mode():
        answers = system(torch.from_numpy(recorded.pop("images")))
    answers = {"probabilities": answers} if isinstance(answers, torch.Tensor) else answers
    assert answers.keys() == recorded.keys()
    for key, value in recorded.items():  # the last bits differ between processors
        np.testing.assert_allclose(answers[key].numpy(), value, rtol=1e-4, atol=1e-5)
    weights = (OLD / name / "model.safetensors").read_bytes()
    names = {
        3: "0f1008c10791fe698eb75a37533554f924feea2d9a2f70628d588945eaae36e3"
    }  # in formats 1 and 2 it is the weights' sha256, which MLflow has stored
    assert record.sha256 == names.get(record.written_as, hashlib.sha256(weights).hexdigest())
    assert record.classes == list("0123456789")


def test_a_format_2_record_without_later_keys_can_be_read(tmp_path: Path) -> None:
    values = json.loads((OLD / "format_2_classifier/model.json").read_text())
    for key in ("weights", "system_arguments", "network_arguments", "embedding"):
        del values["model"][key]
    del values["debug"]
    (tmp_path / "model.json").write_text(json.dumps(values))
    assert read_record(tmp_path) == read_record(OLD / "format_2_classifier")


def test_a_record_without_a_newer_key_keeps_its_sha256(write: Write, folder: Path) -> None:
    """A key with a default, such as `code` here, may be added later."""
    write()
    values = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    del values["code"]
    older = {name: values[name] for name in Blueprint.model_fields if name in values}
    values["sha256"] = identity(older, values["weights_sha256"])
    (folder / "model.json").write_text(json.dumps(values))
    assert read_record(folder).sha256 == values["sha256"]


def test_a_key_at_its_default_is_not_in_the_record_and_another_value_makes_another_model(
    write: Write, folder: Path
) -> None:
    """So models from before the key keep their names."""
    system, params = write(), model_params(network="mlp", width=8, dropout=0.5, test_time_flip=False)
    before = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    assert "resize" not in before
    assert read_record(folder).resize == "crop"
    padded = blueprint_of(params, replace(INFO, resize="pad"))
    after = write_model(system.state_dict(), padded, data_sha256=INFO.sha256, batch_size=16, params={}, folder=folder)
    assert after.sha256 != before["sha256"]
    assert read_record(folder) == after
    assert after.resize == "pad"


def test_editing_the_user_s_own_system_makes_another_model(tmp_path: Path) -> None:
    for number, file in enumerate(("first", "second")):
        (tmp_path / file).mkdir()
        (tmp_path / file / "mine.py").write_text(f"class Mine:\n    answer = {number}\n")
    first, second = (own_code(["mine.Mine"], tmp_path / file)["mine.Mine"] for file in ("first", "second"))
    assert first != second
    (tmp_path / "second/mine.py").write_text("class Mine:  # a comment\n    answer = 0\n")
    assert own_code(["mine.Mine", "cnn"], tmp_path / "second") == {"mine.Mine": first}


@pytest.mark.parametrize("values", [{"format": 2, "model": "x", "sha256": ""}, {"format": 1, "network": []}])
def test_a_damaged_record_of_an_earlier_format_gives_a_one_line_error(values: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "model.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=r"model\.json(:| is damaged)"):
        read_record(tmp_path)


def test_a_record_of_a_later_format_gives_an_error_that_says_so(write: Write, folder: Path) -> None:
    write()
    change_json(folder, lambda values: values.update(format=4))
    with pytest.raises(UserError, match=r"model\.json: format = 4 is unknown; .* reads formats 1 to 3: update Refit"):
        read_record(folder)


def test_the_same_model_is_written_to_the_same_bytes(write: Write, folder: Path) -> None:
    written = []
    for _ in range(2):
        torch.manual_seed(0)
        write("cnn")
        written.append([(folder / name).read_bytes() for name in ("model.safetensors", "model.json")])
    assert written[0] == written[1]


def test_a_model_consists_of_three_files(write: Write, folder: Path) -> None:
    write()
    write()
    names = sorted(path.name for path in folder.parent.rglob("*"))
    assert names == ["model", "model.json", "model.safetensors", "params.json"]


@pytest.mark.parametrize("name", ["model.json", "model.safetensors"])
def test_a_missing_file_is_named_in_the_error(name: str, write: Write, folder: Path) -> None:
    write()
    (folder / name).unlink()
    with pytest.raises(UserError, match=rf"{name} does not exist; run: dvc repro fit"):
        read_model(folder)


def test_one_changed_byte_of_the_weights_is_refused(write: Write, folder: Path) -> None:
    write()
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "model.safetensors").write_bytes(weights)
    with pytest.raises(UserError, match=r"is not the file that model\.json describes; run: dvc checkout") as raised:
        read_model(folder)
    assert len(str(raised.value).splitlines()) == 1


class Malice:
    """Creates a folder when it is unpickled."""

    def __init__(self, made: Path) -> None:
        self.made = made

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return os.mkdir, (self.made,)


@pytest.mark.parametrize("vouched_for", [False, True])
def test_a_pickle_in_place_of_the_weights_is_refused_and_never_run(
    vouched_for: bool, write: Write, folder: Path, tmp_path: Path
) -> None:
    write()
    pickled = pickle.dumps({"weight": Malice(tmp_path / "made")})
    (folder / "model.safetensors").write_bytes(pickled)
    if vouched_for:
        sha256 = hashlib.sha256(pickled).hexdigest()
        change_json(folder, lambda description: description.update(sha256=sha256))
    with pytest.raises(UserError, match=r"model\.safetensors"):
        read_model(folder)
    assert not (tmp_path / "made").exists()
    pickle.loads(pickled)  # noqa: S301, unpickling would have run it
    assert (tmp_path / "made").exists()


def tensors(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file. `length` replaces the true length of its header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


HEADERS = {
    "empty file": b"",
    "no tensor": tensors({}),
    "header larger than any memory": tensors({}, length=2**60),
    "array larger than the file": tensors({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}),
    "overlapping arrays": tensors(
        {name: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for name in "ab"}, bytes(4)
    ),
    "deeply nested": tensors(b'{"a": ' + b"[" * 99_999 + b"]" * 99_999 + b"}"),
}


@pytest.mark.parametrize("header", HEADERS)
def test_weights_with_a_malicious_header_give_a_one_line_error(header: str, write: Write, folder: Path) -> None:
    write()
    (folder / "model.safetensors").write_bytes(HEADERS[header])
    sha256 = hashlib.sha256(HEADERS[header]).hexdigest()
    change_json(folder, lambda values: values.update(weights_sha256=sha256))
    with pytest.raises(
        UserError, match=r"model\.safetensors (is not a safetensors file|contains no weights)"
    ) as raised:
        read_model(folder)
    assert len(str(raised.value).splitlines()) == 1


def test_a_deeply_nested_record_gives_a_one_line_error(write: Write, folder: Path) -> None:
    write()
    (folder / "model.json").write_bytes(b'{"format": ' + b"[" * 99_999 + b"]" * 99_999 + b"}")
    with pytest.raises(UserError, match=r"model\.json is not JSON: .*run: dvc repro fit") as raised:
        read_model(folder)
    assert len(str(raised.value).splitlines()) == 1


FAULTS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "no format": (lambda values: values.pop("format"), "model.json: format = None is unknown"),
    "an unknown key": (lambda values: values.update(extra=1), "model.json: extra: Extra inputs are not permitted"),
    "a missing key": (lambda values: values.pop("classes"), "model.json: classes: Field required"),
    "an unknown task": (lambda values: values.update(task="other"), "model.json: task: Input should be"),
    "an unknown system": (lambda values: values.update(system="other"), "model.system = 'other' is unknown"),
    "an unknown network": (lambda values: values.update(network="other"), "model.network = 'other' is unknown"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_an_invalid_record_gives_a_one_line_error(fault: str, write: Write, folder: Path) -> None:
    write()
    change, line = FAULTS[fault]
    change_json(folder, change)
    with pytest.raises(UserError, match=line) as raised:
        read_model(folder)
    assert len(str(raised.value).splitlines()) == 1


def test_a_truncated_record_gives_a_one_line_error(write: Write, folder: Path) -> None:
    write()
    content = (folder / "model.json").read_bytes()
    (folder / "model.json").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"model\.json is not JSON: .*run: dvc repro fit") as raised:
        read_model(folder)
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize("key", ["system", "network"])
def test_a_record_can_construct_only_systems_and_networks(key: str, write: Write, folder: Path, tmp_path: Path) -> None:
    """A model may come from anyone; `subprocess.Popen` would run the command in its arguments."""
    write()
    made = {key: "subprocess.Popen", f"{key}_arguments": {"args": ["touch", str(tmp_path / "made")]}}
    change_json(folder, lambda values: values.update(made))
    with pytest.raises(UserError, match=rf"model\.{key} = 'subprocess\.Popen' is not a "):
        read_model(folder)
    assert not (tmp_path / "made").exists()


def test_weights_of_another_network_are_refused(write: Write, folder: Path) -> None:
    write()
    change_json(folder, lambda values: values["network_arguments"].update(width=16))
    with pytest.raises(UserError, match=r"model\.safetensors does not fit the system in model\.json"):
        read_model(folder)
