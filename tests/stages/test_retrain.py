"""The scheduled flow in the real project: new photos arrive, and the promoted model is committed."""

import json
import re
import shutil
import sqlite3
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from pyarrow.parquet import read_table

from tests.fixtures.project import Project, make_photos, make_project
from tests.fixtures.s3 import Bucket, Downloads


def retrain(project: Project, prefect: Path) -> str:
    """Run the flow, with Prefect's records in the folder `prefect`; returns its log."""
    return project.run("python", "-m", "pipelines.retrain", PREFECT_HOME=str(prefect)).stderr


def artifacts(prefect: Path) -> dict[str, str]:
    with sqlite3.connect(prefect / "prefect.db") as database:
        found = database.execute("select key, data from artifact").fetchall()
    database.close()
    return {key: json.loads(data) for key, data in found}


def verdict(project: Project) -> Any:
    return json.loads((project.root / "data/promotion/verdict.json").read_text())


def splits(project: Project) -> dict[str, str]:
    manifest = read_table(project.root / "data/prepared/manifest.parquet", columns=["name", "split"]).to_pydict()
    return dict(zip(manifest["name"], manifest["split"], strict=True))


def test_new_photos_in_a_bucket_lead_to_a_model_that_replaces_the_champion_and_is_pushed(
    tmp_path: Path, bucket: Bucket, downloads: Downloads, prefect_home: Path
) -> None:
    """The bucket also stores what DVC pushes."""
    project, photos, prefect = make_project(tmp_path / "project"), tmp_path / "photos", tmp_path / "prefect"
    shutil.copytree(prefect_home, prefect)
    make_photos(photos / "old", 40, seed=0)
    bucket.upload(photos / "old", "photos")
    bucket.add_remote(project, "photos")
    bucket.add_remote(project, "store", "--default")
    project.run("dvc", "import-url", "remote://photos", "data/raw/photos")
    for key, value in {
        "data.source": "folder", "data.root": "data/raw/photos", "data.image_size": 32,
        "promote.margin": 0.9, "pipelines.publish": "push", "fit.max_epochs": 1,
    }.items():  # fmt: skip
        project.set_param(key, value)
    project.run("git", "init", "--quiet", "--bare", "--initial-branch", "main", str(tmp_path / "code"))
    project.run("git", "remote", "add", "origin", str(tmp_path / "code"))
    project.commit()
    project.run("git", "push", "--quiet", "--set-upstream", "origin", "main")
    project.run("dvc", "repro", "test")  # without the flow, which would take twice as long
    promoted = project.run("python", "-m", "refit.commands.promote").stdout
    assert "models:/refit/1 is now the champion: it is the first one" in " ".join(promoted.split())
    project.commit()
    first, before = verdict(project), splits(project)

    make_photos(photos / "new", 20, seed=1, prefix="new")
    bucket.upload(photos / "new", "photos")
    downloads.taken()
    said = retrain(project, prefect)
    assert sorted(name for name in downloads.taken() if name.startswith("photos/")) == sorted(
        f"photos/{label}/new{number}.jpg" for label in ("above", "left") for number in range(20)
    ), "the photos of yesterday are not downloaded again"
    ran = re.findall(r"Running stage '(\w+)'", said)
    assert {"prepare", "fit", "test"} <= set(ran)
    found, after = verdict(project), splits(project)
    since = artifacts(prefect)["refit-data"]
    assert re.search(r"^  added +40: only in B$", since, re.MULTILINE)
    assert "  above/new0.jpg (above, " in since
    assert "removed" not in since
    project.run("python", "-m", "pipelines.tools.data_diff", "HEAD~1")
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

    there = Project(tmp_path / "there")
    project.run("git", "clone", "--quiet", str(tmp_path / "code"), str(there.root))
    shutil.copy(project.root / ".dvc/config.local", there.root / ".dvc/config.local")  # the address and the keys
    there.run("dvc", "pull", "--quiet", "data/model", "data/raw/photos.dvc")
    weights = "data/model/model.safetensors"
    assert (there.root / weights).read_bytes() == (project.root / weights).read_bytes()
    assert len(list((there.root / "data/raw/photos").rglob("*.jpg"))) == 120
