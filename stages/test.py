"""The model on images it has never seen: figures, tables, pictures and one report."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from refit.artifacts.files import whole_folder, write_csv, write_json
from refit.artifacts.model import read_model
from refit.artifacts.prepared import Split, read_names, read_split
from refit.batches.datamodule import EVALUATION_FACTOR, EvaluationLoader
from refit.evaluation.classification import evaluate, predictions, worst_mistakes
from refit.inference.outputs import Outputs, columns_of_each
from refit.params import Params, load_params
from refit.reports.embeddings import embedding_pictures
from refit.reports.run_report import EVALUATION, write_run_report
from refit.runtime.stage import run_stage
from refit.tracking.loggers import log_to_model
from refit.tracking.runs import model_name
from refit.training.trainer import make_trainer, translate_lightning_errors

READS = ("trainer", "test", "debug")


def main(params: Params) -> None:
    system, model = read_model()
    split = read_split("test")
    loader = EvaluationLoader(split, EVALUATION_FACTOR * model.batch_size)
    collected = Outputs()
    trainer = make_trainer(params.trainer, callbacks=[collected], limit_test_batches=params.debug.test_batches)
    with translate_lightning_errors(params.debug):
        trainer.test(system, loader, verbose=False)
    outputs = collected.gather()
    probabilities: npt.NDArray[np.float32] = outputs.pop("probabilities").numpy()
    split = split.first(len(probabilities))  # all of it, but in a debug run
    debug = model.debug or params.debug.shortens

    report = evaluate(probabilities, split.labels, model.classes, params.test.confidence, params.test.calibration_bins)
    figures = report.test_summary() | {name: float(value) for name, value in trainer.callback_metrics.items()}
    outcomes = _outcomes(probabilities, split, model.classes, columns_of_each(outputs, len(probabilities)))
    trial = {"debug": True} if debug else {}
    write_json(EVALUATION / "test.json", {"tested": model_name(model.sha256), **figures, **trial})
    write_csv(EVALUATION / "outcomes.csv", outcomes)
    with whole_folder(EVALUATION / "tables") as tables:
        write_csv(tables / "classes.csv", report.class_rows())
        write_csv(tables / "reliability.csv", report.reliability_rows())
        write_csv(tables / "roc.csv", report.roc_rows())
        write_csv(tables / "precision_recall.csv", report.precision_recall_rows())
    worst = worst_mistakes(probabilities, split.labels, params.test.worst_mistakes)
    embeddings = embedding_pictures(system, outputs, split, model.classes)
    written = write_run_report(
        report, model, [outcomes[i] for i in worst], split.images[worst], embeddings, debug=debug
    )

    log_to_model(model.sha256, {f"test_{name}": value for name, value in figures.items()}, written)
    print(
        f"test accuracy {report.accuracy:.4f} ({report.accuracy_low:.4f} to {report.accuracy_high:.4f}) "
        f"on {report.images:,} images"
    )


def _outcomes(
    probabilities: npt.NDArray[np.float32], split: Split, classes: Sequence[str], figures: list[dict[str, float]]
) -> list[dict[str, Any]]:
    """A row an image: what the confusion plot, the gallery and paired comparisons of models are made from."""
    return [
        {
            "file": name,
            "actual": classes[label],
            "predicted": classes[best],
            "probability": round(float(row[best]), 6),
            "probability_of_actual": round(float(row[label]), 6),
            **more,
        }
        for name, label, best, row, more in zip(
            read_names("test")[: len(split.labels)],
            split.labels,
            predictions(probabilities),
            probabilities,
            figures,
            strict=True,
        )
    ]


if __name__ == "__main__":
    run_stage(lambda: main(load_params().only(*READS)))
