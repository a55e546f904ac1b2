"""The arguments that a user's own class gets, and how its errors are reported."""

from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor

from refit.artifacts.prepared import read_info
from refit.params import Params
from refit.runtime.errors import UserError
from refit.systems import build
from refit.systems.build import build_system, check_model
from refit.systems.user_code import check_arguments, construct, user_class
from tests.fixtures import Changed

NOT_OURS = {"model.width": None, "model.dropout": None}  # only Refit's own networks have these keys


class Own(pl.LightningModule):
    def __init__(self, classes: int, margin: float, scale: float = 1.0) -> None:
        super().__init__()
        self.seen = (classes, margin, float(scale))


def test_a_class_gets_only_the_arguments_in_its_signature() -> None:
    made = construct(
        Own, {"classes": lambda: 10, "network": lambda: pytest.fail("not asked for")}, {"margin": 0.5}, "k"
    )
    assert made.seen == (10, 0.5, 1.0)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ({}, r"k lacks 'margin', which Own\(classes, margin, scale\) needs; Refit itself provides only classes"),
        ({"margin": 1, "scales": 2}, r"k\.scales: .* has no such argument; did you mean scale\?"),
        ({"margin": 1, "classes": 2}, r"k\.classes: Refit provides classes to .*; remove it"),
    ],
)
def test_arguments_that_do_not_fit_the_signature_are_named(arguments: dict[str, object], line: str) -> None:
    with pytest.raises(UserError, match=line):
        check_arguments(Own, {"classes"}, arguments, "k")


def test_a_module_with_a_syntax_error_is_named_with_the_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine_broken.py").write_text("import torch\nclass Net(\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"^model\.network = 'mine_broken\.Net': mine_broken\.py, line 2: .+$"):
        user_class("mine_broken.Net", "model.network")


def test_only_classes_are_suggested_for_a_wrong_class_name() -> None:
    with pytest.raises(UserError, match=r"has no class 'Linea'; did you mean Linear\?$"):
        user_class("torch.nn.Linea", "model.network")
    with pytest.raises(UserError, match=r"os has no class 'system'$"):
        user_class("os.system", "model.network")


def test_a_builtin_class_is_refused_as_a_system(changed: Changed) -> None:
    with pytest.raises(UserError, match=r"model\.system = 'builtins\.dict' is not a LightningModule"):
        check(changed({"model.system": "builtins.dict"}))


def test_an_error_in_a_user_s_class_states_its_arguments_or_inputs(changed: Changed, digits: Path) -> None:
    with pytest.raises(TypeError) as made:
        construct(Own, {"classes": lambda: 10}, {"margin": 1, "scale": None}, "model.system_arguments")
    assert "Own was called with classes from Refit and model.system_arguments = {'margin': 1" in made.value.__notes__[0]
    linear = {"in_features": 65, "out_features": 10}
    params = changed({"model.network": "torch.nn.Linear", "model.network_arguments": linear, **NOT_OURS})
    with pytest.raises(RuntimeError) as given:
        build_system(params.model, read_info(digits))
    assert given.value.__notes__ == ["model.network = 'torch.nn.Linear' was called with 2 images, float (2, 1, 8, 8)"]


def test_a_system_is_refused_as_a_network(changed: Changed) -> None:
    path = "pytorch_lightning.demos.boring_classes.BoringModel"
    with pytest.raises(UserError, match=f"model.network = '{path}' is a system, not a network; set model.system to it"):
        check(changed({"model.network": path, **NOT_OURS}))


class OwnNetwork(pl.LightningModule):
    """A system that builds its own network, and has neither the loss section nor flips as arguments."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.network = torch.nn.Linear(64, classes)

    def forward(self, images: Tensor) -> Tensor:
        probabilities: Tensor = self.network(images.flatten(1).float()).softmax(1)
        return probabilities


@pytest.mark.parametrize(
    ("key", "value", "argument"),
    [
        ("loss.label_smoothing", 0.1, "loss"),
        ("loss.class_weights", "balanced", "loss"),
        ("model.test_time_flip", True, "test_time_flip"),
        ("model.embedding", 32, "encoder"),
        ("model.network", "resnet9", "network or encoder"),
        ("model.weights", "data/weights/mine.safetensors", "network or encoder"),
    ],
)
def test_a_value_that_does_not_reach_a_user_s_system_is_refused(
    changed: Changed, monkeypatch: pytest.MonkeyPatch, key: str, value: object, argument: str
) -> None:
    monkeypatch.setattr(build, "user_class", lambda path, key: OwnNetwork)
    monkeypatch.setattr(build, "check_weights_can_be_had", lambda model: None)
    quick = {"model.system": "refit.systems.mine.OwnNetwork", "model.network": "cnn", "model.width": None,
             "model.dropout": None}  # fmt: skip
    check(changed(quick))
    with pytest.raises(UserError, match=rf"^{key} = \S+ has no effect with .*no argument {argument}; set {key} to its"):
        check(changed(quick | {key: value}))


def check(params: Params) -> None:
    check_model(params.model, params.loss)
