"""Write the report of a run, its pictures and its page, from the outputs of all stages."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from refit.artifacts.choices import BatchChoice, LearningRateChoice, read_batch, read_learning_rate
from refit.artifacts.files import read_json, read_numbers, whole_folder, write_bytes
from refit.artifacts.model import read_fit_params
from refit.artifacts.paths import FIT, FROZEN_LEARNING_RATE_CURVE, HISTORY, LEARNING_RATE_CURVE, PICTURES, REPORT
from refit.artifacts.prepared import read_info
from refit.evaluation.tested import Evaluation, Tested
from refit.reports import plots
from refit.reports.page import write_report
from refit.reports.sections import SECTIONS


def write_run_report(
    tested: Tested, evaluation: Evaluation[Any], outcomes: Sequence[Mapping[str, object]]
) -> list[Path]:
    """Write the pictures and the page; returns the files for the model's MLflow run: these, and the range test's curve.

    `outcomes` are the rows of outcomes.csv.
    """
    info, batch, rate = read_info(), read_batch(), read_learning_rate()
    fitted = read_json(FIT, "dvc repro fit")
    section = SECTIONS[tested.model.task](tested, evaluation, outcomes)
    pictures = {
        "training": plots.training_curves(read_numbers(HISTORY), fitted["epoch"]),
        **_range_test("learning_rate", LEARNING_RATE_CURVE, rate),
        **_range_test("frozen_learning_rate", FROZEN_LEARNING_RATE_CURVE, rate.frozen),
    }
    with whole_folder(PICTURES) as folder:
        for name, png in {**pictures, **section.pictures}.items():
            write_bytes(folder / f"{name}.png", png)
    write_report(
        REPORT,
        section,
        tested.model.sha256,
        evaluation.findings,
        data={
            "source": info.source,
            "classes": len(info.classes),
            "image": " x ".join(map(str, info.shape)),
            **{f"{name} images": count for name, count in info.counts.items()},
        },
        tuning=_tuning(batch, rate),
        training={
            **_fitted(fitted),
            **{name.replace("val_", "validation "): value for name, value in fitted.items() if name.startswith("val_")},
        },
        params=read_fit_params(),
        pictures=pictures,
        debug=tested.debug,
    )
    return [LEARNING_RATE_CURVE, REPORT, *sorted(PICTURES.iterdir())]


def _fitted(fitted: Mapping[str, Any]) -> dict[str, object]:
    if "l2" in fitted:
        return {"layers": "the head alone", "L2 penalty": fitted["l2"], "penalties tried": fitted["epochs"]}
    return {"best epoch": fitted["epoch"], "epochs": fitted["epochs"]}


def _tuning(batch: BatchChoice, rate: LearningRateChoice) -> dict[str, object]:
    if rate.chosen_by == "head":
        return {"not needed": "the head alone is trained, on all images at once"}
    return {
        "effective batch": batch.effective_batch,
        "micro-batch": f"{batch.accumulate_grad_batches} x {batch.micro_batch} on {batch.hardware}",
        "learning rate": rate.learning_rate,
        "chosen by": rate.chosen_by,
        **({"learning rate of the frozen epochs": rate.frozen.learning_rate} if rate.frozen else {}),
    }


def _range_test(name: str, file: Path, choice: LearningRateChoice | None) -> dict[str, bytes]:
    """The picture of a range test by its name; empty if there was none."""
    curve = read_numbers(file)
    if choice is None or not curve:
        return {}
    rates, losses = [row["learning_rate"] for row in curve], [row["loss"] for row in curve]
    return {name: plots.learning_rate_curve(rates, losses, choice.suggestion, choice.learning_rate)}
