"""The pipeline as DVC runs it: what is rerun, what stays bitwise identical, and what a user error leaves behind."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient

from refit.params.reads import READS
from refit.runtime import fingerprint
from tests.fixtures.project import Project, copy_of, make_photos, make_project

ALL = ["check", "prepare", "scale_batch", "find_lr", "features", "fit", "test", "predict"]


def test_a_second_repro_runs_no_stage(project: Project) -> None:
    output = project.run("dvc", "repro").stdout
    assert "Running stage" not in output
    assert "Data and pipelines are up to date." in output


def test_a_changed_parameter_makes_only_the_stages_that_read_it_stale(project: Project) -> None:
    """One parameter of every section is changed; `check` records which parameters each stage reads."""
    before = recorded_params(project)
    changes = {
        "optimizer.weight_decay": 0.01, "optimizer.schedule": "cosine_warm_up", "batch.max_size": 32,
        "fit.patience": 2, "fit.save_state_every": 5.0, "test.worst_mistakes": 3, "predict.top_k": 2,
        "pipelines.stage_retries": 1, "tracking.loggers": "[mlflow,csv]", "data.val": 0.1, "augment.shift": 1,
        "model.dropout": 0.1, "loss.label_smoothing": 0.1, "trainer.threads": 2, "debug.fast_dev_run": 1,
        "promote.margin": 0.02,
    }  # fmt: skip
    for key, value in changes.items():
        project.set_param(key, value)
    said = project.run("dvc", "repro", "check").stdout
    assert "scale_batch: batch.max_size 256 -> 32, model.dropout null -> 0.1, trainer.threads 1 -> 2\n" in said
    after = recorded_params(project)
    assert {stage: {key for key in after[stage] if after[stage][key] != before[stage][key]} for stage in after} == {
        "prepare": {"data.val"},
        "scale_batch": {"batch.max_size", "model.dropout", "trainer.threads"},
        "find_lr": {
            "augment.shift", "loss.label_smoothing", "model.dropout", "optimizer.weight_decay", "trainer.threads",
        },
        "features": {"debug.fast_dev_run", "model.dropout", "trainer.threads"},
        "fit": {
            "augment.shift", "debug.fast_dev_run", "fit.patience", "loss.label_smoothing", "model.dropout",
            "optimizer.schedule", "optimizer.weight_decay", "trainer.threads",
        },
        "test": {"debug.fast_dev_run", "test.worst_mistakes", "trainer.threads"},
        "predict": {"debug.fast_dev_run", "predict.top_k", "trainer.threads"},
    }  # fmt: skip
    stale = json.loads(project.run("dvc", "status", "--json").stdout)
    assert stale == {
        stage: [{"changed deps": {f"data/checked/{stage}.json": "modified"}}] for stage in ALL if stage != "check"
    }


def recorded_params(project: Project) -> dict[str, dict[str, Any]]:
    files = {stage: project.root / f"data/checked/{stage}.json" for stage in ALL if stage != "check"}
    return {stage: json.loads(file.read_text())["params"] for stage, file in files.items()}


def edit(project: Project, file: str, before: str, after: str) -> None:
    path = project.root / file
    text = path.read_text()
    assert before in text, file
    path.write_text(text.replace(before, after, 1))


def test_changes_of_comments_docstrings_formatting_and_observers_rerun_only_check(project: Project) -> None:
    edit(project, "refit/training/train.py", "\nfrom", "\n# a comment\nfrom")
    edit(project, "refit/systems/networks.py", '"""Two hidden layers of `width` units."""', '"""Two layers."""')
    edit(project, "refit/reports/page.py", "\n\n\n", "\n\n")
    project.run("ruff", "format", "--quiet", "--line-length", "60", "refit/params")
    edit(project, "refit/tracking/runs.py", "warning: ", "warning to all: ")
    edit(project, "README.md", "DVC", "dvc")
    output = project.run("dvc", "repro").stdout
    assert re.findall(r"Running stage '(\w+)'", output) == ["check"]
    assert " changed" not in output


TRAINING = ("scale_batch", "find_lr", "features", "fit")


def test_changed_code_makes_only_the_stages_that_import_it_stale_and_the_file_is_named(
    project: Project,
) -> None:
    """Three files at once. Each stage depends on its own fingerprint file, which lists the files that it imports."""
    edits = {
        "refit/systems/networks.py": ("width: int = 256", "width: int = 255", {*TRAINING, "test", "predict"}),
        "refit/reports/plots.py": ("\nimport ", "\nimport abc\nimport ", {"test"}),
        "refit/commands/sanity.py": ("\nimport ", "\nimport abc\nimport ", set[str]()),
    }
    for file, (before, after, _) in edits.items():
        edit(project, file, before, after)
    output = project.run("dvc", "repro", "check").stdout
    told = re.findall(r"^(\w+): (.* changed)$", output, re.MULTILINE)
    found = {(stage, change) for stage, changes in told for change in changes.split(", ")}
    assert found == {(stage, f"{file} changed") for file, (_, _, stages) in edits.items() for stage in stages}
    assert json.loads(project.run("dvc", "status", "--json").stdout) == {
        stage: [{"changed deps": {f"data/checked/{stage}.json": "modified"}}] for stage, _ in told
    }
    for file, (before, after, _) in edits.items():
        edit(project, file, after, before)
    assert " changed\n" not in project.run("dvc", "repro", "check").stdout, "the code is that of the last run again"


def test_a_new_package_version_makes_only_the_stages_that_import_it_stale(project: Project, tmp_path: Path) -> None:
    (tmp_path / "timm-99.0.dist-info").mkdir()
    (tmp_path / "timm-99.0.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: timm\nVersion: 99.0\n")
    edit(project, "requirements.lock", "\ntimm==", "\n# another version\ntimm==")  # as installing it does
    output = project.run("dvc", "repro", "check", PYTHONPATH=str(tmp_path), REFIT_WARM="0").stdout
    assert re.search(r"\nfit: timm [\d.]+ -> 99.0\n", output)
    assert set(re.findall(r"(\w+): timm", output)) == {*TRAINING, "test", "predict"}


def test_a_new_weights_file_makes_only_the_training_stages_stale(project: Project) -> None:
    weights = project.root / "data/weights/new.safetensors"
    weights.write_bytes(b"")
    try:
        assert set(project.stale()) == {*TRAINING}
    finally:
        weights.unlink()  # it is ignored by git


def test_a_params_yaml_with_missing_keys_runs(project: Project) -> None:
    """DVC itself needs the two folders named in dvc.yaml. Only a value that differs makes a stage stale."""
    values = {"data": {"root": "data/raw"}, "predict": {"images": "data/new"}, "fit": {"max_epochs": 3}}
    (project.root / "params.yaml").write_text(yaml.safe_dump(values))
    assert project.stale() == ["check"]


OFFLINE = dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9")


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("+fit.max_epoch=3", "fit.max_epoch is not a known key; did you mean fit.max_epochs?"),
        ("data.source=torchvision:KMNIST", "torchvision:KMNIST' is not in data.root"),
    ],
)
def test_a_wrong_parameter_fails_with_a_one_line_error_before_any_work(
    project: Project, override: str, line: str
) -> None:
    before = project.outputs()
    failed = project.run("dvc", "exp", "run", "--set-param", override, ok=False, REFIT_WARM="0", **OFFLINE)
    assert failed.returncode != 0
    assert re.findall(r"Running stage '(\w+)'", failed.stdout) == ["check"]
    told = [text for text in failed.stderr.splitlines() if text.startswith("error: ")]
    assert len(told) == 1, failed.stderr
    assert line in told[0]
    assert project.outputs() == before
    assert project.run("git", "diff", "--exit-code", "dvc.lock", ok=False).returncode == 0


def finished_runs(project: Project) -> list[dict[str, dict[str, Any]]]:
    client = MlflowClient(f"sqlite:///{project.root / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("refit")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    return [{"params": run.data.params, "metrics": run.data.metrics, "tags": run.data.tags} for run in runs]


def test_mlflow_holds_one_run_of_the_model_with_its_parameters_fit_and_test(project: Project) -> None:
    (run,) = finished_runs(project)
    description = json.loads((project.root / "data/model/model.json").read_text())
    tested = json.loads((project.root / "data/evaluation/test.json").read_text())
    assert run["tags"]["model_sha256"] == description["sha256"]
    assert run["tags"]["data_sha256"] == description["data_sha256"]
    assert run["params"]["optimizer.weight_decay"] == "0.05"
    assert run["metrics"]["test/accuracy"] == tested["accuracy"]
    assert run["tags"]["test_accuracy_low"] == f"{tested['accuracy_low']:.6g}"
    curves = {"val_loss", "train_accuracy", "gradient_norm", "learning_rate"}
    system = {"system/images_per_second", "system/epoch_seconds", "system/memory_gib"}
    assert curves | system <= set(run["metrics"])
    assert "first_step_seconds" in run["tags"]
    bars = {name for name in run["metrics"] if name.startswith(("best_", "test_")) or name == "epoch"}
    assert not bars, "MLflow draws a single value as a bar among the curves"
    kept = json.loads((project.root / "data/evaluation/fit.json").read_text())
    assert (kept.pop("fitted"), kept.pop("epochs")) == (description["sha256"][:12], 3)
    told = {name: value for name, value in kept.items() if name == "epoch" or name.startswith("val_")}
    assert {name: run["tags"][f"best_{name}"] for name in told} == {name: f"{told[name]:.6g}" for name in told}
    assert run["tags"]["changed_params"] == "max_epochs=3"
    (page,) = project.root.glob("mlruns/**/artifacts/data/prepared_report.html")
    assert page.read_bytes() == (project.root / "data/prepared_report.html").read_bytes()


def test_experiments_run_in_a_temporary_folder_and_from_the_queue(project: Project) -> None:
    """An experiment in the workspace itself is tested in test_versus.py."""
    project.run("dvc", "exp", "run", "--temp", "--name", "apart", "--set-param", "predict.top_k=2", REFIT_WARM="0")
    project.run("dvc", "exp", "run", "--queue", "--name", "queued", "-S", "pipelines.stage_retries=4")  # runs check
    project.run("dvc", "exp", "run", "--queue", "--name", "failing", "-S", "data.root=nowhere")
    project.run("dvc", "queue", "start", REFIT_WARM="0")
    project.run("dvc", "queue", "logs", "--follow", "queued")
    project.run("dvc", "queue", "logs", "--follow", "failing", ok=False)
    project.run("dvc", "exp", "branch", "queued", "from-queue")
    shown = json.loads(project.run("dvc", "exp", "show", "--json").stdout)
    experiments = {one["name"]: one["revs"][0]["data"] for entry in shown for one in entry.get("experiments") or []}
    assert {name for name in experiments if name != "failing"} == {"apart", "queued"}
    table = project.run("python", "-m", "pipelines.tools.compare").stdout
    assert re.search(r"^  failing \(failed\) +- +- +- +data\.root=nowhere$", table, re.MULTILINE), table
    for name, section, key, value in (("apart", "predict", "top_k", 2), ("queued", "pipelines", "stage_retries", 4)):
        assert experiments[name]["params"]["params.yaml"]["data"][section][key] == value
        assert experiments[name]["metrics"]["data/metrics/test.json"]["data"]["test_acc"] > 0
    project.run("dvc", "exp", "apply", "apart")
    assert yaml.safe_load((project.root / "params.yaml").read_text())["predict"]["top_k"] == 2
    assert len(finished_runs(project)) == 1  # still one model: only the predictions differ


def test_an_experiment_in_a_copy_reads_ignored_images_and_keeps_their_relative_path(
    finished: Project, tmp_path: Path
) -> None:
    project = copy_of(finished, tmp_path / "project")
    photos = project.root / "data/raw/photos"
    make_photos(photos, 20, seed=0)
    keys = ("-S", "data.source=folder", "-S", "data.root=data/raw/photos", "-S", "data.image_size=16")
    project.run("dvc", "exp", "run", "--temp", "--name", "photos", *keys, "prepare", REFIT_WARM="0")
    project.run("dvc", "exp", "apply", "photos")
    assert yaml.safe_load((project.root / "params.yaml").read_text())["data"]["root"] == "data/raw/photos"
    assert str(project.root) not in (project.root / "dvc.lock").read_text()
    assert "prepare" not in project.stale(), "the images are the same as in the copy"
    assert len(list(photos.rglob("*.jpg"))) == 40
    assert not photos.is_symlink()


def test_images_and_weights_tracked_by_dvc_are_pushed_and_pulled_into_a_clone(tmp_path: Path) -> None:
    project, there = make_project(tmp_path / "project"), tmp_path / "there"
    files = ("data/raw/photos/cat/1.jpg", "data/weights/mine.safetensors")
    for file in files:
        (project.root / file).parent.mkdir(parents=True, exist_ok=True)
        (project.root / file).write_bytes(b"kept")
    project.run("dvc", "add", "data/raw/photos", "data/weights/mine.safetensors")
    project.run("dvc", "remote", "add", "--default", "store", str(tmp_path / "store"))
    project.commit()
    project.run("dvc", "push")
    project.run("git", "clone", "--quiet", str(project.root), str(there))
    Project(there).run("dvc", "pull", ok=False)  # no stage has run yet, so there are no outputs to pull
    assert [(there / file).read_bytes() for file in files] == [b"kept", b"kept"]


def test_a_folder_of_photos_needs_only_two_changed_parameters(tmp_path: Path) -> None:
    project = make_project(tmp_path / "project")
    make_photos(tmp_path / "photos", 20, seed=0)
    make_photos(tmp_path / "unseen", 5, seed=1)
    (tmp_path / "unseen/broken.jpg").write_bytes(b"no image")
    project.set_param("data.source", "folder")
    project.set_param("data.root", tmp_path / "photos")
    for key, value in {"fit.max_epochs": 1, "model.width": 4, "tracking.loggers": "[]"}.items():  # to save time
        project.set_param(key, value)
    project.run("dvc", "repro", "predict")
    assert json.loads((project.root / "data/prepared/dataset.json").read_text())["shape"] == [3, 128, 128]
    project.set_param("predict.images", tmp_path / "unseen")
    output = project.run("dvc", "repro", "predict").stdout
    assert re.findall(r"Running stage '(\w+)'", output) == ["check", "predict"]
    summary = json.loads((project.root / "data/predictions/summary.json").read_text())
    assert (summary["images"], summary["of"]) == (10, "new images")
    assert [bad["file"] for bad in summary["unreadable"]] == ["broken.jpg"]


RECORD = """
import importlib, json, os, runpy, sys, traceback
from refit.runtime import warm
root = os.getcwd()

def run(stage):
    opened, sections, given = set(), set(), []
    def hook(event, arguments):
        if event == "open" and isinstance(arguments[0], (str, bytes)):
            path = os.path.relpath(os.path.abspath(os.fsdecode(arguments[0])), root)
            if path.startswith("data" + os.sep) and os.path.isfile(path):
                opened.add(path)
    from refit.params import Params
    get = Params.__getattribute__
    def record(self, name):
        if name in Params.model_fields and any(self is part for part in given):
            sections.add(name)
        return get(self, name)
    only = Params.only
    def limited(self, *names):
        given.append(only(self, *names))
        return given[-1]
    Params.only, Params.__getattribute__ = limited, record
    sys.addaudithook(hook)
    runpy.run_module(f"stages.{stage}", run_name="__main__", alter_sys=True)
    files = [getattr(module, "__file__", None) or "" for module in list(sys.modules.values())]
    ours = {os.path.relpath(file, root) for file in files if file.startswith(root + os.sep)} | {f"stages/{stage}.py"}
    with open(f"{stage}.record", "w") as file:
        json.dump({"opened": sorted(opened), "sections": sorted(sections), "imported": sorted(ours)}, file)

# Like the warm process: import the libraries once, and the project's own modules in each stage's process.
for library in (*warm._FIRST, *warm._LATER):
    importlib.import_module(library)
for name in [name for name in sys.modules if name.partition(".")[0] in ("refit", "stages")]:
    del sys.modules[name]
for stage in sys.argv[1:]:
    child = os.fork()
    if child == 0:
        try:
            run(stage)
        except BaseException:
            traceback.print_exc()
        os._exit(0)  # a stage that failed leaves no record, which the test reports
    os.waitpid(child, 0)
"""


def test_each_stage_declares_the_data_the_sections_and_the_code_that_it_uses(
    project: Project,
) -> None:
    said = project.run(sys.executable, "-c", RECORD, *ALL[1:]).stderr
    for stage in ALL[1:]:
        file = project.root / f"{stage}.record"
        assert file.exists(), said
        record = json.loads(file.read_text())
        file.unlink()
        entry = yaml.safe_load((project.root / "dvc.yaml").read_text())["stages"][stage]
        paths = [*entry["deps"], *entry["outs"]]
        paths = [{"${data.root}": "data/raw", "${predict.images}": "data/new"}.get(path, path) for path in paths]
        strays = [
            path for path in record["opened"]
            # The lock of a fit holds no data, and what prepare has decoded is for itself alone.
            if not re.fullmatch(r"data/state/\w+\.lock|data/preparing/.*", path)
            and not any(path == own or path.startswith((f"{own}/", partial(own))) for own in paths)
        ]  # fmt: skip
        assert not strays, stage
        if stage != "predict":
            assert record["opened"] or stage == "prepare", stage
        declared = {key.partition(".")[0] for key in READS[stage]}
        code = json.loads((project.root / f"data/checked/{stage}.json").read_text())["code"]
        files = {name for name in code if name.endswith(".py")}
        imported = {name for name in record["imported"] if not name.startswith(fingerprint._WATCHERS)}
        if stage == "features":  # which has nothing to do, because all layers learn
            assert record["sections"] == ["fit"]
            assert imported < files
            continue
        assert record["sections"] == sorted(declared), stage
        assert files == imported, stage


def partial(path: str) -> str:
    """The temporary sibling that a file or folder is written to before it is renamed."""
    return str(Path(path).with_name(f".{Path(path).name}.partial"))


def test_verify_reruns_the_last_commit_in_plain_processes_and_names_each_file_that_differs(
    project: Project,
) -> None:
    lock = yaml.safe_load((project.root / "dvc.lock").read_text())
    (entry,) = [out for out in lock["stages"]["test"]["outs"] if out["path"] == "data/evaluation/test.json"]
    entry["md5"] = "0" * 32
    (project.root / "dvc.lock").write_text(yaml.safe_dump(lock))
    project.commit()
    cache = project.root / ".dvc/cache"
    cache.rename(cache.with_name("elsewhere"))  # as in a new clone
    done = project.run(sys.executable, "-m", "pipelines.tools.verify", ok=False, REFIT_WARM="0")
    cache.with_name("elsewhere").rename(cache)
    project.run("git", "reset", "--quiet", "--hard", "HEAD~1")
    lines = done.stdout.splitlines()
    assert [line for line in lines if line.startswith("DIFFERS")] == ["DIFFERS  data/evaluation/test.json"]
    for file in ("data/model/model.safetensors", "data/prepared/train_images.npy", "refit"):
        assert f"same     {file}" in lines
    assert done.stderr.splitlines()[-1] == "error: 1 files are not what dvc.lock says"
    assert done.returncode == 1


def test_an_unreachable_remote_does_not_stop_a_run_and_a_later_push_works(project: Project, tmp_path: Path) -> None:
    before = project.outputs()
    project.run("dvc", "remote", "add", "--local", "--default", "shared", "http://127.0.0.1:9/nobody")
    try:
        project.set_param("predict.top_k", 9)  # no other test has this value in the run cache
        assert "Running stage 'predict'" in project.run("dvc", "repro").stdout
        project.restore()
        failed = project.run("dvc", "push", ok=False)
        assert failed.returncode != 0
        assert project.outputs() == before

        project.run("dvc", "remote", "modify", "--local", "shared", "url", str(tmp_path / "remote"))
        project.run("dvc", "push")
        project.run("git", "clone", "--quiet", str(project.root), str(tmp_path / "clone"))
        clone = Project(tmp_path / "clone")
        clone.run("dvc", "remote", "add", "--local", "--default", "shared", str(tmp_path / "remote"))
        clone.run("dvc", "pull")
        pulled = clone.outputs()
        assert {name: before[name] for name in pulled if name in before} == pulled
        assert "data/model/model.safetensors" in pulled
    finally:
        project.run("dvc", "remote", "remove", "--local", "shared")
