"""`make smoke` in a real repository."""

import re

from tests.fixtures.project import Project


def everything(project: Project) -> dict[str, bytes]:
    """All files except those of git."""
    files = [path for path in project.root.rglob("*") if path.is_file() and ".git" not in path.parts]
    return {str(path): path.read_bytes() for path in files if not {"tmp", "__pycache__"} & set(path.parts)}


def test_smoke_runs_every_stage_of_every_system_with_edited_params_and_changes_no_file(project: Project) -> None:
    project.set_param("model.dropout", 0.4)
    project.set_param("fit.monitor", "val_accuracy")  # the autoencoder has neither this nor the next three
    project.set_param("loss.class_weights", "balanced")
    project.set_param("augment.mixup", 0.2)
    project.set_param("augment.train_size", 6)
    project.set_param("tracking.loggers", "[]")  # MLflow takes seconds
    before = everything(project)
    said = project.run("python", "-m", "pipelines.tools.smoke").stdout
    assert everything(project) == before
    assert re.findall(r"smoke: (\w+) goes through all stages", said) == ["classifier", "autoencoder"]
    stages = re.findall(r"Running stage '(\w+)'", said)
    assert all(stages.count(stage) == 2 for stage in ("scale_batch", "find_lr", "features", "fit", "test", "predict"))
    assert said.count("epoch 1/1") == 2


def test_smoke_fails_if_a_stage_fails(project: Project) -> None:
    project.set_param("trainer.accelerator", "tpu")
    failed = project.run("python", "-m", "pipelines.tools.smoke", ok=False)
    assert failed.returncode != 0
    assert "error: trainer.accelerator = 'tpu'" in failed.stderr
    assert "error: classifier does not go through all stages" in failed.stderr
    assert "smoke:" not in failed.stdout
