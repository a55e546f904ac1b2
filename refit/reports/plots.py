"""Pictures of a run, each as the bytes of a PNG file.

The same values give the same bytes: a file contains no time and no version, the font is the one that comes with
matplotlib, and the user's own matplotlib settings are ignored. The colours are those of Okabe and Ito (2008), which
colour-blind people can distinguish.
"""

import functools
import io
import math
import textwrap
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import ParamSpec

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from refit.reports.style import percent

DPI = 150
WIDTH = 8.0  # inches
BLUE, ORANGE, GREEN, INK, QUIET, FAINT = "#0072B2", "#D55E00", "#009E73", "#222222", "#6B6B6B", "#DDDDDD"
STYLE = {
    "axes.edgecolor": QUIET,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "axes.titlecolor": QUIET,
    "figure.constrained_layout.use": True,
    "figure.dpi": DPI,
    "figure.titlesize": 12.5,
    "figure.titleweight": "bold",
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.8,
    "savefig.dpi": DPI,
    "text.color": INK,
    "text.parse_math": False,  # a class may be named $x$
    "xtick.color": QUIET,
    "xtick.labelcolor": INK,
    "ytick.color": QUIET,
    "ytick.labelcolor": INK,
}
Arguments = ParamSpec("Arguments")


def as_png(draw: Callable[Arguments, Figure]) -> Callable[Arguments, bytes]:
    """Draw in Refit's style, ignoring the user's settings, and return the bytes of a PNG file."""

    @functools.wraps(draw)
    def png(*args: Arguments.args, **kwargs: Arguments.kwargs) -> bytes:
        with matplotlib.style.context(["default", STYLE]), warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font")  # drawn as a box
            figure = draw(*args, **kwargs)
            content = io.BytesIO()
            figure.savefig(content, format="png", bbox_inches="tight", pad_inches=0.12, metadata={"Software": None})
        return content.getvalue()

    return png


@as_png
def training_curves(history: Sequence[Mapping[str, float | None]], best_epoch: int) -> Figure:
    """Loss, accuracy and learning rate by epoch; if the head was trained alone, the L2 penalty in place of the rate.

    history: one row per epoch with epoch, train_loss, val_loss, learning_rate or l2, and train_accuracy and
    val_accuracy if they were measured; None is not drawn. best_epoch: the epoch whose weights became the model.
    """
    figure = Figure(figsize=(WIDTH, 7))
    has_accuracy = any("val_accuracy" in row for row in history)
    if has_accuracy:
        loss, accuracy, rate = figure.subplots(3, 1, sharex=True, height_ratios=[3, 3, 1.3])
        _series(accuracy, history, {"train_accuracy": ("train", ORANGE), "val_accuracy": ("validation", BLUE)})
        accuracy.set_title("Accuracy")
        accuracy.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
        _vertical_line(accuracy, best_epoch, "", GREEN)
    else:
        loss, rate = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1.3])
    _series(loss, history, {"train_loss": ("train", ORANGE), "val_loss": ("validation", BLUE)})
    of_head = any("l2" in row for row in history)
    _series(rate, history, {"l2" if of_head else "learning_rate": ("", QUIET)})
    loss.set_title("Loss, nats per image" if has_accuracy else "Loss")
    step = "penalty" if of_head else "epoch"
    rate.set_title("L2 penalty" if of_head else "Learning rate at the first step of each epoch")
    rate.set_yscale("log" if of_head else "linear")
    rate.yaxis.set_major_formatter(_plain)
    rate.set_xlabel("number of the penalty" if of_head else "epoch")
    rate.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    for axes, label in ((loss, "best"), (rate, "")):
        _vertical_line(axes, best_epoch, label, GREEN)

    best = next((row for row in history if row["epoch"] == best_epoch), {})
    metrics = (("accuracy", best.get("val_accuracy"), percent), ("loss", best.get("val_loss"), "{:.3g}".format))
    finding = ", ".join(f"{name} {show(value)}" for name, value, show in metrics if value is not None)
    headline(figure, f"Best {step} {best_epoch} of {len(history)}" + (f": validation {finding}" if finding else ""))
    return figure


@as_png
def learning_rate_curve(
    learning_rates: Sequence[float], losses: Sequence[float], suggestion: float | None, chosen: float
) -> Figure:
    """Loss by learning rate in the range test of find_lr. suggestion: None if the test suggests no learning rate."""
    figure = Figure(figsize=(WIDTH, 4.2))
    axes = figure.subplots()
    points = [(x, y) for x, y in zip(learning_rates, losses, strict=True) if math.isfinite(y)]
    if points:
        axes.plot(*zip(*points, strict=True), color=BLUE)
        # The range test continues until the loss diverges; that part would flatten the rest of the curve.
        finite = [y for _, y in points]
        least = finite.index(min(finite))
        highest = max(finite[: least + 1] if least else finite)
        pad = 0.06 * (highest - finite[least]) or 0.1
        axes.set_ylim(finite[least] - pad, highest + pad)
    rates = [x for x, _ in points] + [chosen] + ([] if suggestion is None else [suggestion])
    axes.set_xlim(min(rates) / 2, max(rates) * 2)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(_plain)
    axes.set_xlabel("learning rate")
    axes.set_ylabel("training loss, nats per image")
    if suggestion is not None and suggestion != chosen:
        _vertical_line(axes, suggestion, f"suggested {suggestion:.3g}", ORANGE, on_left=suggestion < chosen)
    _vertical_line(axes, chosen, f"used {chosen:.3g}", GREEN, on_left=suggestion is not None and chosen < suggestion)
    if suggestion is None:
        headline(figure, f"The range test suggests no learning rate; training uses {chosen:.3g}")
    elif suggestion == chosen:
        headline(figure, f"Learning rate {chosen:.3g}, suggested by the range test")
    else:
        headline(figure, f"Training uses {chosen:.3g}; the range test suggests {suggestion:.3g}")
    return figure


def _series(axes: Axes, history: Sequence[Mapping[str, float | None]], lines: Mapping[str, tuple[str, str]]) -> None:
    """Draw the columns of `lines`, each with a label at its end."""
    ends = []
    for key, (label, colour) in lines.items():
        points = [(row["epoch"], y) for row in history if (y := row.get(key)) is not None and math.isfinite(y)]
        if points:
            axes.plot(*zip(*points, strict=True), color=colour, marker="o" if len(points) <= 40 else "", markersize=3)
            ends.append((points[-1][1], label, colour))
    axes.margins(x=0.02)
    low, high = axes.get_ylim()
    height = -math.inf
    for index, (y, label, colour) in enumerate(sorted(ends)):
        room = 0.97 - 0.1 * (len(ends) - 1 - index)  # keeps labels apart and inside the panel
        height = max(min((y - low) / (high - low), room), height + 0.1)
        axes.text(1.01, height, label, color=colour, va="center", transform=axes.transAxes)


def _vertical_line(axes: Axes, x: float, label: str, colour: str, *, on_left: bool = False) -> None:
    """Draw a dashed vertical line with a label at its top."""
    axes.axvline(x, color=colour, linewidth=1.2, linestyle=(0, (4, 2)), zorder=1)
    axes.annotate(
        label,
        (x, 0.94),
        (-5 if on_left else 5, 0),
        xycoords=axes.get_xaxis_transform(),
        textcoords="offset points",
        ha="right" if on_left else "left",
        color=colour,
    )


def _plain(value: float, _: float) -> str:
    """Format a tick as a plain number, without a power of ten beside the axis."""
    return f"{value:g}"


def headline(figure: Figure, finding: str) -> None:
    """Write the finding above the picture, wrapped to its width."""
    letters = int(figure.get_figwidth() * 9.2)
    figure.suptitle("\n".join(textwrap.wrap(finding, letters)), x=0.012, ha="left")
