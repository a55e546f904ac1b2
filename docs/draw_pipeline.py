"""Draw docs/pipeline.png, the README's picture of the pipeline, from the outputs of the stages.

Run `dvc repro` with the built-in data on a CPU, then `python -m docs.draw_pipeline`. The same results give the same
bytes.
"""

import csv
import json
import pathlib
from typing import Any

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from matplotlib.path import Path

from refit.artifacts.choices import read_batch, read_learning_rate
from refit.artifacts.prepared import Pixels, read_info, read_split
from refit.reports.plots import BLUE, FAINT, GREEN, INK, ORANGE, QUIET, STYLE
from refit.reports.style import percent
from refit.runtime.errors import UserError

PICTURE = pathlib.Path("docs/pipeline.png")
DATA = pathlib.Path("data")
# Inches. The README shows the picture 900 pixels wide, where 8 points are 10 pixels: the smallest letters.
WIDTH, HEIGHT, DPI = 10.0, 2.75, 200
EDGE, CARD, STEP, BOTTOM, TOP, MARGIN = 0.02, 1.46, 1.7, 0.32, 2.73, 0.1
PLOT, PLOT_TOP = CARD - 2 * MARGIN, TOP - 0.83
PLOT_HEIGHT = PLOT_TOP - BOTTOM - 0.38  # leaves room for the x axis's ticks and label
SMALL = {"axes.grid": False, "figure.constrained_layout.use": False, "font.size": 8, "lines.linewidth": 1.5}
SMALL |= {"savefig.dpi": DPI, "axes.labelpad": 2, "xtick.major.size": 2.5, "ytick.major.size": 2.5}
SMALL |= {"xtick.major.pad": 2, "ytick.major.pad": 2}


def main() -> None:
    with matplotlib.style.context(["default", STYLE | SMALL]):
        figure = Figure(figsize=(WIDTH, HEIGHT), facecolor="white")
        canvas = figure.add_axes((0, 0, 1, 1), xlim=(0, WIDTH), ylim=(0, HEIGHT))
        canvas.set_axis_off()
        for place, stage in enumerate((prepare, scale_batch, find_lr, fit, test, predict)):
            edge, left = EDGE + place * STEP, EDGE + place * STEP + MARGIN
            card = FancyBboxPatch((edge, BOTTOM), CARD, TOP - BOTTOM, "round,pad=0,rounding_size=0.07")
            canvas.add_patch(card).set(edgecolor="#BBBBBB", facecolor="white")
            finding, caption = stage(figure, left)
            canvas.text(left, TOP - 0.1, stage.__name__, va="top", size=11, weight="bold")
            canvas.text(left, TOP - 0.36, finding, va="top", size=8.5)
            canvas.text(left, TOP - 0.61, caption, va="top", color=QUIET)
        # `test` and `predict` both follow `fit`, so the last arrow passes below `test`.
        start, end = EDGE + 3 * STEP + CARD / 2, EDGE + 5 * STEP + CARD / 2
        ways = [[(x + CARD, 1.2), (x + STEP - 0.02, 1.2)] for x in EDGE + STEP * np.arange(4)]
        ways.append([(start, BOTTOM), (start, 0.12), (end, 0.12), (end, BOTTOM - 0.02)])
        for way in ways:
            canvas.add_patch(FancyArrowPatch(path=Path(way), arrowstyle="-|>", mutation_scale=11, color=INK, lw=1.3))
        figure.savefig(PICTURE, metadata={"Software": None})


# Each function draws a stage's panel with its left edge at `left` inches. It returns the result and the plot's caption.


def prepare(figure: Figure, left: float) -> tuple[str, str]:
    info, train = read_info(), read_split("train")
    side = PLOT / 5
    for label in range(10):
        for copy, image in enumerate(train.images[train.labels == label][:3]):
            row, column = 2 * copy + label // 5, label % 5
            _draw_image(figure, image, left + column * side, PLOT_TOP - row * side, side - 0.03)
    height, width = info.shape[1:]
    return f"{sum(info.counts.values()):,} images", f"{len(info.classes)} classes, {width} x {height} pixels"


def scale_batch(figure: Figure, left: float) -> tuple[str, str]:
    choice = read_batch()
    axes = _axes(figure, left, PLOT_TOP, PLOT, xlabel="batch size", yticks=[])
    sizes, megabytes = [row["size"] for row in choice.tried], [row["bytes"] / 1e6 for row in choice.tried]
    colours = [GREEN if size == choice.micro_batch else "#8CC3E3" for size in sizes]
    axes.bar_label(axes.bar([str(size) for size in sizes], megabytes, 0.8, color=colours), fmt="{:.1f}", padding=1)
    axes.margins(y=0.12)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="x", length=0)
    return f"{choice.effective_batch} images per step", "memory, MB"


def find_lr(figure: Figure, left: float) -> tuple[str, str]:
    rate = read_learning_rate().learning_rate
    curve = np.genfromtxt(DATA / "tuning/learning_rate.csv", delimiter=",", names=True)
    axes = _axes(figure, left + 0.2, PLOT_TOP, PLOT - 0.2, xlabel="learning rate", xscale="log", yticks=[1, 1.5, 2])
    axes.plot(curve["learning_rate"], curve["loss"], color=BLUE)
    _mark(axes, rate, float(np.interp(rate, curve["learning_rate"], curve["loss"])))
    axes.set_xticks([1e-5, 1e-3, 1e-1], ["10⁻⁵", "10⁻³", "10⁻¹"])
    axes.set_xticks([], minor=True)
    return f"learning rate {rate:.2g}", "loss in the range test"


def fit(figure: Figure, left: float) -> tuple[str, str]:
    kept = json.loads((DATA / "evaluation/fit.json").read_text(encoding="utf-8"))
    history = np.genfromtxt(DATA / "evaluation/history.csv", delimiter=",", names=True)
    axes = _axes(figure, left + 0.32, PLOT_TOP, PLOT - 0.32, xlabel="epoch", yscale="log", xticks=[1, 10, 20, 30])
    for split, colour, height in (("train", ORANGE, 0.24), ("val", BLUE, 0.62)):
        axes.plot(history["epoch"], history[f"{split}_loss"], color=colour)
        axes.text(1, height, split, color=colour, ha="right", transform=axes.transAxes)
    _mark(axes, kept["epoch"], kept["val_loss"])
    axes.set_yticks([1, 0.1, 0.01, 0.001], ["1", "0.1", "0.01", "0.001"])
    axes.set_yticks([], minor=True)
    return f"best epoch {kept['epoch']} of {kept['epochs']}", "loss"


def test(figure: Figure, left: float) -> tuple[str, str]:
    classes, outcomes = read_info().classes, _rows(DATA / "evaluation/outcomes.csv")
    counts = np.zeros((len(classes), len(classes)), int)
    for row in outcomes:
        counts[classes.index(row["actual"]), classes.index(row["predicted"])] += 1
    axes = _axes(figure, left + 0.14, PLOT_TOP, PLOT - 0.14, xlabel="predicted class")
    shown = np.where(counts > 0, np.where(np.eye(len(classes)), 1, 2), 0)
    axes.pcolormesh(shown, cmap=ListedColormap(["#F2F2F2", BLUE, ORANGE]), edgecolors="white", linewidth=0.8)
    axes.set_xticks(np.arange(len(classes)) + 0.5, classes)
    axes.set_yticks(np.arange(len(classes)) + 0.5, classes)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.invert_yaxis()
    right = int(np.trace(counts))
    return f"{percent(right / len(outcomes))} of {len(outcomes)} right", "true class"


def predict(figure: Figure, left: float) -> tuple[str, str]:
    images, rows = read_split("test").images, _rows(DATA / "predictions/predictions.csv")
    if (of := json.loads((DATA / "predictions/summary.json").read_text(encoding="utf-8"))["of"]) != "the test split":
        raise UserError(f"the predictions are of {of}, expected the test split; empty data/new and run: dvc repro")
    surest_first = sorted(range(len(rows)), key=lambda index: -float(rows[index]["probability"]))
    for place, index in enumerate(surest_first[:2] + surest_first[-3:]):
        row, top = rows[index], PLOT_TOP - place * 0.305
        probability, abstained = float(row["probability"]), row["abstained"] == "yes"
        _draw_image(figure, images[index], left, top, 0.27)
        axes = _axes(figure, left + 0.35, top, PLOT - 0.35, 0.27, xlim=(0, 1), ylim=(0, 1))
        axes.set_axis_off()
        axes.barh(0.12, [1, probability], 0.24, color=[FAINT, ORANGE if abstained else BLUE])
        axes.text(0, 0.98, row["label"], va="top", weight="bold")
        axes.text(1, 0.98, percent(probability), va="top", ha="right")
    return f"{sum(row['abstained'] == 'yes' for row in rows)} of {len(rows)} abstained", "most and least certain"


def _draw_image(figure: Figure, image: Pixels, left: float, top: float, side: float) -> None:
    """Draw a grey image, uint8 (1, H, W), dark on white."""
    axes = _axes(figure, left, top, side, side, xticks=[], yticks=[])
    axes.imshow(image[0], cmap="gray_r", vmin=0, vmax=255, interpolation="nearest")
    axes.spines[:].set(visible=True, color=FAINT)


def _axes(figure: Figure, left: float, top: float, width: float, height: float = PLOT_HEIGHT, **look: Any) -> Axes:
    """Axes placed in inches."""
    return figure.add_axes((left / WIDTH, (top - height) / HEIGHT, width / WIDTH, height / HEIGHT), **look)


def _mark(axes: Axes, x: float, y: float) -> None:
    """Mark a stage's choice by a green dot on the curve and a dashed line through it."""
    axes.axvline(x, color=GREEN, linewidth=1, linestyle=(0, (4, 2)))
    axes.plot(x, y, "o", color=GREEN, markersize=5)


def _rows(path: pathlib.Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


if __name__ == "__main__":
    main()
