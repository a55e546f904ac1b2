"""`make photos` runs a recipe on a folder of photos, with weights from a file."""

import json
import re
import shutil
from pathlib import Path

import pytest
import timm
from safetensors.torch import save_file

from pipelines.tools.recipe import command_for, source_of
from tests.fixtures.project import Project, make_photos


def test_the_recipe_trains_a_head_on_photos_and_prints_the_command_that_it_is(project: Project) -> None:
    photos = project.root / "data/raw/photos"
    make_photos(photos, 16, seed=1)
    weights = project.root / "data/weights/lite0.safetensors"
    save_file(timm.create_model("tf_efficientnet_lite0").state_dict(), weights)
    project.set_param("optimizer.weight_decay", 0.1)
    project.set_param("tracking.loggers", "[]")  # MLflow takes seconds; a recipe leaves this choice as it is
    try:
        said = project.run(
            "python", "-m", "pipelines.tools.recipe", "photos", "data/raw/photos/", "data/weights/lite0.safetensors"
        ).stdout
        first = said.splitlines()[0]
        assert first.startswith("dvc exp run -S data.source=folder -S data.root=data/raw/photos ")
        for setting in ("fit.train=head", "model.weights=data/weights/lite0.safetensors",
                        "optimizer.weight_decay=0.05"):  # fmt: skip
            assert f" -S {setting}" in first
        assert "data.val" not in first, "it is at the recipe's value already"
        assert "1,280 features of 32 images" in said
        assert json.loads((project.root / "data/model/model.json").read_text())["shape"] == [3, 224, 224]
        assert json.loads((project.root / "data/evaluation/fit.json").read_text())["l2"] > 0
        compared = project.run("python", "-m", "pipelines.tools.compare").stdout
        (row,) = [line for line in compared.splitlines() if line.strip().startswith("workspace")]
        assert len(re.findall(r"\d\.\d+", row)) >= 3, compared  # it was measured with the resolved image size
    finally:
        weights.unlink()  # git ignores these, so they would stay
        shutil.rmtree(photos)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("photos", ""), "DATA is missing: the folder of your images, as in: make photos DATA=data/raw/photos"),
        (("photos", "data/none"), "DATA = 'data/none' is not a folder, an archive or a table; put your images into"),
        (("photo", "data/raw"), "docs/recipes/photo.yaml does not exist; the recipes are cifar10, photos, photos-fine"),
    ],
)
def test_a_recipe_that_cannot_run_fails_with_a_one_line_error(
    arguments: tuple[str, ...], line: str, project: Project
) -> None:
    failed = project.run("python", "-m", "pipelines.tools.recipe", *arguments, ok=False)
    assert failed.returncode == 2
    assert failed.stderr.startswith(f"error: {line}")
    assert len(failed.stderr.splitlines()) == 1


def test_only_values_that_differ_are_set() -> None:
    wanted: dict[str, object] = {
        "fit.train": "head",
        "model.width": None,
        "model.network_arguments": {},
        "data.val": 0.15,
    }
    current = {"fit.train": "all", "model.width": 8, "model.network_arguments": {"depth": 1}, "data.val": 0.15}
    assert command_for(wanted, current) == [
        "dvc", "exp", "run", "-S", "fit.train=head", "-S", "model.width=null", "-S", "model.network_arguments={}",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "source"),
    [("photos", "folder"), ("p.ZIP", "archive"), ("p.tar.gz", "archive"), ("p.csv", "manifest")],
)
def test_the_source_follows_from_what_the_data_is(name: str, source: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.mkdir() if source == "folder" else path.touch()
    assert source_of(str(path)) == source
