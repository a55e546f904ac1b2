"""Test the model on images that it was not trained on: metrics, tables, pictures and a report."""

from collections.abc import Mapping
from dataclasses import asdict

from torch import Tensor

from refit.artifacts.checked import stage_params
from refit.artifacts.files import whole_folder, write_csv, write_json
from refit.artifacts.metrics import write_test_metrics
from refit.artifacts.model import ModelRecord, model_name
from refit.artifacts.paths import FINDINGS, OUTCOMES, TABLES, TEST
from refit.artifacts.prepared import Split, read_names, read_split
from refit.batches.datamodule import EVALUATION_FACTOR, EvaluationLoader
from refit.evaluation.classification.evidence import gather
from refit.evaluation.classification.findings import find
from refit.evaluation.classification.report import evaluate, worst_mistakes
from refit.inference.predictor import TestAnswers, columns_of_each, read_model
from refit.params import Params
from refit.reports.embeddings import embedding_pictures
from refit.reports.run_report import write_run_report
from refit.runtime.stage import run_stage
from refit.tasks.task import TASKS, Floats
from refit.tracking.loggers import log_to_model
from refit.training.trainer import inference_trainer, translate_lightning_errors


def main(params: Params) -> None:
    system, model = read_model()
    split = read_split("test")
    loader = EvaluationLoader(split, EVALUATION_FACTOR * model.batch_size)
    collected = TestAnswers(model.task)
    trainer = inference_trainer(params.trainer, callbacks=[collected], limit_test_batches=params.debug.test_batches)
    with translate_lightning_errors(params.debug):
        trainer.test(system, loader, verbose=False)
    answers = collected.gather(system)
    answer = answers.pop(TASKS[model.task].ANSWER).numpy()
    split = split.first(len(answer))  # a debug run takes fewer images
    debug = model.debug or params.debug.shortens

    report = evaluate(answer, split.labels, model.classes, params.test.confidence, params.test.calibration_bins)
    own = {name: float(value) for name, value in trainer.callback_metrics.items()}
    metrics = report.test_summary() | own
    outcomes = outcome_rows(model, answer, answers, split)
    marked = {"debug": True} if debug else {}
    write_json(TEST, {"tested": model_name(model.sha256), **metrics, **marked})
    write_test_metrics(report.accuracy, own)
    write_csv(OUTCOMES, outcomes)
    with whole_folder(TABLES) as tables:
        for name, rows in report.tables().items():
            write_csv(tables / f"{name}.csv", rows)
    evidence = gather(report, answer, split, system)
    findings = find(evidence)
    baselines = asdict(evidence.baselines)
    write_json(FINDINGS, {"baselines": baselines, "findings": [finding._asdict() for finding in findings]})
    worst = worst_mistakes(answer, split.labels, params.test.worst_mistakes)
    embeddings = embedding_pictures(system, answers, split, model.classes)
    written = write_run_report(
        report, model, baselines, findings, [outcomes[i] for i in worst], split.images[worst], embeddings, debug=debug
    )

    log_to_model(model.sha256, {f"test_{name}": value for name, value in metrics.items()}, written)
    print(
        f"test accuracy {report.accuracy:.4f} ({report.accuracy_low:.4f} to {report.accuracy_high:.4f}) "
        f"on {report.images:,} images"
    )


def outcome_rows(
    model: ModelRecord, answer: Floats, others: Mapping[str, Tensor], split: Split
) -> list[dict[str, object]]:
    """One row per test image, for the confusion plot, the gallery and paired comparisons of models."""
    names = read_names("test")[: len(answer)]
    rows = TASKS[model.task].outcome_rows(answer, split.labels, model.classes)
    columns = columns_of_each(others, len(names))
    return [{"file": name, **row, **more} for name, row, more in zip(names, rows, columns, strict=True)]


if __name__ == "__main__":
    run_stage(lambda: main(stage_params("test")))
