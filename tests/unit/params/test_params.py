"""params.yaml: each fault gives one line that names the key, before any work."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from dvc.utils.hydra import apply_overrides
from pydantic import ValidationError
from pydantic_core import PydanticUndefined

from refit.params import Params, TrainerParams, check_params, load_params
from refit.params.data import data_name
from refit.params.dotted import flatten, not_at_default, short_names
from refit.params.rules import CHOICES
from refit.runtime.errors import UserError
from tests.fixtures import Values

ROOT = Path(__file__).resolve().parents[3]

LAST_YEAR = Path(__file__).with_name("params_2026_11.yaml")  # as shipped in November 2026; it must always load

# Renaming or removing a key breaks users' params.yaml; a new key needs an entry in the CHANGELOG.
KEYS = [
    "seed",
    "data.source", "data.root", "data.image_size", "data.resize", "data.color", "data.val", "data.test",
    "data.bad_images", "data.storage", "data.shards", "data.group_duplicates",
    "augment.train_size", "augment.shift", "augment.flip", "augment.cutout", "augment.crop_area",
    "augment.color_jitter", "augment.policy", "augment.mixup", "augment.cutmix",
    "model.system", "model.system_arguments", "model.network", "model.network_arguments", "model.weights",
    "model.embedding", "model.width", "model.dropout", "model.test_time_flip",
    "batch.size", "batch.max_size", "batch.memory_budget",
    "optimizer.name", "optimizer.learning_rate", "optimizer.backbone_learning_rate", "optimizer.layer_decay",
    "optimizer.fallback_learning_rate", "optimizer.weight_decay", "optimizer.momentum", "optimizer.schedule",
    "optimizer.warm_up", "optimizer.plateau_factor", "optimizer.plateau_patience",
    "loss.label_smoothing", "loss.class_weights",
    "fit.train", "fit.l2", "fit.max_epochs", "fit.monitor", "fit.patience", "fit.gradient_clip_val",
    "fit.gradient_clip_algorithm", "fit.freeze_epochs", "fit.freeze_share", "fit.averaging", "fit.ema_decay",
    "fit.swa_start", "fit.save_state_every",
    "trainer.accelerator", "trainer.devices", "trainer.num_nodes", "trainer.strategy", "trainer.sync_batchnorm",
    "trainer.precision", "trainer.threads", "trainer.deterministic", "trainer.compile",
    "test.confidence", "test.calibration_bins", "test.worst_mistakes",
    "predict.images", "predict.top_k", "predict.abstain_below", "promote.min_accuracy", "promote.margin",
    "debug.fast_dev_run", "debug.overfit_batches", "debug.limit_train_batches", "debug.limit_val_batches",
    "debug.limit_test_batches", "debug.val_check_interval", "debug.profiler", "debug.detect_anomaly",
    "pipelines.stage_time_limit", "pipelines.stage_retries", "pipelines.publish",
    "tracking.loggers",
]  # fmt: skip


def fault(values: Any) -> str:
    """The one line of the only fault."""
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


@pytest.mark.parametrize("file", ["params.yaml", "docs/recipes/cifar10.yaml"])
@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("optimizer.weight_decay=0.125", "  weight_decay: 0.125"),
        ("model.weights=DEFAULT", "  weights: DEFAULT     # null: random"),
        ("fit.patience=3", "  patience: 3"),
        ("seed=7", "seed: 7"),
    ],
)
def test_dvc_changes_only_the_line_of_the_key(file: str, override: str, line: str, tmp_path: Path) -> None:
    shipped = (ROOT / file).read_text().splitlines()
    (tmp_path / "params.yaml").write_text("\n".join([*shipped, ""]))
    apply_overrides(tmp_path / "params.yaml", [override])
    written = (tmp_path / "params.yaml").read_text().splitlines()
    ((before, after),) = [pair for pair in zip(shipped, written, strict=True) if pair[0] != pair[1]]
    assert after.startswith(line)
    assert before.partition("#")[1:] == after.partition("#")[1:]


def test_the_shipped_params_yaml_has_every_key_with_its_default() -> None:
    shipped = yaml.safe_load((ROOT / "params.yaml").read_text())
    assert dotted(shipped) == KEYS
    assert check_params(shipped) == Params()
    assert shipped == Params().model_dump()


def test_every_key_has_a_valid_default_in_the_schema() -> None:
    assert check_params(Params().model_dump()) == Params()
    for name, section in Params.model_fields.items():
        assert section.default is not PydanticUndefined, name
    schema = Params.model_json_schema()
    fields = [field for section in schema["$defs"].values() for field in section["properties"].values()]
    assert all("default" in field for field in fields)
    assert not any({"gt", "ge", "lt", "le"} & field.keys() for field in fields), "editors do not support these bounds"


def test_a_params_yaml_of_last_year_still_means_the_same() -> None:
    assert load_params(LAST_YEAR) == Params()


@pytest.mark.parametrize("key", KEYS)
def test_a_missing_key_takes_its_default(key: str) -> None:
    values = yaml.safe_load((ROOT / "params.yaml").read_text())
    section, _, name = key.partition(".")
    del (values[section] if name else values)[name or section]
    assert check_params(values) == Params()


@pytest.mark.parametrize("section", ["data", "loss", "pipelines"])
def test_a_missing_or_empty_section_takes_its_defaults(section: str) -> None:
    values = yaml.safe_load(LAST_YEAR.read_text())
    assert check_params({**values, section: None}) == Params()  # `section:` with all its keys commented out
    del values[section]
    assert check_params(values) == Params()


def test_the_recipes_are_valid_and_have_every_key() -> None:
    recipes = sorted((ROOT / "docs/recipes").glob("*.yaml"))
    lite0 = "timm:tf_efficientnet_lite0"
    assert [load_params(path).model.network for path in recipes] == ["airbench", lite0, lite0]
    for path in recipes:  # `dvc exp run -S` sets a key only if the file has it
        assert dotted(yaml.safe_load(path.read_text())) == KEYS


def test_the_keys_are_frozen() -> None:
    assert dotted(Params().model_dump()) == KEYS


def test_every_key_has_a_description() -> None:
    schema = Params.model_json_schema()
    sections = {name: section["properties"] for name, section in schema["$defs"].items()}
    described = [key for properties in sections.values() for key, field in properties.items() if field["description"]]
    assert len(described) + len(["seed"]) == len(KEYS)
    assert schema["properties"]["seed"]["description"]


def test_the_committed_schema_matches_the_code() -> None:
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


def test_a_value_in_place_of_a_section_is_refused(values: Values) -> None:
    assert fault(values({"data": 3})) == "data = 3 must be a section of keys."


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
        ("fit.monitor", "loss", "any val_NAME that your own system logs"),
    ],
)
def test_a_value_out_of_bounds_names_its_key_and_the_rule(key: str, value: object, rule: str, values: Values) -> None:
    line = fault(values({key: value}))
    assert line.startswith(f"{key} = {value!r} must ")
    assert rule in line


def test_empty_model_weights_fail_with_the_three_possible_values(values: Values) -> None:
    assert fault(values({"model.weights": ""})) == (
        "model.weights: empty text is no weights; expected null (random weights), the name of torchvision's or timm's "
        "weights such as DEFAULT, or a file below data/weights/"
    )


def test_a_metric_that_refit_s_systems_do_not_log_cannot_be_monitored(values: Values) -> None:
    text = fault(values({"fit.monitor": "val_acc"}))
    assert text == (
        "fit.monitor = val_acc is not logged by model.system = classifier; did you mean val_accuracy?; "
        "expected val_loss or val_accuracy"
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
def test_a_boolean_is_not_accepted_as_a_number(key: str, value: bool, values: Values) -> None:
    """YAML reads `yes`, `on` and `no` as booleans."""
    assert fault(values({key: value})).startswith(f"{key} = {value} must be ")


def test_an_unknown_network_names_the_nearest_known_one(values: Values) -> None:
    line = fault(values({"model.network": "resnet8"}))
    assert "network 'resnet8' is unknown; did you mean resnet9?" in line


def test_some_images_must_be_left_for_training(values: Values) -> None:
    assert "val + test = 1 leaves no images for training; expected less than 1" in fault(
        values({"data.val": 0.5, "data.test": 0.5})
    )


NO_EFFECT: list[tuple[str, object, dict[str, object], str]] = [
    ("augment.mixup", 0.2, {"model.system": "autoencoder"}, "model.system to classifier"),
    ("augment.cutmix", 1.0, {"model.system": "autoencoder"}, "model.system to classifier"),
    ("loss.label_smoothing", 0.1, {"model.system": "autoencoder"}, "model.system to classifier"),
    ("loss.class_weights", "balanced", {"model.system": "autoencoder"}, "model.system to classifier"),
    ("model.test_time_flip", True, {"model.system": "autoencoder"}, "model.system to classifier"),
    ("model.embedding", 32, {}, "model.system to autoencoder"),
    ("model.system_arguments", {"margin": 1}, {}, "model.system to your own system"),
    ("model.network_arguments", {"depth": 1}, {}, "model.network to one of torchvision's or timm's, or your own"),
    ("model.width", 32, {"model.network": "torchvision:resnet18"}, "model.network to one of mlp, cnn, "),
    ("model.dropout", 0.5, {"model.network": "mine.Network"}, "model.network to one of mlp, cnn, "),
    ("optimizer.layer_decay", 0.7, {}, "model.network to a network of timm, timm:NAME"),
    ("optimizer.warm_up", 0.2, {"optimizer.schedule": "constant"}, "one_cycle, triangular or cosine_warm_up"),
    ("optimizer.plateau_factor", 0.5, {}, "optimizer.schedule to plateau"),
    ("optimizer.plateau_patience", 1, {}, "optimizer.schedule to plateau"),
    ("fit.gradient_clip_algorithm", "value", {"fit.gradient_clip_val": None}, "fit.gradient_clip_val to a number"),
    ("fit.ema_decay", 0.9, {}, "fit.averaging to ema"),
    ("fit.swa_start", 0.5, {"fit.averaging": "ema"}, "fit.averaging to swa"),
    ("fit.l2", 0.1, {}, "fit.train to head"),
]
OF_ALL_LAYERS: dict[str, object] = {
    "augment.train_size": 8, "augment.shift": 1, "augment.flip": True, "augment.cutout": 1, "augment.crop_area": 0.5,
    "augment.color_jitter": 0.1, "augment.policy": "randaugment", "augment.mixup": 0.1, "augment.cutmix": 0.1,
    "fit.averaging": "ema", "fit.freeze_share": 0.3, "trainer.compile": "default",
}  # fmt: skip
HEAD_ALONE: dict[str, object] = {"fit.train": "head", "model.weights": "data/weights/a.pth"}
NO_EFFECT += [(key, value, HEAD_ALONE, "fit.train to all") for key, value in OF_ALL_LAYERS.items()]


@pytest.mark.parametrize(("key", "value", "beside", "remedy"), NO_EFFECT)
def test_a_value_without_effect_fails_with_an_error_that_names_the_remedy(
    key: str, value: object, beside: dict[str, object], remedy: str
) -> None:
    keys: dict[str, object] = {**beside, key: value}
    values: dict[str, dict[str, object]] = {}
    for name, given in keys.items():
        section, _, last = name.partition(".")
        values.setdefault(section, {})[last] = given
    line = fault(values)
    assert line.startswith(f"{key} = ")
    assert " has no effect while " in line
    assert remedy in line
    section, _, last = key.partition(".")
    del values[section][last]
    check_params(values)  # valid without that key


def test_every_choice_without_effect_is_tested_and_has_keys_that_exist() -> None:
    assert [case[0] for case in NO_EFFECT] == [choice.key for choice in CHOICES]
    assert {name for choice in CHOICES for name in (choice.key, choice.other)} <= {*KEYS}


def test_each_value_without_effect_gets_its_own_line(values: Values) -> None:
    with pytest.raises(UserError) as raised:
        check_params(values({"fit.ema_decay": 0.5, "optimizer.plateau_factor": 0.5, "fit.monitor": "val_f1"}))
    assert len(str(raised.value).splitlines()) == 3


FROZEN = {"fit.freeze_share": 0.3, "model.weights": "data/weights/a.pth"}
FSDP = {
    "trainer.accelerator": "gpu", "trainer.devices": 2, "trainer.strategy": "fsdp", "fit.gradient_clip_val": None,
    "optimizer.weight_decay": 0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ({"trainer.strategy": "ddp"}, "strategy = 'ddp' has no effect with one device"),
        (
            {"trainer.accelerator": "gpu", "trainer.sync_batchnorm": True},
            "sync_batchnorm = true has no effect with one device",
        ),
        ({"trainer.devices": 2, "trainer.sync_batchnorm": True}, "sync_batchnorm = true needs CUDA devices"),
        ({"trainer.devices": 2, "trainer.strategy": "fsdp"}, "strategy = 'fsdp' needs CUDA devices"),
        ({"trainer.devices": 3}, "batch.size = auto is a power of two, which trainer.devices x num_nodes = 3"),
        (
            {"fit.freeze_epochs": 2},
            "fit.freeze_epochs = 2 of 2 epochs would leave all layers but the last at their random initial weights",
        ),
        ({"fit.freeze_share": 0.3}, "fit.freeze_share = 0.3 would leave the first layers at their random initial"),
        (
            {**FROZEN, "fit.train": "head"},
            "fit.freeze_share = 0.3 has no effect while fit.train is head",
        ),
        ({**FSDP, **FROZEN}, "fit.freeze_share = 0.3 does not work with trainer.strategy = fsdp"),
        (
            {**FROZEN, "trainer.sync_batchnorm": True, "trainer.devices": 2, "trainer.accelerator": "gpu"},
            "fit.freeze_share = 0.3 does not work with trainer.sync_batchnorm = true",
        ),
        ({"fit.train": "head"}, "fit.train = head would leave all layers but the last at their random initial weights"),
        ({"fit.train": "head", "model.system": "autoencoder"}, "fit.train = head does not work with model.system = "),
        (
            {"fit.train": "head", "model.weights": "data/weights/a.pth", "trainer.devices": 2},
            "fit.train = head does not work with several devices",
        ),
        ({"trainer.devices": 2, "fit.freeze_epochs": 1}, "fit.freeze_epochs = 1 does not work with several devices"),
        (
            {"trainer.devices": 2, "debug.overfit_batches": 1},
            "debug.overfit_batches = 1 does not work with several devices",
        ),
        ({**FSDP, "optimizer.name": "muon"}, "optimizer.name = muon does not work with"),
        ({**FSDP, "fit.averaging": "ema"}, "fit.averaging = ema does not work with"),
        ({"trainer.num_nodes": 2, "batch.size": 33}, "batch.size = 33 cannot be shared evenly by trainer.devices x"),
        (
            {**FSDP, "fit.gradient_clip_val": 1.0},
            "fit.gradient_clip_val = 1.0 does not work with trainer.strategy = fsdp",
        ),
        ({**FSDP, "optimizer.weight_decay": 0.1}, "optimizer.weight_decay = 0.1 does not work with"),
        ({**FSDP, "model.system": "autoencoder"}, "model.system = autoencoder does not work with"),
    ],
)
def test_devices_that_cannot_work_together_are_refused(keys: dict[str, object], line: str, values: Values) -> None:
    assert line in fault(values(keys))
    check_params(values({"trainer.devices": 2, "trainer.num_nodes": 2, "trainer.strategy": "ddp", "batch.size": 36}))
    check_params(values(FSDP))


@pytest.mark.parametrize("weights", [[1.0, 0.0], [1.0, -1.0], [1.0, "heavy"]], ids=str)
def test_a_class_weight_that_is_not_positive_is_refused_with_its_list(weights: list[object], values: Values) -> None:
    line = fault(values({"loss.class_weights": weights}))
    assert line.startswith(f"loss.class_weights = {weights} must be ")
    assert ("valid number" if weights[1] == "heavy" else "or greater than 0.") in line


def test_each_fault_gets_its_own_line(values: Values) -> None:
    with pytest.raises(UserError, match="max_epoch") as raised:
        check_params(values({"fit.max_epoch": 3, "data.val": 1.2, "seed": "none"}))
    assert len(str(raised.value).splitlines()) == 3


def test_a_duplicate_key_is_refused(values: Values, tmp_path: Path) -> None:
    path = write(tmp_path / "params.yaml", values({"seed": 0}), "seed: 1\n")
    line = len(path.read_text().splitlines())
    with pytest.raises(UserError, match=rf"'seed' is given twice \(line {line}\)$") as raised:
        load_params(path)
    assert str(path) in str(raised.value)


def test_a_number_such_as_1e_3_is_a_number(values: Values, tmp_path: Path) -> None:
    """YAML 1.1 reads it as a string."""
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
        pytest.param(b"seed: " + b"[" * 9_999 + b"]" * 9_999, id="deeply nested"),
        pytest.param(ALIASES + b"seed: *p", id="nested aliases"),
        b"seed: !!python/object/apply:os.getcwd []",
    ],
    ids=repr,
)
def test_an_unreadable_file_gives_a_one_line_error_that_names_it(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError) as raised:
        load_params(path)
    (line,) = str(raised.value).splitlines()
    assert line.startswith(str(path))


@pytest.mark.parametrize(("content", "found"), [("", "nothing"), ("- seed", "['seed']"), ("seed", "'seed'")])
def test_a_file_without_sections_gives_an_error_that_quotes_its_content(
    content: str, found: str, tmp_path: Path
) -> None:
    (tmp_path / "params.yaml").write_text(content)
    with pytest.raises(UserError, match=re.escape(f"expected sections of keys and values, found {found}")):
        load_params(tmp_path / "params.yaml")


def test_a_missing_file_gives_an_error_that_names_the_folder_to_run_in(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist; run from the root of the repository"):
        load_params(tmp_path / "params.yaml")


def test_a_stage_sees_only_the_sections_it_names(params: Params) -> None:
    seen = params.only("seed", "fit")
    assert (seen.seed, seen.fit) == (params.seed, params.fit)
    for hidden in set(Params.model_fields) - {"seed", "fit"}:
        with pytest.raises(AttributeError):
            getattr(seen, hidden)


def test_keys_that_a_stage_does_not_name_have_their_defaults() -> None:
    params = check_params({"seed": 3, "trainer": {"threads": 2, "deterministic": False}, "test": {"confidence": 0.9}})
    seen = params.only("trainer.threads", "test")
    assert seen.trainer == TrainerParams(threads=2)
    assert seen.test == params.test
    assert params.values("trainer.threads", "seed") == {"seed": 3, "trainer.threads": 2}
    assert params.values("test").keys() == {f"test.{name}" for name in type(params.test).model_fields}


def test_threads_auto_is_recorded_as_the_number_of_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """The recorded number then gives the same bits on every machine."""
    monkeypatch.setattr("refit.params.trainer.usable_cores", lambda: 6)
    params = check_params({"trainer": {"threads": "auto"}})
    assert params.values("trainer.threads") == {"trainer.threads": 6}
    with pytest.raises(UserError, match=r"trainer\.threads = 'many' must be auto, or an integer\."):
        check_params({"trainer": {"threads": "many"}})


def test_short_names_omit_the_section_if_the_key_is_unambiguous() -> None:
    names = short_names(flatten(Params().model_dump()))
    assert len(set(names.values())) == len(names)
    shown = ("optimizer.weight_decay", "model.width", "optimizer.name", "batch.size", "data.test")
    assert [names[key] for key in shown] == ["weight_decay", "width", "optimizer.name", "batch.size", "data.test"]
    assert short_names(["a.width", "b.width"]) == {"a.width": "a.width", "b.width": "b.width"}


def test_changed_values_are_listed_for_the_given_sections() -> None:
    params = check_params({"model": {"width": 8}, "loss": {"class_weights": [1.0, 2.0]}, "data": {"val": 0.1}})
    changed = {"model.width": 8, "loss.class_weights": [1.0, 2.0]}
    assert not_at_default(params.only("model", "loss", "fit")) == changed
    assert not_at_default(params) == {"data.val": 0.1, **changed}
    assert not_at_default(Params()) == {}


@pytest.mark.parametrize(
    ("source", "root", "name"),
    [
        ("digits", "data/raw", "digits"),
        ("torchvision:FashionMNIST", "data/raw", "FashionMNIST"),
        ("folder", "/some/where/clothing/", "clothing"),
        ("folder", "/", "folder"),
    ],
)
def test_data_are_named_after_their_folder_or_data_set(source: str, root: str, name: str) -> None:
    assert data_name(source, root) == name


def test_parameters_are_frozen(params: Params) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        params.fit.max_epochs = 100  # type: ignore[misc]
