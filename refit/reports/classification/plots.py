"""Pictures of a classifier's test, each as the bytes of a PNG file."""

import math
import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from refit.evaluation.classification.report import ClassificationReport, CurvePoint
from refit.reports.plots import BLUE, DPI, INK, ORANGE, QUIET, WIDTH, as_png, headline
from refit.reports.style import percent

MOST_CLASSES_WITH_COUNTS = 20
FEW = 10  # mistakes


@as_png
def confusion_matrix(report: ClassificationReport) -> Figure:
    """Test images by true class (rows) and predicted class (columns); the colour is the share of the row."""
    names = [row.name for row in report.classes]
    counts = np.array(report.confusion)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = float(np.clip(3.2 + 0.36 * len(names), 5.6, 13))
    figure = Figure(figsize=(side + 0.9, side + 0.6))
    axes = figure.subplots()
    # A square-root scale, so that a few mistakes among hundreds are visible.
    scale = PowerNorm(0.5, 0, 1)
    right, wrong = ScalarMappable(scale, colormaps["Blues"]), ScalarMappable(scale, colormaps["Oranges"])
    diagonal = np.eye(len(names), dtype=bool)[..., None]
    colours = np.where(diagonal, right.to_rgba(shares), wrong.to_rgba(shares))
    colours[counts == 0] = (0.975, 0.975, 0.975, 1)
    axes.imshow(colours, interpolation="nearest")
    axes.set_anchor("NW")
    if len(names) <= MOST_CLASSES_WITH_COUNTS:
        _write_counts(axes, counts, shares, 10 if len(names) <= 12 else 8)
    else:
        for place, mappable, label in ((1.02, wrong, "wrong"), (1.02 + 1.4 / side, right, "right")):
            bar = figure.colorbar(mappable, cax=axes.inset_axes((place, 0.6, 0.02, 0.4)))
            bar.set_ticks([0, 0.02, 0.1, 0.25, 0.5, 1], labels=["0", "2 %", "10 %", "25 %", "50 %", "100 %"])
            bar.set_label(f"{label}, share of the row", color=INK)
    size = float(np.clip(75 * side / 13 / len(names) * 7, 5, 9.5))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_ticks(range(len(names)), [_short(name, 20) for name in names], fontsize=size)
    if max(len(_short(name, 20)) for name in names) * len(names) * 0.075 > side - 1.5:
        axes.tick_params(axis="x", labelrotation=90)
    axes.set_xticks(np.arange(1, len(names)) - 0.5, minor=True)
    axes.set_yticks(np.arange(1, len(names)) - 0.5, minor=True)
    axes.grid(visible=False, which="major")
    axes.grid(which="minor", color="white", linewidth=1.2 if len(names) <= MOST_CLASSES_WITH_COUNTS else 0.3)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    axes.set_title(textwrap.fill(_most_frequent_mistake(names, counts), int((side - 1.2) * 12)))  # as wide as the axes
    headline(figure, accuracy_finding(report))
    return figure


@as_png
def reliability_diagram(report: ClassificationReport) -> Figure:
    """Accuracy by confidence, bin by bin, above a histogram of the confidence."""
    figure = Figure(figsize=(7.2, 6.6))
    axes, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    filled = [row for row in report.reliability if row.images]
    left = [row.low for row in filled]
    width = 1 / len(report.reliability)
    heights = [row.accuracy or 0.0 for row in filled]
    confidence = [row.confidence or 0.0 for row in filled]
    bars = {"width": width, "align": "edge", "linewidth": 0.8}
    axes.bar(left, heights, color="#8CC3E3", edgecolor="white", **bars)
    gaps = [c - a for c, a in zip(confidence, heights, strict=True)]
    axes.bar(left, gaps, bottom=heights, color="none", edgecolor=ORANGE, hatch="////", **bars)
    axes.plot([0, 1], [0, 1], color=QUIET, linewidth=1.2, linestyle=(0, (4, 2)))
    axes.set_title("Bar: accuracy. Hatched: gap to confidence. Dashed: perfect calibration")
    axes.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy in the bin")
    axes.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
    counts = below.bar(left, [row.images for row in filled], color=QUIET, edgecolor="white", **bars)
    if len(report.reliability) <= 20:
        below.bar_label(counts, fmt="{:,.0f}", fontsize=8, color=QUIET)
    below.margins(y=0.15)
    below.set_ylabel("images")
    below.set_xlabel("confidence: probability of the predicted class")
    below.xaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
    below.yaxis.set_major_locator(MaxNLocator(3, integer=True, min_n_ticks=1))
    headline(figure, calibration_finding(report))
    return figure


@as_png
def roc_and_precision_recall(report: ClassificationReport) -> Figure:
    """One-vs-rest curves: the mean over the classes, and the range from the worst to the best class."""
    figure = Figure(figsize=(WIDTH, 4.7))
    roc, precision_recall = figure.subplots(1, 2)
    _one_vs_rest(roc, report.roc, "false positive rate", "true positive rate")
    roc.plot([0, 1], [0, 1], color=QUIET, linewidth=1.2, linestyle=(0, (4, 2)))
    roc.text(0.62, 0.56, "chance", color=QUIET)
    _one_vs_rest(precision_recall, report.precision_recall, "recall", "precision")
    area = _mean([row.roc_auc for row in report.classes])
    precision = _mean([row.average_precision for row in report.classes])
    roc.set_title("ROC" + (f": mean AUC {area:.4f}" if area is not None else ""))
    precision_recall.set_title(
        "Precision-recall" + (f": mean average precision {precision:.4f}" if precision is not None else "")
    )
    headline(figure, separation_finding(report))
    return figure


@as_png
def mistakes_gallery(
    images: NDArray[np.uint8],
    truth: Sequence[str],
    predicted: Sequence[str],
    probability: Sequence[float],
    mistakes: int,
    tested: int,
) -> Figure:
    """The M most confident mistakes, the most confident first.

    images: (M, C, H, W), C = 1 (grey) or 3 (RGB). probability: of the predicted class.
    mistakes: the number of all mistakes. tested: the number of test images.
    """
    shown = len(images)
    if shown == 0:
        figure = Figure(figsize=(WIDTH, 1.6))
        words = f"No mistakes among {tested:,} test images" if mistakes == 0 else f"{mistakes:,} mistakes, none shown"
        figure.text(0.5, 0.5, words, ha="center", va="center", fontsize=14, color=QUIET)
        return figure
    columns = 4
    rows = math.ceil(shown / columns)
    tile = WIDTH / columns
    figure = Figure(figsize=(WIDTH, rows * (tile + 0.42) + 0.5))
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    enlarged = max(images.shape[2:]) <= tile * DPI
    for axes in grid:
        axes.set_axis_off()
    for axes, image, true, wrong, p in zip(grid, images, truth, predicted, probability, strict=False):
        pixels = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
        axes.imshow(pixels, cmap="gray", vmin=0, vmax=255, interpolation="nearest" if enlarged else "auto")
        letters = int(tile * 11)  # width of a tile
        axes.set_title(f"true: {_short(true, letters - 6)}", color=INK, loc="left", pad=16, fontsize=9.5)
        note = f"pred.: {_short(wrong, letters - 14)}, {percent(p, 0)}"
        axes.text(0, 1.035, note, color=ORANGE, fontsize=9.5, transform=axes.transAxes)
    which = "One mistake" if mistakes == 1 else f"{mistakes:,} mistakes"
    if shown < mistakes:
        which = f"The {shown} most confident of {which}"
    headline(figure, f"{which} among {tested:,} test images")
    return figure


def accuracy_finding(report: ClassificationReport) -> str:
    interval = (
        f"{report.confidence * 100:g} % interval {percent(report.accuracy_low)} to {percent(report.accuracy_high)}"
    )
    return f"{percent(report.accuracy)} accuracy on {report.images:,} test images ({interval})"


def calibration_finding(report: ClassificationReport) -> str:
    gap = report.mean_confidence - report.accuracy
    verdict = f"{'Over' if gap > 0 else 'Under'}confident by {abs(gap) * 100:.1f} percentage points"
    if abs(gap) < 0.005:
        verdict = "Confidence matches accuracy"
    means = f"mean confidence {percent(report.mean_confidence)}, accuracy {percent(report.accuracy)}"
    few = "1 mistake says" if report.mistakes == 1 else f"{report.mistakes} mistakes say"
    caution = f". {few} little about it: each gap comes from a few images" if report.mistakes < FEW else ""
    return f"{verdict}: {means} (ECE {report.ece:.3f}){caution}"


def separation_finding(report: ClassificationReport) -> str:
    scored = [(row.average_precision, row.name) for row in report.classes if row.average_precision is not None]
    if not scored:
        return "Undefined: all test images are of the same class"
    worst, name = min(scored)
    if worst == 1:
        return "Every class is separated from the rest: all average precisions are 1"
    return f"Hardest class to separate from the rest: {_short(name, 30)} (average precision {worst:.3f})"


def _write_counts(axes: Axes, counts: NDArray[np.int64], shares: NDArray[np.float64], size: float) -> None:
    for (row, column), count in np.ndenumerate(counts):
        if count:
            colour = "white" if shares[row, column] > 0.3 else INK
            axes.text(column, row, f"{count:,}", ha="center", va="center", color=colour, fontsize=size)


def _most_frequent_mistake(names: Sequence[str], counts: NDArray[np.int64]) -> str:
    wrong = counts - np.diag(np.diag(counts))
    if not wrong.any():
        return "No mistakes"
    row, column = divmod(int(np.argmax(wrong)), len(names))
    colours = "Blue: right. Orange: wrong. Darker: a larger share of the row"
    if wrong.max() == 1:
        return f"{colours}. No pair of classes is confused more than once"
    pair = f"{_short(names[row], 20)} predicted as {_short(names[column], 20)}"
    return f"{colours}. Most frequent mistake: {pair}, {wrong.max():,} times"


def _one_vs_rest(axes: Axes, points: Sequence[CurvePoint], x_label: str, y_label: str) -> None:
    x = [point.x for point in points]
    axes.fill_between(x, [p.lowest for p in points], [p.highest for p in points], color="#BFDDF0", linewidth=0)
    axes.plot(x, [p.macro for p in points], color=BLUE)
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), xlabel=x_label, ylabel=y_label, aspect="equal", anchor="N")
    if points:
        axes.text(0.3, 0.12, "line: mean of the classes\nband: worst to best class", color=BLUE)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _short(name: str, most: int) -> str:
    """A name on one line, shortened in the middle if it has more than `most` characters."""
    name = " ".join(name.split())
    if len(name) <= most:
        return name
    return f"{name[: most // 2]}…{name[len(name) - (most - 1) // 2 :]}"
