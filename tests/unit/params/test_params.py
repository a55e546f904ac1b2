"""params.yaml: what is wrong is one line that names the key, before any work."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from refit.params import Params, check_params, load_params
from refit.runtime.errors import UserError
from tests.fixtures import Values

ROOT = Path(__file__).resolve().parents[3]

# A key that is renamed or taken away breaks somebody's params.yaml; one that is added belongs into the CHANGELOG.
KEYS = [
    "seed",
    "data.source", "data.root", "data.image_size", "data.color", "data.val", "data.test", "data.bad_images",
    "augment.shift", "augment.flip", "augment.cutout", "augment.crop_area", "augment.color_jitter", "augment.policy",
    "augment.mixup", "augment.cutmix",
    "model.system", "model.system_arguments", "model.network", "model.network_arguments", "model.weights",
    "model.embedding", "model.width", "model.dropout", "model.test_time_flip",
    "batch.size", "batch.max_size", "batch.memory_budget",
    "optimizer.name", "optimizer.learning_rate", "optimizer.backbone_learning_rate",
    "optimizer.fallback_learning_rate", "optimizer.weight_decay", "optimizer.momentum", "optimizer.schedule",
    "optimizer.warm_up", "optimizer.plateau_factor", "optimizer.plateau_patience",
    "loss.label_smoothing", "loss.class_weights",
    "fit.max_epochs", "fit.monitor", "fit.patience", "fit.gradient_clip_val", "fit.gradient_clip_algorithm",
    "fit.freeze_epochs", "fit.averaging", "fit.ema_decay", "fit.swa_start", "fit.save_state_every",
    "trainer.accelerator", "trainer.devices", "trainer.num_nodes", "trainer.strategy", "trainer.sync_batchnorm",
    "trainer.precision", "trainer.threads", "trainer.deterministic", "trainer.compile",
    "test.confidence", "test.calibration_bins", "test.worst_mistakes",
    "predict.images", "predict.top_k", "predict.abstain_below", "promote.min_accuracy", "promote.margin",
    "debug.fast_dev_run", "debug.overfit_batches", "debug.limit_train_batches", "debug.limit_val_batches",
    "debug.limit_test_batches", "debug.val_check_interval", "debug.profiler", "debug.detect_anomaly",
    "tracking.loggers",
    "pipelines.stage_time_limit", "pipelines.stage_retries", "pipelines.publish",
]  # fmt: skip


def fault(values: Any) -> str:
    """The one line that tells of the one fault."""
    with pytest.raises(UserError) as raised:
        check_params(values)
    (line,) = str(raised.value).splitlines()
    assert line.startswith("params.yaml: ")
    return line.removeprefix("params.yaml: ")


def write(path: Path, values: dict[str, Any], text: str = "") -> Path:
    path.write_text(yaml.safe_dump(values) + text)
    return path


def dotted(values: dict[str, Any]) -> list[str]:
    return [
        f"{section}.{key}" if isinstance(keys, dict) else section
        for section, keys in values.items()
        for key in (keys if isinstance(keys, dict) else [section])
    ]


def test_the_project_s_own_params_yaml_is_right() -> None:
    load_params(ROOT / "params.yaml")


def test_the_recipes_are_right() -> None:
    recipes = list((ROOT / "docs/recipes").glob("*.yaml"))
    assert [load_params(path).model.network for path in recipes] == ["airbench"]


def test_the_keys_are_frozen() -> None:
    assert dotted(yaml.safe_load((ROOT / "params.yaml").read_text())) == KEYS
    assert dotted(load_params(ROOT / "params.yaml").model_dump()) == KEYS


def test_every_key_is_described() -> None:
    schema = Params.model_json_schema()
    sections = {name: section["properties"] for name, section in schema["$defs"].items()}
    described = [key for properties in sections.values() for key, field in properties.items() if field["description"]]
    assert len(described) + len(["seed"]) == len(KEYS)
    assert schema["properties"]["seed"]["description"]


def test_the_schema_that_editors_read_is_in_step_with_the_code() -> None:
    committed = json.loads((ROOT / "docs/params.schema.json").read_text())
    assert committed == Params.model_json_schema(), "run: make check-params"


@pytest.mark.parametrize(
    ("key", "line"),
    [
        ("fit.max_epoch", "fit.max_epoch is not a known key; did you mean fit.max_epochs?"),
        ("optimizer.lerning_rate", "optimizer.lerning_rate is not a known key; did you mean optimizer.learning_rate?"),
        ("optimiser", "optimiser is not a known key; did you mean optimizer?"),
        ("fit.xyzzy", "fit.xyzzy is not a known key"),
    ],
)
def test_an_unknown_key_names_the_nearest_known_one(key: str, line: str, values: Values) -> None:
    assert fault(values({key: 3})) == line


@pytest.mark.parametrize(("key", "misspelt"), [("fit.max_epochs", "fit.max_epoch"), ("optimizer", "optimiser")])
def test_a_misspelt_key_is_one_fault_and_not_a_missing_one_too(key: str, misspelt: str, values: Values) -> None:
    changed = values({misspelt: 3})
    section, _, name = key.rpartition(".")
    del (changed[section] if section else changed)[name]
    assert fault(changed) == f"{misspelt} is not a known key; did you mean {key}?"


@pytest.mark.parametrize("key", KEYS)
def test_each_key_must_be_there(key: str, values: Values) -> None:
    without = values({})
    section, _, name = key.partition(".")
    del (without[section] if name else without)[name or section]
    assert fault(without).startswith(f"{key} is missing; expected: ")


def test_a_value_in_place_of_a_section_is_told(values: Values) -> None:
    assert fault(values({"data": None})) == "data = None: expected a section of keys."


@pytest.mark.parametrize(
    ("key", "value", "rule"),
    [
        ("optimizer.learning_rate", -0.1, "greater than 0"),
        ("optimizer.learning_rate", "fast", "'auto' or a valid number"),
        ("optimizer.learning_rate", float("inf"), "finite"),
        ("optimizer.learning_rate", float("nan"), "finite"),
        ("optimizer.weight_decay", -1, "greater than or equal to 0"),
        ("data.val", 1.2, "less than 1"),
        ("data.bad_images", "ignore", "'fail' or 'skip'"),
        ("data.image_size", 0, "greater than or equal to 4"),
        ("batch.size", 0, "greater than or equal to 2"),
        ("batch.size", "64", "'auto' or a valid integer"),
        ("fit.max_epochs", 2.5, "valid integer"),
        ("seed", -1, "greater than or equal to 0"),
        ("augment.flip", 1, "valid boolean"),
        ("augment.mixup", -0.2, "greater than or equal to 0"),
        ("augment.color_jitter", 1.0, "less than 1"),
        ("augment.policy", "autoaugment", "'none', 'randaugment' or 'trivialaugment'"),
        ("loss.class_weights", "even", "'none' or 'balanced' or a valid list"),
        ("optimizer.plateau_factor", 1.0, "less than 1"),
        ("fit.monitor", "loss", "your own system logs as val_NAME"),
    ],
)
def test_a_value_out_of_bounds_names_its_key_and_the_rule(key: str, value: object, rule: str, values: Values) -> None:
    line = fault(values({key: value}))
    assert line.startswith(f"{key} = {value!r}: expected")
    assert rule in line


def test_what_our_own_systems_do_not_log_cannot_be_monitored(values: Values) -> None:
    text = fault(values({"fit.monitor": "val_acc"}))
    assert text == (
        "fit.monitor = 'val_acc' is not what model.system = 'classifier' logs; did you mean val_accuracy?; "
        "expected one of val_loss, val_accuracy"
    )
    check_params(values({"fit.monitor": "val_acc", "model.system": "mine.Own", "model.network": "mlp"}))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("optimizer.learning_rate", True),
        ("optimizer.momentum", False),
        ("data.val", False),
        ("fit.gradient_clip_val", True),
        ("fit.max_epochs", True),
        ("augment.shift", False),
    ],
)
def test_a_switch_is_not_a_number(key: str, value: bool, values: Values) -> None:
    """YAML reads `yes`, `on` and `no` as true and false."""
    assert fault(values({key: value})).startswith(f"{key} = {value}: expected")


def test_an_unknown_network_names_the_nearest_known_one(values: Values) -> None:
    line = fault(values({"model.network": "resnet8"}))
    assert "network 'resnet8' is unknown; did you mean resnet9?" in line


def test_something_must_be_left_to_train(values: Values) -> None:
    assert "val + test = 1; expected less than 1" in fault(values({"data.val": 0.5, "data.test": 0.5}))


@pytest.mark.parametrize("key", ["model.width", "model.dropout"])
def test_a_choice_without_effect_is_refused(key: str, values: Values) -> None:
    alone = {"model.network": "torchvision:resnet18", "model.width": None, "model.dropout": None}
    check_params(values(alone))
    value = 32 if key == "model.width" else 0.5
    assert "width and dropout have no effect with torchvision:resnet18" in fault(values({**alone, key: value}))


FSDP = {
    "trainer.accelerator": "gpu", "trainer.devices": 2, "trainer.strategy": "fsdp", "fit.gradient_clip_val": None,
    "optimizer.weight_decay": 0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ({"trainer.strategy": "ddp"}, "strategy ddp has no effect with one device"),
        (
            {"trainer.accelerator": "gpu", "trainer.sync_batchnorm": True},
            "sync_batchnorm has no effect with one device",
        ),
        ({"trainer.devices": 2, "trainer.sync_batchnorm": True}, "sync_batchnorm: true is for CUDA devices"),
        ({"trainer.devices": 2, "trainer.strategy": "fsdp"}, "strategy fsdp is for CUDA devices"),
        ({"trainer.devices": 3}, "batch.size auto is a power of two, which trainer.devices x num_nodes = 3 cannot"),
        (
            {"fit.freeze_epochs": 2},
            "fit.freeze_epochs = 2 of 2 epochs leaves all layers but the last as random as they",
        ),
        ({"trainer.devices": 2, "fit.freeze_epochs": 1}, "fit.freeze_epochs = 1 does not work with several devices"),
        (
            {"trainer.devices": 2, "debug.overfit_batches": 1},
            "debug.overfit_batches does not work with several devices",
        ),
        ({**FSDP, "optimizer.name": "muon"}, "optimizer.name = muon does not work with"),
        ({**FSDP, "fit.averaging": "ema"}, "fit.averaging = ema does not work with"),
        ({"trainer.num_nodes": 2, "batch.size": 33}, "batch.size = 33 cannot be shared evenly by trainer.devices x"),
        (
            {**FSDP, "fit.gradient_clip_val": 1.0},
            "fit.gradient_clip_val = 1.0 does not work with trainer.strategy fsdp",
        ),
        ({**FSDP, "optimizer.weight_decay": 0.1}, "optimizer.weight_decay = 0.1 does not work with"),
        ({**FSDP, "model.system": "autoencoder"}, "model.system = autoencoder does not work with"),
    ],
)
def test_devices_that_cannot_work_together_are_refused(keys: dict[str, object], line: str, values: Values) -> None:
    assert line in fault(values(keys))
    check_params(values({"trainer.devices": 2, "trainer.num_nodes": 2, "trainer.strategy": "ddp", "batch.size": 36}))
    check_params(values(FSDP))


def test_clipping_by_value_needs_a_value(values: Values) -> None:
    assert "gradient_clip_algorithm = 'value' has no effect while gradient_clip_val is null" in fault(
        values({"fit.gradient_clip_algorithm": "value", "fit.gradient_clip_val": None})
    )


@pytest.mark.parametrize("weights", [[1.0, 0.0], [1.0, -1.0], [1.0, "heavy"]], ids=str)
def test_a_class_weight_that_is_no_positive_number_is_refused_with_its_list(
    weights: list[object], values: Values
) -> None:
    line = fault(values({"loss.class_weights": weights}))
    assert line.startswith(f"loss.class_weights = {weights}: expected")
    assert ("valid number" if weights[1] == "heavy" else "or greater than 0.") in line


def test_each_fault_has_a_line_of_its_own(values: Values) -> None:
    with pytest.raises(UserError, match="max_epoch") as raised:
        check_params(values({"fit.max_epoch": 3, "data.val": 1.2, "seed": "none"}))
    assert len(str(raised.value).splitlines()) == 3


def test_a_key_that_stands_twice_is_refused(values: Values, tmp_path: Path) -> None:
    path = write(tmp_path / "params.yaml", values({}), "seed: 1\n")
    line = len(path.read_text().splitlines())
    with pytest.raises(UserError, match=rf"'seed' stands twice \(line {line}\)$") as raised:
        load_params(path)
    assert str(path) in str(raised.value)


def test_a_number_such_as_1e_3_is_a_number(values: Values, tmp_path: Path) -> None:
    """YAML 1.1 reads it as text."""
    path = write(tmp_path / "params.yaml", values({"optimizer.learning_rate": "LR"}))
    path.write_text(path.read_text().replace("LR", "1e-3"))
    assert yaml.safe_load(path.read_text())["optimizer"]["learning_rate"] == "1e-3"
    assert load_params(path).optimizer.learning_rate == 0.001


ALIASES = b"a: &a [1]\n" + b"".join(b"%c: &%c [*%c, *%c]\n" % (c, c, c - 1, c - 1) for c in b"bcdefghijklmnop")


@pytest.mark.parametrize(
    "content",
    [
        b"seed: [1",
        b"seed: \x01",
        b"",
        b"- seed",
        "seed: 1  # größe".encode("latin-1"),
        pytest.param(b"seed: " + b"[" * 9_999 + b"]" * 9_999, id="nested deep"),
        pytest.param(ALIASES + b"seed: *p", id="aliases of aliases"),
        b"seed: !!python/object/apply:os.getcwd []",
    ],
    ids=repr,
)
def test_a_file_that_cannot_be_read_is_one_line_that_names_it(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError) as raised:
        load_params(path)
    (line,) = str(raised.value).splitlines()
    assert line.startswith(str(path))


@pytest.mark.parametrize(("content", "found"), [("", "nothing"), ("- seed", "['seed']"), ("seed", "'seed'")])
def test_a_file_without_sections_tells_what_it_holds(content: str, found: str, tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text(content)
    with pytest.raises(UserError, match=re.escape(f"expected sections of keys and values, found {found}")):
        load_params(tmp_path / "params.yaml")


def test_a_missing_file_says_where_to_stand(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist; run from the repository's root"):
        load_params(tmp_path / "params.yaml")


def test_a_stage_sees_only_the_sections_it_names(params: Params) -> None:
    seen = params.only("seed", "fit")
    assert (seen.seed, seen.fit) == (params.seed, params.fit)
    for hidden in set(Params.model_fields) - {"seed", "fit"}:
        with pytest.raises(AttributeError):
            getattr(seen, hidden)


def test_parameters_cannot_be_changed_on_the_way(params: Params) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        params.fit.max_epochs = 100  # type: ignore[misc]
