"""The scheduled flow in the real project: new photos arrive, and the promoted model is committed."""

import json
import re
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from pyarrow.parquet import read_table

from tests.fixtures.project import Project, make_photos, make_project


def retrain(project: Project) -> str:
    return project.run("python", "-m", "pipelines.retrain").stderr  # Prefect logs to stderr


def verdict(project: Project) -> Any:
    return json.loads((project.root / "data/promotion/verdict.json").read_text())


def splits(project: Project) -> dict[str, str]:
    manifest = read_table(project.root / "data/prepared/manifest.parquet", columns=["name", "split"]).to_pydict()
    return dict(zip(manifest["name"], manifest["split"], strict=True))


def test_new_photos_lead_to_a_model_that_replaces_the_champion(tmp_path: Path) -> None:
    project, bucket = make_project(tmp_path / "project"), tmp_path / "bucket"
    make_photos(bucket, 40, seed=0)
    project.run("dvc", "import-url", str(bucket), "data/raw/photos")
    for key, value in {
        "data.source": "folder", "data.root": "data/raw/photos", "data.image_size": 32,
        "promote.margin": 0.9, "pipelines.publish": "commit", "fit.max_epochs": 1,
    }.items():  # fmt: skip
        project.set_param(key, value)
    project.commit()
    project.run("dvc", "repro", "test")  # without the flow, which would take twice as long
    promoted = project.run("python", "-m", "refit.commands.promote").stdout
    assert "models:/refit/1 is now the champion: it is the first one" in " ".join(promoted.split())
    project.commit()
    first, before = verdict(project), splits(project)

    make_photos(bucket, 20, seed=1, prefix="new")
    said = retrain(project)
    ran = re.findall(r"Running stage '(\w+)'", said)
    assert {"prepare", "fit", "test"} <= set(ran)
    found, after = verdict(project), splits(project)
    since = project.run("python", "-m", "pipelines.tools.data_diff", "HEAD~1").stdout
    assert re.search(r"^  added +40: only in B$", since, re.MULTILINE)
    assert "  above/new0.jpg (above, " in since
    assert "removed" not in since
    assert (project.root / "data/data_diff.html").read_text().count("<li>") >= 40
    assert found["outcome"] == "promoted"
    assert found["champion"]["sha256"] == first["model_sha256"] != found["model_sha256"]
    tests = [name for name, split in after.items() if split == "test"]
    assert found["comparison"]["images"] == sum(before.get(name) not in ("train", "val") for name in tests)
    assert found["seen"] == sum(before.get(name) == "val" for name in tests), "validation images only"
    client = MlflowClient(f"sqlite:///{project.root}/mlflow.db")
    assert client.get_model_version_by_alias("refit", "champion").tags["model_sha256"] == found["model_sha256"]

    committed = project.run("git", "log", "-1", "--format=%s", "--name-only").stdout.split("\n")
    assert [line for line in committed if line] == [
        f"Model {found['model_sha256'][:12]}", "data/raw/photos.dvc", "dvc.lock",
    ]  # fmt: skip
    assert project.run("git", "status", "--porcelain").stdout == ""
