"""A head that is trained alone, on the features of pretrained layers: from the features to the tested model."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from refit.artifacts.checked import stage_params
from refit.artifacts.features import NONE, write_features
from refit.artifacts.files import read_numbers
from refit.artifacts.paths import FEATURES, HISTORY, MODEL, OUTCOMES, PREPARED
from refit.artifacts.prepared import read_info, read_split
from refit.inference.predictor import read_model
from refit.reports.summary import read_facts
from refit.runtime.errors import UserError
from refit.tracking.model_runs import accuracy_of_head_alone
from stages import features, find_lr, fit, predict, scale_batch, test
from tests.fixtures import Fit, Values, run_test

KEYS: dict[str, object] = {"model.network": "cnn", "model.width": 4, "tracking.loggers": [], "fit.train": "head"}
HEAD = {"network.1.11.weight", "network.1.11.bias"}

Probed = Callable[[Mapping[str, object]], dict[str, Tensor]]


@pytest.fixture
def pretrained(fitted: Fit) -> dict[str, Tensor]:
    """Weights of a network that was trained on the digits, in data/weights/cnn.safetensors."""
    weights = fitted(fit__max_epochs=2)
    Path("data/weights").mkdir()
    save_file(weights, "data/weights/cnn.safetensors")
    return weights


@pytest.fixture
def probed(pretrained: dict[str, Tensor], values: Values) -> Probed:
    """Run the stages from scale_batch to fit with these keys changed; returns the weights of the model."""

    def run(keys: Mapping[str, object]) -> dict[str, Tensor]:
        changed = values({**KEYS, "model.weights": "data/weights/cnn.safetensors", **keys})
        Path("params.yaml").write_text(yaml.safe_dump(changed))
        for name, stage in {"scale_batch": scale_batch, "find_lr": find_lr, "features": features, "fit": fit}.items():
            stage.main(stage_params(name))
        return load_file(MODEL / "model.safetensors")

    return run


def results() -> Any:
    return json.loads(Path("data/evaluation/test.json").read_text())


def test_only_the_head_is_trained_and_the_model_can_be_tested_and_predict(
    probed: Probed, pretrained: dict[str, Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    weights = probed({})
    assert {name for name in weights if not torch.equal(weights[name], pretrained[name])} == HEAD
    test.main(stage_params("test"))
    predict.main(stage_params("predict"))
    assert results()["accuracy"] > 0.85
    said = capsys.readouterr().out
    for line in ("no batch size: fit trains the head alone", "no learning rate: fit trains the head alone",
                 "16 features of 1,797 images", "L2 penalty 10  train_loss", "best L2 penalty "):  # fmt: skip
        assert line in said
    report = Path("data/evaluation/report.html").read_text()
    assert "the head alone is trained, on all images at once" in report


def test_auto_takes_the_penalty_with_the_best_validation_loss(probed: Probed) -> None:
    probed({})
    rows = read_numbers(HISTORY)
    assert [row["l2"] for row in rows] == pytest.approx([10 ** (1 - n / 2) for n in range(11)])
    best = min(rows, key=lambda row: row["val_loss"])
    chosen = json.loads(Path("data/evaluation/fit.json").read_text())
    assert (chosen["l2"], chosen["epoch"], chosen["epochs"]) == (best["l2"], best["epoch"], 11)
    losses = [row["train_loss"] for row in rows]
    assert losses == sorted(losses, reverse=True), "a weaker penalty fits the training images better"


@pytest.mark.parametrize("weighted", [False, True])
def test_the_head_is_the_logistic_regression_that_scikit_learn_finds(weighted: bool, probed: Probed) -> None:
    weight = 1.0 + 4 * (np.arange(len(read_split("train").labels)) % 3 == 0)
    weight = weight / weight.mean() if weighted else np.ones_like(weight)
    if weighted:
        np.save(PREPARED / "train_weights.npy", weight.astype(np.float32))
    weights = probed({"fit.l2": 0.003})
    x, y = np.load(FEATURES / "train.npy").astype(np.float64), read_split("train").labels
    scale = (x - x.mean(0)).std()
    rival = LogisticRegression(C=1 / (0.003 * len(y)), tol=1e-8, max_iter=10_000).fit(
        (x - x.mean(0)) / scale, y, weight
    )
    tested = np.load(FEATURES / "test.npy").astype(np.float64)
    ours = torch.from_numpy(tested) @ weights["network.1.11.weight"].double().T + weights["network.1.11.bias"]
    theirs = rival.predict_proba((tested - x.mean(0)) / scale)
    np.testing.assert_allclose(ours.softmax(1).numpy(), theirs, atol=2e-3)


def test_a_test_with_known_features_gives_the_answers_of_the_whole_network(probed: Probed) -> None:
    probed({})
    test.main(stage_params("test"))
    with_features = OUTCOMES.read_bytes()
    system, _ = read_model()
    write_features(NONE, {})
    test.main(stage_params("test"))
    assert OUTCOMES.read_bytes() == with_features
    answers = system(torch.from_numpy(read_split("test").images)).max(1).values
    np.testing.assert_allclose([row["probability"] for row in read_numbers(OUTCOMES)], answers.detach(), atol=1e-5)


def test_a_second_fit_has_the_same_bits_and_the_loss_section_changes_them(probed: Probed) -> None:
    first, second = probed({}), probed({})
    assert all(torch.equal(first[name], second[name]) for name in first)
    for keys in ({"loss.class_weights": "balanced"}, {"loss.label_smoothing": 0.1}):
        other = probed(keys)
        assert not torch.equal(other["network.1.11.weight"], first["network.1.11.weight"])


@pytest.mark.filterwarnings("ignore:.*LeafSpec")
@pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType")  # from a function in MLflow
def test_what_the_head_alone_reached_is_found_for_later_models_of_the_same_images(
    probed: Probed, fitted: Fit, empty_store: Path
) -> None:
    shutil.copy(empty_store, "mlflow.db")
    data = read_info().sha256
    assert accuracy_of_head_alone(data) is None
    for keys in ({"fit.l2": 10.0}, {}):
        probed({"tracking.loggers": ["mlflow"], **keys})
        run_test(report=False)
    accuracy = results()["accuracy"]
    fitted(tracking__loggers=["mlflow"], fit__max_epochs=1)
    run_test(report=False)
    assert accuracy_of_head_alone(data) == accuracy != results()["accuracy"]
    assert dict(fact[:2] for fact in read_facts())["last head alone"] == f"test accuracy {accuracy:.4f}"
    assert accuracy_of_head_alone("0" * 64) is None


def test_features_of_other_layers_are_not_used(probed: Probed, fitted: Fit) -> None:
    probed({})
    save_file(fitted(fit__max_epochs=1, seed=5), "data/weights/cnn.safetensors")
    params = yaml.safe_load(Path("params.yaml").read_text())
    params["fit"]["train"], params["model"]["weights"] = "head", "data/weights/cnn.safetensors"
    Path("params.yaml").write_text(yaml.safe_dump(params))
    find_lr.main(stage_params("find_lr"))
    with pytest.raises(UserError, match="data/features is of another network or of other images; run: dvc repro feat"):
        fit.main(stage_params("fit"))


def test_a_fit_of_all_layers_computes_no_features(values: Values, workspace: Path) -> None:
    Path("params.yaml").write_text(yaml.safe_dump(values({})))
    features.main(stage_params("features"))
    assert [file.name for file in FEATURES.iterdir()] == ["features.json"]


def test_a_network_that_does_not_end_with_one_linear_layer_is_refused(
    pretrained: dict[str, Tensor], probed: Probed, fitted: Fit
) -> None:
    save_file(fitted(model__network="resnet9", fit__max_epochs=1), "data/weights/resnet9.safetensors")
    with pytest.raises(UserError, match=r"fit\.train = head needs a network that ends with one linear layer"):
        probed({"model.network": "resnet9", "model.weights": "data/weights/resnet9.safetensors"})
