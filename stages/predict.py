"""Run the trained model on a folder of new images, or on the test split if the folder is empty."""

import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from refit.artifacts.checked import stage_params
from refit.artifacts.files import as_text, whole_folder, write_csv, write_json
from refit.artifacts.paths import PREDICTIONS, PREDICTIONS_PAGE, PREDICTIONS_SUMMARY, repository_root
from refit.artifacts.prepared import read_names, read_split
from refit.batches.datamodule import EVALUATION_FACTOR, ImageLoader
from refit.batches.new_images import NewImages
from refit.data.sources.unlabelled import unlabelled
from refit.inference.predictor import columns_of_each, predict, read_model
from refit.params import Params
from refit.reports.predictions import least_certain, listed, never_in_doubt, write_predictions_page
from refit.runtime.errors import UserError
from refit.runtime.stage import run_stage
from refit.tasks.task import TASKS
from refit.training.trainer import inference_trainer, translate_lightning_errors

WARNED = 20  # files left out; the rest is counted


def main(params: Params) -> None:
    system, model = read_model()
    batch_size = EVALUATION_FACTOR * model.batch_size
    found, left_out = unlabelled(params.predict.images)
    new_images = NewImages(found, model.color, model.shape[1:], model.resize, batch_size)
    test = None if len(new_images) else read_split("test")
    images = new_images if test is None else ImageLoader(test, batch_size)
    trainer = inference_trainer(params.trainer, limit_predict_batches=params.debug.test_batches)
    with translate_lightning_errors(params.debug):
        answers = predict(trainer, system, images, model.task)
    names = [image.name for image in new_images.decoded] if test is None else read_names("test")
    unreadable = _left_out({**new_images.unreadable, **{gone.name: gone.why for gone in left_out}})
    if not names:
        bad = len(new_images.unreadable)
        raise UserError(f"predict.images = {params.predict.images!r}: none of its {bad} images can be decoded")

    task = TASKS[model.task]
    answer = answers.pop(task.ANSWER).numpy()
    names = names[: len(answer)]  # a debug run predicts fewer
    below = params.predict.abstain_below
    predictions = task.prediction_rows(answer, model.classes, params.predict.top_k, below)
    columns = columns_of_each(answers, len(names))
    rows = [{"file": name, **row, **more} for name, row, more in zip(names, predictions, columns, strict=True)]
    of = "the test split" if test else "new images"
    summary = {
        "model_sha256": model.sha256,
        "images": len(rows),
        "model_knows": listed(model.classes),
        "of": of,
        "abstained": sum(row["abstained"] == "yes" for row in rows),
        "predicted": dict(sorted(Counter(str(row["label"]) for row in rows).items())),
        "unreadable": unreadable,
    }
    debug = model.debug or params.debug.shortens
    summary |= {"debug": True} if debug else {}
    shown = least_certain(rows)
    pixels = test.images[shown] if test else new_images.decode([new_images.decoded[i] for i in shown])
    with whole_folder(PREDICTIONS) as new:
        write_csv(new / "predictions.csv", rows)
        write_json(new / PREDICTIONS_SUMMARY.name, summary)
        write_predictions_page(new / PREDICTIONS_PAGE.name, rows, pixels, model, of, unreadable, below, debug=debug)
        for name, values in answers.items():
            if values.ndim > 1:  # such as embeddings: too wide for a table
                np.save(new / f"{name}.npy", values.numpy())
    if never := never_in_doubt(below, len(model.classes)):
        print(f"note: {never}; to mark doubtful ones, raise it")
    count = "1 image" if len(rows) == 1 else f"{len(rows):,} images"
    print(f"predicted {count} ({of}) as one of {listed(model.classes)}; abstained on {summary['abstained']}")
    print(f"thumbnails, least certain first: {PREDICTIONS_PAGE}")
    if repository_root() == Path.cwd():  # not in the copy of a queued experiment
        print("the result of the whole run: make summary")


def _left_out(reasons: Mapping[str, str]) -> list[dict[str, str]]:
    """The files that get no prediction, each with the reason; warns of them."""
    left_out = [{"file": as_text(name), "why": why} for name, why in sorted(reasons.items())]
    for bad in left_out[:WARNED]:
        print(f"warning: {bad['file']} is left out: {bad['why']}", file=sys.stderr)
    if len(left_out) > WARNED:
        more = f"{len(left_out) - WARNED:,} more files are left out"
        print(f"warning: {more}; {PREDICTIONS_SUMMARY} names all", file=sys.stderr)
    return left_out


if __name__ == "__main__":
    run_stage(lambda: main(stage_params("predict")))
