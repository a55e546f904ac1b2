"""May a new model become the champion: real models, compared through a real MLflow store."""

import json
import os
import shutil
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from mlflow.tracking._tracking_service import utils as mlflow_utils

from refit.artifacts.model import Blueprint, ModelRecord, identity, model_sha256, read_record
from refit.artifacts.paths import MODEL, PROMOTION
from refit.artifacts.prepared import read_hashes, read_split
from refit.commands import promote
from refit.commands.promote import predictions_of
from refit.data.pack import pack
from refit.data.sources.open import open_source
from refit.data.sources.source import Listing, Source
from refit.inference.predictor import read_model
from refit.params import load_params
from refit.runtime.errors import UserError
from refit.tracking import registry
from refit.tracking.registry import Version, fetch, find_champion, make_champion, register
from refit.tracking.runs import TrackedRun
from tests.fixtures import Changed, Fit, run_test
from tests.fixtures.project import Project, copy_of

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType"),  # from a function in MLflow
]
OLD = Path(__file__).resolve().parents[1] / "fixtures/models"
RIVAL = Version("refit", "7", "c" * 64, "run", was_champion=True)


PROJECT = Path(__file__).resolve().parents[2]


def verdict() -> Any:
    return json.loads((PROMOTION / "verdict.json").read_text(encoding="utf-8"))


@pytest.fixture
def trained(fitted_in_mlflow: Fit) -> Any:
    """Fit and test a model with these keys changed; returns its accuracy."""

    def run(**keys: object) -> float:
        fitted_in_mlflow(**{"fit__max_epochs": 3} | keys)
        run_test(report=False)
        return float(json.loads(Path("data/evaluation/test.json").read_text())["accuracy"])

    return run


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shelf")


@pytest.fixture
def first_trained(trained: Any, prepared_workspace: Path, shelf: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`trained`, at the start of a test. Many tests start with the same model, so it is trained once and copied."""
    # By the id of a run MLflow remembers where its files are, and copies have the same id.
    monkeypatch.setattr(mlflow_utils, "_artifact_repos_cache", OrderedDict())

    def run(**keys: object) -> None:
        kept = shelf / json.dumps(keys)
        if kept.exists():
            copy_of(Project(kept), prepared_workspace)
        else:
            trained(**keys)
            copy_of(Project(prepared_workspace), kept)

    return run


def test_the_first_and_a_better_model_are_promoted_and_a_worse_one_is_not(
    trained: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = trained(learning_rate=1e-4, fit__max_epochs=1)
    capsys.readouterr()
    promote.main()
    assert verdict()["outcome"] == "promoted"
    said = capsys.readouterr()
    looking, registering, title, *_ = said.out.splitlines()
    assert looking == f"looking up the champion in MLflow, to compare model {verdict()['model']} with it"
    assert (registering, title) == ("registering the model as the champion", "Promotion")
    assert all(line.startswith("warning: ") for line in said.err.splitlines()), "MLflow's own lines are not for people"
    promote.main()
    assert (verdict()["outcome"], verdict()["why"]) == ("unchanged", "models:/refit/1 is already this model")

    good = trained()
    assert good > bad + 0.1, "otherwise the test proves nothing"
    better = register(MODEL, "refit")[0].sha256
    promote.main()
    found = verdict()
    assert (found["outcome"], found["champion"]["number"]) == ("promoted", "1")
    compared = found["comparison"]
    assert (compared["images"], compared["score"], compared["other_score"]) == (359, good, bad)
    assert compared["score"] - compared["other_score"] == pytest.approx(
        (compared["this_better"] - compared["other_better"]) / 359
    )
    champion = find_champion("refit")
    assert champion is not None
    assert (champion.number, champion.sha256) == ("2", better)
    said = capsys.readouterr()
    assert "models:/refit/2 is now the champion: it replaces models:/refit/1" in " ".join(said.out.split())
    assert "\nmodels:/refit/1 predicts the 359 test images again, for the comparison\n" in said.out

    assert trained(learning_rate=1e-4, fit__max_epochs=1) == bad
    promote.main()
    assert verdict()["outcome"] == "kept"
    assert find_champion("refit") == champion
    rows = (PROMOTION / "differences.csv").read_text().splitlines()
    assert rows[0] == "file,actual,predicted,champion"
    assert len(rows) - 1 == verdict()["comparison"]["this_better"] + verdict()["comparison"]["other_better"]
    for row in rows[1:]:
        _, actual, predicted, champion_predicted = row.split(",")
        assert (actual == predicted) != (actual == champion_predicted)
    assert "models:/refit/2 stays the champion" in capsys.readouterr().out
    run = MlflowClient().search_runs(["1"], filter_string=f"tags.model_sha256 = '{better}'")[0]
    assert float(run.data.tags["accuracy_beside_champion"]) == pytest.approx(good - bad, abs=1e-6)
    listed = {file.path for file in MlflowClient().list_artifacts(run.info.run_id, "promotion")}
    assert listed == {"promotion/differences.csv", "promotion/promotion.md", "promotion/verdict.json"}


@pytest.mark.parametrize("name", ["format_1_classifier", "format_2_classifier", "format_2_autoencoder"])
def test_a_champion_of_an_earlier_format_can_be_compared(name: str, first_trained: Any) -> None:
    first_trained(fit__max_epochs=8)
    folder = OLD / name
    TrackedRun({}, {}).finish(folder, torch.from_numpy(read_split("test").images[:2]))
    version, _ = register(folder, "refit")
    make_champion(version, "registered by an earlier version of Refit")
    promote.main()
    found = verdict()
    assert found["champion"]["sha256"] == model_sha256(folder)
    images = read_split("test")
    system, _ = read_model(folder)
    with torch.inference_mode():
        answers = system(torch.from_numpy(images.images))
    probabilities = answers["probabilities"] if isinstance(answers, dict) else answers
    right = probabilities.argmax(1).numpy() == images.labels
    seen = fetch(version, Path(name)).seen
    fair = np.ones(len(right), bool) if seen is None else ~np.isin(registry.short_hashes(read_hashes("test")), seen)
    assert found["comparison"]["images"] == fair.sum() > 50
    assert found["comparison"]["other_score"] == pytest.approx(right[fair].mean())
    assert found["outcome"] == "promoted"


def test_images_that_the_champion_was_trained_on_are_left_out(
    first_trained: Any, trained: Any, prepared_workspace: Path, changed: Changed
) -> None:
    first_trained(fit__max_epochs=1)
    promote.main()
    seen = set(read_hashes("train", "val"))
    other_seed = changed({"seed": 1, "data.root": str(prepared_workspace)})
    shutil.rmtree("data/prepared")
    Path("data/prepared").mkdir()
    pack(open_source(other_seed.data), other_seed.data, 1, Path("data/prepared"))
    trained(fit__max_epochs=1)
    promote.main()
    tested = read_hashes("test")
    unseen = [digest not in seen for digest in tested]
    assert 20 < sum(unseen) < 200
    found = verdict()
    assert (found["comparison"]["images"], found["seen"]) == (sum(unseen), len(tested) - sum(unseen))
    _, theirs, _ = predictions_of_version(found["champion"]["sha256"])
    actual = [str(label) for label in read_split("test").labels]
    right = np.array([a == b for a, b in zip(actual, theirs, strict=True)])[unseen]
    assert found["comparison"]["other_score"] == pytest.approx(right.mean())
    assert "are left out because the champion was trained on them" in (PROMOTION / "promotion.md").read_text()


def predictions_of_version(sha256: str) -> tuple[ModelRecord, list[str], list[str]]:
    (run,) = MlflowClient().search_runs(["1"], filter_string=f"tags.model_sha256 = '{sha256}'")
    folder = Path(MlflowClient().download_artifacts(run.info.run_id, "artifact", "."))
    return predictions_of(folder, RIVAL, load_params())


@pytest.mark.parametrize(
    ("where", "at"),
    [(registry, "_save"), (promote, "register"), (promote, "make_champion"), (promote, "write_verdict")],
    ids=lambda at: at if isinstance(at, str) else "",
)
def test_the_next_promotion_completes_an_interrupted_one(
    where: ModuleType, at: str, first_trained: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class PowerCutError(BaseException):
        pass

    step = getattr(where, at)

    def cut(*arguments: Any) -> None:
        if at in ("register", "make_champion"):
            step(*arguments)
        raise PowerCutError

    first_trained(fit__max_epochs=1)
    with monkeypatch.context() as patch:
        patch.setattr(where, at, cut)
        with pytest.raises(PowerCutError):
            promote.main()
    assert not PROMOTION.exists()
    promote.main()
    champion = find_champion("refit")
    assert champion is not None
    assert (champion.number, champion.sha256) == ("1", verdict()["model_sha256"])
    kept = fetch(champion, tmp_path)
    assert model_sha256(kept.model_dir) == champion.sha256
    assert kept.seen is not None
    assert len(kept.seen) == len(set(read_hashes("train", "val")))
    assert len(kept.predicted) == 359


def write_record(folder: Path, record: dict[str, Any], **changes: Any) -> None:
    """Write a changed record with a matching sha256."""
    values = {**record, **changes}
    blueprint = {name: values[name] for name in Blueprint.model_fields if name in values}
    values["sha256"] = identity(blueprint, values["weights_sha256"])
    (folder / "model.json").write_text(json.dumps(values))


def test_a_champion_s_predictions_are_compared_by_class_name(first_trained: Any) -> None:
    """A class that is added later changes the numbers of the others."""
    first_trained(fit__max_epochs=1)
    _, before, _ = predictions_of(MODEL, RIVAL, load_params())
    description = json.loads((MODEL / "model.json").read_text())
    write_record(MODEL, description, classes=[f"class {name}" for name in description["classes"]])
    assert predictions_of(MODEL, RIVAL, load_params())[1] == [f"class {name}" for name in before]


def test_a_champion_with_another_image_size_gets_images_of_that_size(
    trained: Any, prepared_workspace: Path, changed: Changed
) -> None:
    """The champion's training images are found by the hash of their pixels at its own size."""

    def prepare(**keys: object) -> None:
        data = changed({"data.root": str(prepared_workspace), **keys})
        shutil.rmtree("data/prepared")
        Path("data/prepared").mkdir()
        pack(open_source(data.data), data.data, data.seed, Path("data/prepared"))

    prepare(**{"data.image_size": 16, "seed": 1})
    own = trained(fit__max_epochs=2, data__root=str(prepared_workspace))
    promote.main()
    seen, right = set(read_hashes("train", "val")), read_hashes("test")
    assert predictions_of(MODEL, RIVAL, load_params())[2] == right
    prepare(**{"data.image_size": 16})
    unseen = [digest not in seen for digest in read_hashes("test")]
    expected = predictions_of(MODEL, RIVAL, load_params())
    prepare()
    trained(fit__max_epochs=1, data__root=str(prepared_workspace))
    promote.main()
    found = verdict()
    assert (found["comparison"]["images"], found["seen"]) == (sum(unseen), 359 - sum(unseen))
    theirs = predictions_of_version(found["champion"]["sha256"])
    assert theirs == expected
    actual = [str(label) for label in read_split("test").labels]
    hits = np.array([a == b for a, b in zip(actual, theirs[1], strict=True)])[unseen]
    assert found["comparison"]["other_score"] == pytest.approx(hits.mean())
    assert hits.mean() > 0.5 * own


def test_a_withdrawn_champion_is_not_promoted_again_automatically(trained: Any) -> None:
    trained(learning_rate=1e-4, fit__max_epochs=1)
    promote.main()
    trained()
    promote.main()
    client = MlflowClient()
    client.set_registered_model_alias("refit", "champion", "1")
    promote.main()
    assert verdict()["outcome"] == "kept"
    assert str(client.get_model_version_by_alias("refit", "champion").version) == "1"
    assert "this model, models:/refit/2, was champion before and was withdrawn" in verdict()["why"]
    # The same holds if an earlier version of Refit registered it with the sha256 of its weights.
    client.set_model_version_tag("refit", "2", "model_sha256", read_record().weights_sha256)
    promote.main()
    assert verdict()["outcome"] == "kept"


def test_a_champion_whose_predictions_changed_with_the_code_is_not_compared(
    trained: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained()
    promote.main()
    trained(fit__max_epochs=1)
    monkeypatch.setattr(torch.nn.functional, "relu", torch.tanh)
    monkeypatch.setattr(torch.nn.ReLU, "forward", lambda self, values: torch.tanh(values))
    monkeypatch.setattr(torch.nn.GELU, "forward", lambda self, values: torch.tanh(values))
    with pytest.raises(UserError, match=r"models:/refit/1 now predicts something else for \d+ of 359 images"):
        promote.main()
    assert find_champion("refit") is not None
    assert verdict()["outcome"] == "promoted", "the verdict of the last promotion"


def test_a_champion_of_another_task_is_refused_and_images_of_unknown_classes_are_counted(
    first_trained: Any, trained: Any
) -> None:
    first_trained(fit__max_epochs=1)
    promote.main()
    (run,) = MlflowClient().search_runs(["1"])
    kept = Path(run.info.artifact_uri.removeprefix("file://"), "artifact")
    description = json.loads((kept / "model.json").read_text())
    (kept / "outcomes.csv").unlink()
    trained(fit__max_epochs=2)
    write_record(kept, description, classes=[f"cat {i}" for i in range(10)])
    with pytest.raises(UserError, match="models:/refit/1 knows none of the current classes: it solves another task"):
        promote.main()
    write_record(kept, description, classes=[*"012345678", "nine"])
    promote.main()
    nines = [str(label) for label in read_split("test").labels].count("9")
    assert f"; {nines} images have classes that it does not know" in (PROMOTION / "promotion.md").read_text()
    assert verdict()["unknown"] == nines


def test_the_command_in_the_error_replaces_a_champion_of_another_task_without_comparison(
    first_trained: Any, trained: Any
) -> None:
    first_trained(fit__max_epochs=1)
    promote.main()
    (run,) = MlflowClient().search_runs(["1"])
    kept = Path(run.info.artifact_uri.removeprefix("file://"), "artifact")
    write_record(kept, json.loads((kept / "model.json").read_text()), classes=[f"cat {i}" for i in range(10)])
    trained(fit__max_epochs=2)
    with pytest.raises(UserError) as raised:
        promote.main()
    command = str(raised.value).rpartition("run: ")[2].split()
    assert command[:3] == ["python", "-m", "refit.commands.promote"]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    done = subprocess.run([sys.executable, *command[1:]], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert "it replaces models:/refit/1 without a comparison" in " ".join(done.stdout.split())
    champion = find_champion("refit")
    assert champion is not None
    assert (champion.number, champion.sha256) == ("2", read_record().sha256)
    assert verdict()["outcome"] == "promoted"


def test_results_of_other_images_than_the_prepared_ones_are_refused(
    first_trained: Any, prepared_workspace: Path, changed: Changed
) -> None:
    first_trained(fit__max_epochs=1)
    data = changed({"data.root": str(prepared_workspace), "seed": 1})
    shutil.rmtree("data/prepared")
    Path("data/prepared").mkdir()
    pack(open_source(data.data), data.data, 1, Path("data/prepared"))
    with pytest.raises(UserError, match=r"outcomes.csv and data/prepared have different test images; run: dvc repro"):
        promote.main()


def test_a_model_registered_without_its_images_is_completed_later(first_trained: Any, tmp_path: Path) -> None:
    first_trained(fit__max_epochs=1)
    info = Path("data/prepared/dataset.json")
    told = info.read_text()
    info.write_text(json.dumps({**json.loads(told), "sha256": "other"}))
    version, _ = register(MODEL, "refit")
    assert fetch(version, tmp_path).seen is None
    info.write_text(told)
    register(MODEL, "refit")
    assert fetch(version, tmp_path).seen is not None


def test_a_champion_that_cannot_be_compared_fails_with_a_one_line_error(
    first_trained: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    first_trained(fit__max_epochs=1)
    description = json.loads((MODEL / "model.json").read_text())
    write_record(MODEL, description, shape=[1, 16, 16])
    monkeypatch.setattr("refit.data.pack.open_source", lambda _: Source(tuple, lambda: Listing((), [])))
    with pytest.raises(UserError, match=r"^\d+ is no longer in data.root = 'data/raw'; run: dvc repro"):
        predictions_of(MODEL, RIVAL, load_params())
    (MODEL / "model.json").write_text(json.dumps({**description, "format": 99}))
    with pytest.raises(UserError, match=r"^the champion models:/refit/7 cannot be read by this code \(.*format"):
        predictions_of(MODEL, RIVAL, load_params())


def test_an_untested_model_and_a_debug_run_are_refused(trained: Any, fitted_in_mlflow: Fit) -> None:
    trained(fit__max_epochs=1, debug__limit_test_batches=1)
    with pytest.raises(UserError, match="is a debug run; undo the changes to the debug section"):
        promote.main()
    fitted_in_mlflow(fit__max_epochs=1, seed=1)
    with pytest.raises(UserError, match="has not been tested; run: dvc repro"):
        promote.main()
    assert not PROMOTION.exists()


def test_unreachable_mlflow_and_a_foreign_alias_fail_with_a_one_line_error(
    first_trained: Any, monkeypatch: pytest.MonkeyPatch, prepared_workspace: Path
) -> None:
    first_trained(fit__max_epochs=1)
    version, _ = register(MODEL, "refit")
    client = MlflowClient()
    client.delete_model_version_tag("refit", version.number, "model_sha256")
    client.set_registered_model_alias("refit", "champion", version.number)
    with pytest.raises(UserError, match="models:/refit@champion is version 1, which Refit did not register"):
        promote.main()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    with pytest.raises(UserError, match=r"^MLflow at http://127.0.0.1:1: .*refused"):
        promote.main()


def test_a_model_whose_training_images_are_unknown_is_compared_on_all_with_a_warning(
    first_trained: Any, trained: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    first_trained(fit__max_epochs=1)
    info = Path("data/prepared/dataset.json")
    told = info.read_text()
    info.write_text(json.dumps({**json.loads(told), "sha256": "other"}))
    promote.main()
    assert "warning: data/prepared is not the data that the model was trained on" in capsys.readouterr().err
    info.write_text(told)
    trained()
    promote.main()
    assert "the training images of models:/refit/1 are unknown: all test images are used" in capsys.readouterr().err
    assert (verdict()["comparison"]["images"], verdict()["seen"]) == (359, 0)
