"""The summary at the end of a run, from files like those that the stages write."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from refit.artifacts.model import model_name, model_sha256, read_record
from refit.params import Params
from refit.params.reads import READS
from refit.reports import summary
from refit.reports.summary import as_markdown, as_text, read_facts, read_steps
from refit.runtime.errors import UserError

MODELS = Path(__file__).resolve().parents[2] / "fixtures/models"
MODEL = MODELS / "format_2_classifier"

FILES: dict[str, dict[str, Any]] = {
    "data/prepared/dataset.json": {
        "format": 1,
        "source": "digits",
        "classes": [str(digit) for digit in range(10)],
        "shape": [1, 8, 8],
        "sha256": read_record(MODEL).data_sha256,
        "counts": {"train": 1169, "val": 269, "test": 359},
    },
    "data/tuning/batch.json": {
        "effective_batch": 256, "micro_batch": 64, "accumulate_grad_batches": 4, "hardware": "cpu", "chosen_by": "auto"
    },
    "data/tuning/learning_rate.json": {"learning_rate": 0.0069183, "chosen_by": "find_lr", "suggestion": 0.0069183},
    "data/evaluation/fit.json": {"epoch": 21, "epochs": 30, "val_loss": 0.1165, "val_accuracy": 0.98885},
    "data/evaluation/test.json": {
        "tested": model_name(model_sha256(MODEL)), "accuracy": 0.98607, "accuracy_low": 0.96779,
        "accuracy_high": 0.99409, "macro_f1": 0.98594, "ece": 0.01234
    },
    "data/evaluation/findings.json": {"baselines": {"majority": 0.1003, "neighbours": 0.9889}, "findings": []},
}  # fmt: skip


@pytest.fixture(autouse=True)
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, values in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(json.dumps(values))
    shutil.copytree(MODEL, tmp_path / "data/model")
    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "DVC_ROOT"):
        monkeypatch.setenv(name, "")
    return tmp_path


def test_the_summary_shows_every_metric_in_26_lines_of_80_columns(repository: Path) -> None:
    text = as_text(read_facts(), read_steps())
    flat = " ".join(text.split())
    for figure in (
        "digits: 1,169 train, 269 val, 359 test images of 10 classes, 1x8x8",
        "256 images = 4 x 64, from scale_batch",
        "0.00692, from find_lr",
        "21 of 30",
        "0.9861 (confidence interval 0.9678 to 0.9941)",
        "largest class 0.1003, nearest training images 0.9889",
        "macro F1 0.9859",
        "ECE 0.0123",
        f"data/model, sha256 {model_sha256(repository / 'data/model')[:12]}",
        "data/evaluation/report.html",
        "make mlflow",
        "make compare",
        "dvc exp run -S",
        "none for this model",
    ):
        assert figure in flat
    assert len(text.splitlines()) <= 26
    assert max(map(len, text.splitlines())) <= 80


def test_the_rate_of_the_frozen_epochs_is_shown_if_there_are_some(repository: Path) -> None:
    assert "frozen" not in as_text(read_facts(), read_steps())
    rate = FILES["data/tuning/learning_rate.json"]
    both = {**rate, "frozen": {"learning_rate": 0.0512, "chosen_by": "find_lr", "suggestion": 0.0512}}
    (repository / "data/tuning/learning_rate.json").write_text(json.dumps(both))
    assert "| in frozen epochs | 0.0512, from find_lr" in as_markdown(read_facts())


def test_a_head_that_was_trained_alone_is_shown_with_its_penalty_and_the_next_step(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit = {**FILES["data/evaluation/fit.json"], "epoch": 6, "epochs": 9, "l2": 0.0316}
    (repository / "data/evaluation/fit.json").write_text(json.dumps(fit))
    text = as_markdown(read_facts())
    assert "| head alone | L2 penalty 0.0316, the best of 9 tried: validation loss 0.1165, validation accuracy" in text
    assert "batch size" not in text
    assert "learning rate" not in text
    assert read_steps()[0].command.startswith("dvc exp run -S fit.train=all ")
    monkeypatch.setattr(summary, "OF_PHOTOS", read_record(repository / "data/model").network)
    assert read_steps()[0].command == "make photos-finetune DATA=FOLDER"


def test_metrics_of_another_model_are_marked_as_stale(repository: Path) -> None:
    assert "TEST IS STALE" not in as_text(read_facts(), read_steps())
    shutil.copy(MODELS / "format_2_autoencoder/model.json", repository / "data/model")
    assert "TEST IS STALE" in as_markdown(read_facts())
    assert "of another model; run: dvc repro" in " ".join(as_text(read_facts(), read_steps()).split())


def test_values_that_a_failed_run_left_in_params_yaml_are_named(repository: Path) -> None:
    (repository / "data/checked").mkdir()
    recorded = {"code": {}, "params": Params().values(*READS["fit"])}
    (repository / "data/checked/fit.json").write_text(json.dumps(recorded))
    assert "PARAMS.YAML" not in as_text(read_facts(), read_steps())
    for text, line in (
        ("fit: {max_epochs: 30}", ""),
        (
            "fit: {max_epochs: 3}",
            "has changed, and this result is of earlier values: fit.max_epochs 30 -> 3; run: dvc re",
        ),
        (
            "fit: {max_epoch: 3}",
            "is not valid now, and this result is of earlier values: params.yaml: fit.max_epoch is",
        ),
    ):
        (repository / "params.yaml").write_text(text)
        shown = " ".join(as_text(read_facts(), read_steps()).split())
        assert f"PARAMS.YAML {line}" in shown if line else "PARAMS.YAML" not in shown


def test_markdown_is_one_table_with_a_link_to_the_report(repository: Path) -> None:
    lines = as_markdown(read_facts()).splitlines()
    assert all(line.startswith("|") and line.count("|") == 3 for line in lines)
    report = (repository / "data/evaluation/report.html").as_uri()
    assert f"| report | [data/evaluation/report.html]({report}) |" in lines


def test_the_page_of_the_data_is_linked_and_says_what_was_left_out_and_decided(repository: Path) -> None:
    assert "data report" not in as_markdown(read_facts())
    page = (repository / "data/prepared_report.html").as_uri()
    for counts, told in (
        ({"left_out": 0, "decisions": 0}, "data/prepared_report.html"),
        ({"left_out": 1200, "decisions": 3}, "data/prepared_report.html: 1,200 left out, 3 decisions obeyed"),
    ):
        (repository / "data/prepared_report.json").write_text(json.dumps(counts))
        assert f"| data report | [{told}]({page}) |" in as_markdown(read_facts()).splitlines()
    assert len(as_text(read_facts(), read_steps()).splitlines()) <= 26


def test_the_summary_can_be_written_from_another_folder(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    assert "0.9861" in as_text(read_facts(repository), read_steps(repository))


@pytest.mark.parametrize("missing", [*FILES, "data/model/model.json"])
def test_a_missing_file_is_named_in_a_user_error(missing: str, repository: Path) -> None:
    (repository / missing).unlink()
    with pytest.raises(UserError, match=missing) as error:
        as_text(read_facts(), read_steps())
    assert "run: dvc repro" in str(error.value)


def test_the_summary_ends_with_the_findings_and_their_remedies(repository: Path) -> None:
    path = repository / "data/evaluation/findings.json"
    found = json.loads(path.read_text())
    command = "dvc exp run -S loss.class_weights=balanced -S model.network=torchvision:resnet18"
    found["findings"] = [
        {"what": "The splits differ", "remedy": "check their images"},
        {"what": "No image of hat is found", "remedy": f"a loss with weights (`{command}`), or `make sanity`"},
    ]
    path.write_text(json.dumps(found))
    advice = f"No image of hat is found. What may help: a loss with weights (`{command}`), or `make sanity`"
    assert read_facts()[-1] == ("advice", advice, None)
    assert advice in " ".join(as_text(read_facts(), read_steps()).split())
    assert advice in as_markdown(read_facts())
    text = as_text(read_facts(), read_steps())
    assert f"\n{'':17}(`{command}`),\n" in text, "a command that is broken into lines cannot be pasted"
    assert text.partition("What next\n")[2].startswith(f"  {command}\n{'':47}try the first advice\n  make mlflow ")
    assert "weight_decay" not in text


def test_the_summary_offers_photos_only_after_a_run_on_the_digits(repository: Path) -> None:
    assert "data.source=folder" in as_text(read_facts(), read_steps())
    path = repository / "data/prepared/dataset.json"
    path.write_text(json.dumps(FILES["data/prepared/dataset.json"] | {"source": "folder"}))
    assert "data.source=folder" not in as_text(read_facts(), read_steps())
    assert "dvc exp run -S optimizer.weight_decay=0.1    try a change" in as_text(read_facts(), read_steps())


def test_the_last_predictions_are_shown_with_their_classes_only_if_from_this_model(
    repository: Path,
) -> None:
    folder = repository / "data/predictions"
    folder.mkdir()
    (folder / "predictions.html").touch()
    values = {"model_sha256": model_sha256(MODEL), "images": 1234, "of": "new images", "abstained": 5,
              "model_knows": "2 classes: ant, bee"}  # fmt: skip
    (folder / "summary.json").write_text(json.dumps(values))
    line = "predictions.html: 1,234 images (new images), 5 in doubt, as one of 2 classes: ant, bee"
    assert line in " ".join(as_text(read_facts(), read_steps()).split())
    (folder / "summary.json").write_text(json.dumps(values | {"of": "the test split"}))
    assert "1,234 images (the test split), 5 in doubt MLflow" in " ".join(as_text(read_facts(), read_steps()).split())
    (folder / "summary.json").write_text(json.dumps(values | {"model_sha256": "0" * 64}))
    assert "predictions.html" not in as_text(read_facts(), read_steps())


@pytest.mark.parametrize(
    ("file", "key", "value", "newer"),
    [
        ("data/tuning/learning_rate.json", "learning_rate", 0.5, "the learning rate shown here is not of this model"),
        ("data/tuning/batch.json", "effective_batch", 512, "the batch size shown here is not of this model"),
        ("data/prepared/dataset.json", "sha256", "1" * 64, "the data shown here is not of this model"),
    ],
)
def test_the_summary_warns_if_an_earlier_stage_was_run_alone(
    file: str, key: str, value: object, newer: str, repository: Path
) -> None:
    fitted = {"optimizer": {"learning_rate": 0.0069183}, "batch": {"size": 256}}
    (repository / "data/model/params.json").write_text(json.dumps(fitted))
    assert "FIT IS STALE" not in dict(fact[:2] for fact in read_facts())
    (repository / file).write_text(json.dumps({**FILES[file], key: value}))
    assert dict(fact[:2] for fact in read_facts())["FIT IS STALE"] == f"{newer}; run: dvc repro"
