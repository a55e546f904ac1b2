"""Run the trained model on a folder of new images, or on the test split if the folder is empty."""

import sys
from collections import Counter
from pathlib import Path

import numpy as np

from refit.artifacts.checked import stage_params
from refit.artifacts.files import as_text, whole_folder, write_csv, write_json
from refit.artifacts.paths import PREDICTIONS
from refit.artifacts.prepared import read_names, read_split
from refit.batches.datamodule import EVALUATION_FACTOR, ImageLoader
from refit.batches.folder import FolderLoader
from refit.data.images import find_images
from refit.inference.predictor import columns_of_each, predict, read_model
from refit.params import Params
from refit.runtime.errors import UserError
from refit.runtime.stage import run_stage
from refit.tasks.task import TASKS
from refit.training.trainer import inference_trainer, translate_lightning_errors


def main(params: Params) -> None:
    system, model = read_model()
    folder, batch_size = Path(params.predict.images), EVALUATION_FACTOR * model.batch_size
    if not folder.is_dir():
        raise UserError(f"predict.images = {str(folder)!r} is not a folder; create it, or set another folder")

    new_images = FolderLoader(list(find_images(folder)), model.color, model.shape[1:], batch_size)
    images = new_images if len(new_images) else ImageLoader(read_split("test"), batch_size)
    trainer = inference_trainer(params.trainer, limit_predict_batches=params.debug.test_batches)
    with translate_lightning_errors(params.debug):
        answers = predict(trainer, system, images, model.task)
    names = [_name(file, folder) for file in new_images.files] if len(new_images) else read_names("test")
    unreadable = [{"file": _name(file, folder), "why": why} for file, why in sorted(new_images.unreadable.items())]
    for bad in unreadable:
        print(f"warning: {bad['file']} is left out: {bad['why']}", file=sys.stderr)
    if not names:
        raise UserError(f"predict.images = {str(folder)!r}: none of its {len(unreadable)} images can be decoded")

    task = TASKS[model.task]
    answer = answers.pop(task.ANSWER).numpy()
    names = names[: len(answer)]  # a debug run predicts fewer
    predictions = task.prediction_rows(answer, model.classes, params.predict.top_k, params.predict.abstain_below)
    columns = columns_of_each(answers, len(names))
    rows = [{"file": name, **row, **more} for name, row, more in zip(names, predictions, columns, strict=True)]
    summary = {
        "model_sha256": model.sha256,
        "images": len(rows),
        "of": "new images" if len(new_images) else "the test split",
        "abstained": sum(row["abstained"] == "yes" for row in rows),
        "predicted": dict(sorted(Counter(str(row["label"]) for row in rows).items())),
        "unreadable": unreadable,
    }
    if model.debug or params.debug.shortens:
        summary["debug"] = True
    with whole_folder(PREDICTIONS) as new:
        write_csv(new / "predictions.csv", rows)
        write_json(new / "summary.json", summary)
        for name, values in answers.items():
            if values.ndim > 1:  # such as embeddings: too wide for a table
                np.save(new / f"{name}.npy", values.numpy())
    count = "1 image" if len(rows) == 1 else f"{len(rows):,} images"
    print(f"predicted {count} ({summary['of']}), abstained on {summary['abstained']}")


def _name(file: Path, folder: Path) -> str:
    return as_text(file.relative_to(folder).as_posix())


if __name__ == "__main__":
    run_stage(lambda: main(stage_params("predict")))
