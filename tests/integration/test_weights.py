"""A fit that starts from weights trained by Refit."""

import json
import shutil
from pathlib import Path

import torch

from refit.artifacts.model import read_fit_params
from refit.artifacts.paths import MODEL
from refit.inference.predictor import read_model
from refit.params import check_params
from refit.params.reads import READS
from stages import predict
from tests.fixtures import Fit, Values

FOLDER = Path("data/weights")


def test_a_fit_can_start_from_a_refit_model_and_its_result_does_not_need_that_file(
    prepared_workspace: Path, fitted: Fit, values: Values
) -> None:
    """First an autoencoder is trained, then a classifier that starts from its encoder and trains only the head."""
    FOLDER.mkdir()
    before = fitted(model__system="autoencoder", fit__max_epochs=1)
    shutil.copy(MODEL / "model.safetensors", FOLDER / "encoder.safetensors")
    after = fitted(model__weights="data/weights/encoder.safetensors", fit__freeze_epochs=1, fit__max_epochs=1)
    kept = {name for name in after if name.startswith("network.1.") and not name.startswith("network.1.11.")}
    assert len(kept) == 36
    assert all(torch.equal(after[name], before[name]) for name in kept)
    assert torch.equal(after["network.0.mean"], before["network.0.mean"])
    assert after["network.1.11.weight"].shape[0] == 10
    (FOLDER / "encoder.safetensors").unlink()
    system, _ = read_model()
    assert read_fit_params()["model"]["weights"] == "data/weights/encoder.safetensors"
    assert all(torch.equal(value, after[name]) for name, value in system.state_dict().items())
    params = check_params(values({"model.network": "cnn", "model.width": 4}))
    predict.main(params.only(*READS["predict"]))
    assert json.loads(Path("data/predictions/summary.json").read_text())["images"] > 0
