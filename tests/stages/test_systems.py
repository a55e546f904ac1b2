"""Systems other than the classifier, run through the same stages."""

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from tests.fixtures.project import ROOT, Project


def set_model(project: Project, **keys: object) -> None:
    """Change the model section, shorten the fit and do without MLflow, which takes seconds."""
    path = project.root / "params.yaml"
    values = yaml.safe_load(path.read_text())
    values["model"] |= keys
    values["fit"]["max_epochs"] = 8
    values["tracking"]["loggers"] = []
    path.write_text(yaml.safe_dump(values, sort_keys=False))


def read(project: Project, name: str) -> Any:
    return json.loads((project.root / "data" / name).read_text())


def rows(project: Project, name: str) -> list[dict[str, str]]:
    with (project.root / "data" / name).open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def restored(project: Project) -> Any:
    yield project
    project.restore()


def test_the_autoencoder_runs_through_all_stages_with_identical_outputs_each_time(restored: Project) -> None:
    project = restored
    set_model(project, system="autoencoder", embedding=16)
    project.run("dvc", "repro")
    test = read(project, "evaluation/test.json")
    assert test["accuracy"] > 0.9  # by the votes of the nearest neighbours: training uses no labels
    assert test["reconstruction_error"] < 0.3  # the mean image would have 1
    outcomes = rows(project, "evaluation/outcomes.csv")
    mean = np.mean([float(row["reconstruction_error"]) for row in outcomes])
    assert mean == pytest.approx(test["reconstruction_error"], abs=1e-5)
    embedding = np.load(project.root / "data/predictions/embedding.npy")
    assert embedding.shape == (len(rows(project, "predictions/predictions.csv")), 16)
    pictures = {path.name for path in (project.root / "data/evaluation/pictures").iterdir()}
    assert {"embedding_map.png", "reconstructions.png"} <= pictures
    assert "reconstructions" in (project.root / "data/evaluation/report.html").read_text()

    first = project.outputs()
    project.run("dvc", "repro", "--force", "--downstream", "scale_batch")
    assert project.outputs() == first


def test_the_example_system_of_the_docs_runs_and_becomes_stale_when_edited(restored: Project) -> None:
    project = restored
    page = (ROOT / "docs/systems.md").read_text()
    code, params = (re.search(rf"```{kind}\n(.*?)```", page, re.DOTALL) for kind in ("python", "yaml"))
    assert code
    assert params
    file: Path = project.root / "refit/systems/one_vs_rest.py"
    file.write_text(code[1])
    not_in_use = file.with_name("not_in_use.py")
    not_in_use.write_text(code[1])
    set_model(project, width=None, dropout=None, **yaml.safe_load(params[1])["model"])
    project.run("dvc", "repro")
    test = read(project, "evaluation/test.json")
    assert test["accuracy"] > 0.8
    assert test["one_vs_rest_loss"] > 0
    model = read(project, "model/model.json")
    assert (model["system_arguments"], model["network_arguments"]) == ({"positive_weight": 3.0}, {"channels": 32})
    history = rows(project, "evaluation/history.csv")
    assert float(history[-1]["train_loss"]) < float(history[0]["train_loss"])
    assert 0 < float(rows(project, "predictions/predictions.csv")[0]["shown"]) < 10

    assert project.stale() == []
    file.write_text(code[1] + "\n# a comment\n")
    not_in_use.write_text(code[1].replace("channels=16", "channels=17"))
    assert project.stale() == ["check"]
    file.write_text(code[1].replace("channels=16", "channels=17"))
    assert "fit: refit/systems/one_vs_rest.py changed\n" in project.run("dvc", "repro", "check").stdout
    assert project.stale() == ["scale_batch", "find_lr", "features", "fit", "test", "predict"]
    file.unlink()
    not_in_use.unlink()


def test_a_monitor_that_the_system_does_not_log_is_refused_and_the_logged_ones_are_listed(restored: Project) -> None:
    project = restored
    set_model(project, system="autoencoder")
    project.set_param("fit.monitor", "val_accuracy")
    failed = project.run("dvc", "repro", ok=False)
    assert failed.returncode != 0
    line = "fit.monitor = val_accuracy is not logged by model.system = autoencoder; expected val_loss"
    assert line in failed.stderr
