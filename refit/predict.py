"""Classify image files with a trained model: a line per image.

A FILE may be a folder: all images in it are classified. A file that cannot be decoded is named on stderr, and the
others are classified all the same. Exit codes: 0 every image was classified; 1 some could not be decoded; 2 there is no
model or no image.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from refit.artifacts.files import as_text, csv_text
from refit.artifacts.paths import MODEL
from refit.data.images import NO_IMAGE, find_others
from refit.inference.predictor import Prediction, Predictor
from refit.runtime.command import command_parser, run_command
from refit.runtime.errors import UserError

TOP = 3  # classes of each image


def main(files: Sequence[Path], model: Path, *, as_csv: bool) -> None:
    predictions = Predictor.load(model).predict(files)
    if not predictions:
        raise UserError(f"{', '.join(map(str, files))}: no images; expected image files, or folders with images")
    for folder in filter(Path.is_dir, files):
        if others := [as_text(str(file.relative_to(folder))) for file in find_others(folder)]:
            names = ", ".join(others[:3]) + (f" and {len(others) - 3:,} more" if len(others) > 3 else "")
            print(f"warning: {folder}: left out {names}: {NO_IMAGE}", file=sys.stderr)
    for bad in (prediction for prediction in predictions if prediction.error):
        print(f"error: {as_text(str(bad.file))}: {bad.error}", file=sys.stderr)
    good = [prediction for prediction in predictions if not prediction.error]
    print(csv_text([_as_row(prediction) for prediction in good]) if as_csv else _as_table(good), end="")
    if len(good) < len(predictions):
        sys.exit(1)


def _as_row(prediction: Prediction) -> dict[str, object]:
    """As in predictions.csv, without `abstained`: params.yaml decides that."""
    row: dict[str, object] = {"file": as_text(str(prediction.file))}
    for place, (label, probability) in enumerate(_top(prediction), start=1):
        end = "" if place == 1 else f"_{place}"
        row |= {f"label{end}": label, f"probability{end}": round(probability, 6)}
    return row | prediction.more


def _as_table(predictions: Sequence[Prediction]) -> str:
    if not predictions:
        return ""
    rows = [["file", "prediction", "probability", *predictions[0].more, "next"]]
    for prediction in predictions:
        (label, probability), *others = _top(prediction)
        numbers = [f"{number:.4g}" for number in prediction.more.values()]
        following = ", ".join(f"{label} {probability:.4f}" for label, probability in others)
        rows.append([as_text(str(prediction.file)), label, f"{probability:.4f}", *numbers, following])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "".join(f"{line.rstrip()}\n" for line in lines)


def _top(prediction: Prediction) -> list[tuple[str, float]]:
    return list(prediction.probabilities.items())[:TOP]


if __name__ == "__main__":
    parser = command_parser()
    parser.add_argument("files", metavar="FILE", nargs="+", type=Path, help="an image file, or a folder of images")
    parser.add_argument("--model", metavar="FOLDER", type=Path, default=MODEL, help="default: %(default)s")
    parser.add_argument("--csv", dest="as_csv", action="store_true", help="print CSV, with six decimals")
    run_command(main, parser)
