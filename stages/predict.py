"""The trained model on new images: a folder of them, or the test split where the folder holds none."""

import sys
from collections import Counter
from pathlib import Path

import numpy as np
import numpy.typing as npt

from refit.artifacts.files import as_text, whole_folder, write_csv, write_json
from refit.artifacts.model import read_model
from refit.artifacts.prepared import read_names, read_split
from refit.batches.datamodule import EVALUATION_FACTOR, EvaluationLoader
from refit.batches.folder import FolderLoader
from refit.data.images import find_images
from refit.inference.outputs import columns_of_each, predict_each
from refit.params import Params, load_params
from refit.runtime.errors import UserError
from refit.runtime.stage import run_stage

READS = ("trainer", "predict", "debug")
PREDICTIONS = Path("data/predictions")

Floats = npt.NDArray[np.float32]


def main(params: Params) -> None:
    system, model = read_model()
    folder, batch_size = Path(params.predict.images), EVALUATION_FACTOR * model.batch_size
    if not folder.is_dir():
        raise UserError(f"predict.images = {str(folder)!r} is not a folder; create it, or name another")

    new_images = FolderLoader(list(find_images(folder)), model.color, model.shape[1:], batch_size)
    loader = new_images if len(new_images) else EvaluationLoader(read_split("test"), batch_size)
    collected = predict_each(system, loader, params.trainer, params.debug)
    names = [_name(file, folder) for file in new_images.files] if len(new_images) else read_names("test")
    unreadable = [{"file": _name(file, folder), "why": why} for file, why in sorted(new_images.unreadable.items())]
    for bad in unreadable:
        print(f"warning: {bad['file']} is left out: {bad['why']}", file=sys.stderr)
    if not names:
        raise UserError(f"predict.images = {str(folder)!r}: none of its {len(unreadable)} images can be decoded")

    outputs = collected.gather()
    probabilities = outputs.pop("probabilities").numpy()
    names = names[: len(probabilities)]  # all of them, but in a debug run
    rows = [
        _row(name, row, model.classes, params.predict.top_k, params.predict.abstain_below) | more
        for name, row, more in zip(names, probabilities, columns_of_each(outputs, len(names)), strict=True)
    ]
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
        for name, values in outputs.items():
            if values.ndim > 1:  # such as embeddings: too wide for a table
                np.save(new / f"{name}.npy", values.numpy())
    images = "1 image" if len(rows) == 1 else f"{len(rows):,} images"
    print(f"predicted {images} ({summary['of']}), abstained on {summary['abstained']}")


def _row(name: str, probabilities: Floats, classes: list[str], top_k: int, abstain_below: float) -> dict[str, object]:
    """One line of predictions.csv: the most probable class first, then those that follow it."""
    best = np.argsort(-probabilities, kind="stable")[:top_k]
    top = float(probabilities[best[0]])
    row: dict[str, object] = {
        "file": name,
        "label": classes[best[0]],
        "probability": round(top, 6),
        "abstained": "yes" if top < abstain_below else "no",
    }
    for place, index in enumerate(best[1:], start=2):
        row |= {f"label_{place}": classes[index], f"probability_{place}": round(float(probabilities[index]), 6)}
    return row


def _name(file: Path, folder: Path) -> str:
    return as_text(file.relative_to(folder).as_posix())


if __name__ == "__main__":
    run_stage(lambda: main(load_params().only(*READS)))
