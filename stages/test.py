"""Test the model on images that it was not trained on: metrics, tables, pictures and a report."""

from refit.artifacts.checked import stage_params
from refit.artifacts.files import whole_folder, write_csv, write_json
from refit.artifacts.metrics import write_test_metrics
from refit.artifacts.model import model_name
from refit.artifacts.paths import FINDINGS, OUTCOMES, PREPARED_PAGE, TABLES, TEST
from refit.artifacts.prepared import Split, read_names, read_split
from refit.batches.datamodule import EVALUATION_FACTOR, EvaluationLoader
from refit.evaluation.evaluations import EVALUATIONS
from refit.evaluation.tested import Tested
from refit.inference.predictor import TestAnswers, columns_of_each, read_model
from refit.params import Params
from refit.reports.run_report import write_run_report
from refit.runtime.stage import run_stage
from refit.systems.classifier import Classifier
from refit.systems.features import Head, features_of
from refit.tasks.task import TASKS
from refit.tracking.loggers import log_to_model
from refit.training.trainer import inference_trainer, translate_lightning_errors


def main(params: Params) -> None:
    tested = run_test(params)
    model, score = tested.model, TASKS[tested.model.task].SCORE
    evaluation = EVALUATIONS[model.task](tested, params.test)
    report, outcomes = evaluation.report, outcome_rows(tested)

    summary = report.test_summary()
    metrics = summary | tested.logged
    marked = {"debug": True} if tested.debug else {}
    write_json(TEST, {"tested": model_name(model.sha256), "task": model.task, **metrics, **marked})
    write_test_metrics(score, summary[score], tested.logged)
    write_csv(OUTCOMES, outcomes)
    with whole_folder(TABLES) as tables:
        for name, rows in report.tables().items():
            write_csv(tables / f"{name}.csv", rows)
    findings = [finding._asdict() for finding in evaluation.findings]
    write_json(FINDINGS, {"baselines": evaluation.baselines, "findings": findings})
    written = write_run_report(tested, evaluation, outcomes)

    files = [*written, PREPARED_PAGE]  # not in the fit, which a change of that page would make stale
    log_to_model(model.sha256, {f"test_{name}": value for name, value in metrics.items()}, files)
    print(report.headline())


def run_test(params: Params) -> Tested:
    """Run the model on the test images."""
    system, model = read_model()
    split = read_split("test")
    asked, inputs = system, split
    if isinstance(system, Classifier) and (features := features_of(model, system, "test")) is not None:
        asked = Head(system)  # the outputs of the layers before it are known
        inputs = Split(features, split.labels[: len(features)])  # type: ignore[arg-type]
    loader = EvaluationLoader(inputs, EVALUATION_FACTOR * model.batch_size)
    collected = TestAnswers(model.task)
    trainer = inference_trainer(params.trainer, callbacks=[collected], limit_test_batches=params.debug.test_batches)
    with translate_lightning_errors(params.debug):
        trainer.test(asked, loader, verbose=False)
    answers = collected.gather(system)
    answer = answers.pop(TASKS[model.task].ANSWER).numpy()
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    split = split.first(len(answer))  # a debug run takes fewer images
    return Tested(model, system, split, answer, answers, logged, debug=model.debug or params.debug.shortens)


def outcome_rows(tested: Tested) -> list[dict[str, object]]:
    """One row per test image, for the confusion plot, the gallery and paired comparisons of models."""
    model, split = tested.model, tested.split
    names = read_names("test")[: len(tested.answer)]
    rows = TASKS[model.task].outcome_rows(tested.answer, split.labels, model.classes)
    columns = columns_of_each(tested.others, len(names))
    return [{"file": name, **row, **more} for name, row, more in zip(names, rows, columns, strict=True)]


if __name__ == "__main__":
    run_stage(lambda: main(stage_params("test")))
