"""`test`, `predict`, `promote`, MLflow's model, `refit.predict` and the README's code give the same answers."""

import csv
import json
import re
from pathlib import Path
from typing import Any

import mlflow.pytorch
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

import refit.predict
from refit.artifacts.checked import stage_params
from refit.artifacts.paths import MODEL
from refit.artifacts.prepared import read_split
from refit.commands.promote import predictions_of
from refit.inference.predictor import Predictor, read_model
from refit.params import load_params
from refit.tracking.model_runs import find_run
from refit.tracking.registry import Version
from stages import predict
from tests.fixtures import Fit, run_test

README = Path(__file__).resolve().parents[2] / "README.md"
NEW = Path("data/new")

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType"),
]


def rows(path: str) -> list[dict[str, str]]:
    with Path(path).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def run_predict() -> list[dict[str, str]]:
    predict.main(stage_params("predict"))
    return rows("data/predictions/predictions.csv")


def readme_snippet(photo: Path) -> None:
    """Run the README's snippet with `photo`."""
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL) if "photo" in block]
    exec(code.replace("photo.jpg", str(photo)), {})


@pytest.mark.parametrize(
    "keys",
    [
        {"model__test_time_flip": True},
        {"model__system": "autoencoder", "model__embedding": 8},
    ],
    ids=["classifier with flips", "autoencoder"],
)
def test_every_way_to_predict_gives_the_same_answers(
    keys: dict[str, Any], fitted_in_mlflow: Fit, capsys: pytest.CaptureFixture[str]
) -> None:
    fitted_in_mlflow(fit__max_epochs=2, predict__top_k=10, **keys)
    run_test(report=False)
    system, model = read_model()
    images = read_split("test").images[:20]

    def named(answers: Any) -> dict[str, NDArray[np.float32]]:
        answers = answers if isinstance(answers, dict) else {"probabilities": answers}
        return {name: value.numpy() for name, value in answers.items()}

    with torch.inference_mode():
        ours = named(system(torch.from_numpy(images)))
    predicted = [model.classes[best] for best in ours["probabilities"].argmax(axis=1)]
    probability = ours["probabilities"].max(axis=1)

    run = find_run(model.sha256)
    assert run is not None
    outputs = mlflow.get_run(run.run_id).outputs
    assert outputs is not None
    (logged,) = outputs.model_outputs
    with torch.inference_mode():
        of_mlflow = named(mlflow.pytorch.load_model(f"models:/{logged.model_id}")(torch.from_numpy(images)))
    assert of_mlflow.keys() == ours.keys()
    for name, values in ours.items():
        np.testing.assert_array_equal(of_mlflow[name], values)

    outcomes = rows("data/evaluation/outcomes.csv")
    predictions = run_predict()
    champion = Version("refit", "1", model.sha256, run.run_id, was_champion=True)
    record, of_promote, _ = predictions_of(Path("data/model"), champion, load_params())
    assert record == model
    assert [row["predicted"] for row in outcomes] == [row["label"] for row in predictions] == of_promote
    assert of_promote[:20] == predicted
    for told in (outcomes, predictions):  # tables have six decimals, and other batch sizes change the last bits
        np.testing.assert_allclose([float(row["probability"]) for row in told[:20]], probability, atol=1.5e-6)
    for name in ours.keys() - {"probabilities", "embedding"}:
        np.testing.assert_allclose([float(row[name]) for row in predictions[:20]], ours[name], rtol=1e-4)
    if "embedding" in ours:
        np.testing.assert_allclose(np.load("data/predictions/embedding.npy")[:20], ours["embedding"], atol=1e-5)

    for number, image in enumerate(images):
        Image.fromarray(image[0]).save(NEW / f"{number:02}.png")
    of_files = run_predict()
    assert [row["label"] for row in of_files] == predicted
    summary = json.loads(Path("data/predictions/summary.json").read_text())
    assert summary["model_sha256"] == model.sha256

    from_python = Predictor.load("data/model").predict(NEW)
    assert [prediction.label for prediction in from_python] == predicted
    for prediction, row in zip(from_python, ours["probabilities"], strict=True):
        given = [prediction.probabilities[name] for name in model.classes]
        np.testing.assert_allclose(given, row, atol=1e-6)
    for name in ours.keys() - {"probabilities", "embedding"}:
        given = [prediction.more[name] for prediction in from_python]
        np.testing.assert_allclose(given, ours[name], rtol=1e-4)
    capsys.readouterr()
    refit.predict.main([NEW], MODEL, as_csv=True)
    of_command = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert [(row["file"], row["label"]) for row in of_command] == [
        (f"{NEW}/{row['file']}", row["label"]) for row in of_files
    ]
    for told in (of_command, of_files):
        np.testing.assert_allclose([float(row["probability"]) for row in told], probability, atol=1.5e-6)
    readme_snippet(NEW / "00.png")
    label, told_probability, file = capsys.readouterr().out.split()
    assert (label, file) == (predicted[0], str(NEW / "00.png"))
    assert float(told_probability) == pytest.approx(probability[0], abs=1e-6)
