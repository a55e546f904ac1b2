"""Write the report of a run, its pictures and its page, from the outputs of all stages."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from refit.artifacts.choices import LearningRateChoice, read_batch, read_learning_rate
from refit.artifacts.files import read_json, read_numbers, whole_folder, write_bytes
from refit.artifacts.model import ModelRecord, read_fit_params
from refit.artifacts.paths import FIT, FROZEN_LEARNING_RATE_CURVE, HISTORY, LEARNING_RATE_CURVE, PICTURES, REPORT
from refit.artifacts.prepared import read_info
from refit.evaluation.classification import ClassificationReport
from refit.evaluation.findings import Finding
from refit.reports import plots
from refit.reports.page import Pictures, write_report


def write_run_report(
    report: ClassificationReport,
    model: ModelRecord,
    baselines: Mapping[str, float],
    findings: Sequence[Finding],
    worst: Sequence[dict[str, Any]],
    worst_images: npt.NDArray[np.uint8],
    embeddings: Mapping[str, bytes],
    *,
    debug: bool,
) -> list[Path]:
    """Write the pictures and the page; returns the files for the model's MLflow run: these, and the range test's curve.

    `worst` are the rows of outcomes.csv for the most confident mistakes, `worst_images` their images, uint8 (M, C, H,
    W). `embeddings` are the pictures from refit.reports.embeddings. `debug` marks the page as that of a debug run.
    """
    info, batch, rate = read_info(), read_batch(), read_learning_rate()
    fitted = read_json(FIT, "dvc repro fit")
    pictures = Pictures(
        learning_rate=_range_test(LEARNING_RATE_CURVE, rate),
        frozen_learning_rate=_range_test(FROZEN_LEARNING_RATE_CURVE, rate.frozen),
        training=plots.training_curves(read_numbers(HISTORY), fitted["epoch"]),
        confusion=plots.confusion_matrix(report),
        reliability=plots.reliability_diagram(report),
        curves=plots.roc_and_precision_recall(report),
        mistakes=plots.mistakes_gallery(
            worst_images,
            [row["actual"] for row in worst],
            [row["predicted"] for row in worst],
            [row["probability"] for row in worst],
            report.mistakes,
            report.images,
        ),
    )
    with whole_folder(PICTURES) as folder:
        for name, png in {**vars(pictures), **embeddings}.items():
            if png:
                write_bytes(folder / f"{name}.png", png)
    write_report(
        REPORT,
        report,
        model.sha256,
        baselines,
        findings,
        data={
            "source": info.source,
            "classes": len(info.classes),
            "image": " x ".join(map(str, info.shape)),
            **{f"{name} images": count for name, count in info.counts.items()},
        },
        tuning={
            "effective batch": batch.effective_batch,
            "micro-batch": f"{batch.accumulate_grad_batches} x {batch.micro_batch} on {batch.hardware}",
            "learning rate": rate.learning_rate,
            "chosen by": rate.chosen_by,
            **({"learning rate of the frozen epochs": rate.frozen.learning_rate} if rate.frozen else {}),
        },
        training={
            "best epoch": fitted["epoch"],
            "epochs": fitted["epochs"],
            **{name.replace("val_", "validation "): value for name, value in fitted.items() if name.startswith("val_")},
        },
        mistakes=worst,
        params=read_fit_params(),
        pictures=pictures,
        embeddings=embeddings,
        debug=debug,
    )
    return [LEARNING_RATE_CURVE, REPORT, *sorted(PICTURES.iterdir())]


def _range_test(file: Path, choice: LearningRateChoice | None) -> bytes | None:
    curve = read_numbers(file)
    if choice is None or not curve:
        return None
    rates, losses = [row["learning_rate"] for row in curve], [row["loss"] for row in curve]
    return plots.learning_rate_curve(rates, losses, choice.suggestion, choice.learning_rate)
