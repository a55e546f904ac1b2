"""Figures against hand-computed and independent values; pictures and page: the same bytes anywhere, all escaped."""

import io
import json
import math
import os
import subprocess
import sys
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from pytorch_lightning import LightningModule
from torchmetrics.functional import classification as independent

from refit.artifacts.prepared import Split
from refit.evaluation.classification import (
    CURVE_POINTS,
    ClassificationReport,
    evaluate,
    wilson_interval,
    worst_mistakes,
)
from refit.reports import plots
from refit.reports.embeddings import embedding_pictures
from refit.reports.page import Pictures, write_report
from refit.runtime.errors import UserError
from refit.tasks.classification import predictions

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

HISTORY: list[dict[str, float | None]] = [
    {
        "epoch": 1.0,
        "train_loss": 2.0,
        "val_loss": 1.8,
        "train_accuracy": 0.3,
        "val_accuracy": 0.4,
        "learning_rate": 0.1,
    },
    {
        "epoch": 2.0,
        "train_loss": 1.0,
        "val_loss": 1.1,
        "train_accuracy": 0.8,
        "val_accuracy": 0.7,
        "learning_rate": 0.2,
    },
]


def report_of(probabilities: Floats, labels: Ints, bins: int = 10) -> ClassificationReport:
    return evaluate(probabilities, labels, [f"class {i}" for i in range(probabilities.shape[1])], 0.95, bins)


def four_images() -> tuple[Floats, Ints]:
    rows = [[0.4, 0.3, 0.3], [0.45, 0.3, 0.25], [0.8, 0.1, 0.1], [0.6, 0.2, 0.2]]
    return np.array(rows, np.float32), np.array([0, 1, 0, 2])


def random_images(images: int, classes: int) -> tuple[Floats, Ints]:
    generator = np.random.default_rng(0)
    labels = generator.integers(0, classes, images)
    logits = generator.normal(size=(images, classes))
    logits[np.arange(images), labels] += 1.5
    odds = np.exp(logits)
    return (odds / odds.sum(axis=1, keepdims=True)).astype(np.float32), labels


def test_the_interval_of_eight_right_in_ten_is_wilsons() -> None:
    assert wilson_interval(8, 10, 0.95) == pytest.approx((0.4901625, 0.9433178), abs=1e-6)


def test_the_interval_of_a_perfect_score_ends_at_one_and_keeps_doubt_below() -> None:
    low, high = wilson_interval(360, 360, 0.95)
    assert high == 1.0
    assert low == pytest.approx(360 / (360 + 1.959964**2), abs=1e-6)
    assert wilson_interval(0, 360, 0.95) == pytest.approx((0.0, 1 - low))


def test_figures_of_four_images_are_those_worked_out_by_hand() -> None:
    report = report_of(*four_images(), bins=2)
    assert report.accuracy == 0.5
    assert report.loss == pytest.approx(-(math.log(0.4) + math.log(0.3) + math.log(0.8) + math.log(0.2)) / 4)
    assert report.ece == pytest.approx((2 * abs(0.425 - 0.5) + 2 * abs(0.7 - 0.5)) / 4)
    assert report.brier == pytest.approx((0.54 + 0.755 + 0.06 + 1.04) / 4)
    assert report.macro_f1 == pytest.approx((2 / 3 + 0 + 0) / 3)
    assert report.confusion == ((2, 0, 0), (1, 0, 0), (1, 0, 0))
    assert [row.precision for row in report.classes] == [0.5, None, None]
    assert [row.recall for row in report.classes] == [1.0, 0.0, 0.0]
    assert [row.images for row in report.classes] == [2, 1, 1]
    assert [(row.images, row.accuracy) for row in report.reliability] == [(2, 0.5), (2, 0.5)]


def test_figures_agree_with_torchmetrics() -> None:
    probabilities, labels = random_images(500, 5)
    report = report_of(probabilities, labels, bins=15)
    p, y = torch.from_numpy(probabilities), torch.from_numpy(labels)
    assert report.accuracy == pytest.approx(float(independent.multiclass_accuracy(p, y, 5, average="micro")))
    assert report.macro_f1 == pytest.approx(float(independent.multiclass_f1_score(p, y, 5, average="macro")))
    assert report.ece == pytest.approx(float(independent.multiclass_calibration_error(p, y, 5, n_bins=15)), rel=1e-5)
    areas = independent.multiclass_auroc(p, y, 5, average=None)
    assert [row.roc_auc for row in report.classes] == pytest.approx(areas.tolist(), rel=1e-5)
    precisions = independent.multiclass_average_precision(p, y, 5, average=None)
    assert [row.average_precision for row in report.classes] == pytest.approx(precisions.tolist(), rel=1e-5)


def test_curves_are_those_of_two_classes_worked_out_by_hand() -> None:
    """Scores of class 1, from the highest: right, wrong, right. So for class 1, and turned round for class 0."""
    report = report_of(np.array([[0.1, 0.9], [0.3, 0.7], [0.4, 0.6]], np.float32), np.array([1, 0, 1]))
    assert len(report.roc) == len(report.precision_recall) == CURVE_POINTS
    start, end = report.roc[0], report.roc[-1]
    assert (start.x, start.lowest, start.highest) == (0.0, 0.0, 0.5)
    assert (end.x, end.lowest, end.highest) == (1.0, 1.0, 1.0)
    half, full = report.precision_recall[CURVE_POINTS // 2], report.precision_recall[-1]
    assert (half.x, half.lowest, half.highest) == (0.5, 0.5, 1.0)
    assert (full.lowest, full.highest) == pytest.approx((0.5, 2 / 3))


def test_confidence_on_a_bins_edge_belongs_to_the_bin_below() -> None:
    report = report_of(np.array([[0.5, 0.5]], np.float32), np.array([0]), bins=2)
    assert [row.images for row in report.reliability] == [1, 0]


def test_of_equal_probabilities_the_first_class_is_predicted() -> None:
    assert predictions(np.array([[0.2, 0.4, 0.4]], np.float32)).tolist() == [1]


def test_worst_mistakes_are_the_most_confident_first_and_leave_out_what_is_right() -> None:
    probabilities, labels = four_images()
    assert worst_mistakes(probabilities, labels, 24).tolist() == [3, 1]
    assert worst_mistakes(probabilities, labels, 1).tolist() == [3]
    assert worst_mistakes(probabilities, labels, 0).tolist() == []


@pytest.mark.parametrize(
    ("probabilities", "labels"),
    [
        pytest.param([[0.7, 0.3]], [0], id="one image"),
        pytest.param([[1, 0], [0, 1]], [0, 1], id="perfect"),
        pytest.param([[1, 0, 0], [0, 1, 0]], [1, 0], id="certain and wrong"),
        pytest.param([[0.5, 0.3, 0.2], [0.2, 0.7, 0.1]], [0, 1], id="a class without images"),
    ],
)
def test_every_figure_is_a_json_number_or_null_and_every_picture_is_drawn(
    probabilities: list[list[float]], labels: list[int]
) -> None:
    report = report_of(np.array(probabilities, np.float32), np.array(labels))
    assert json.loads(json.dumps(asdict(report), allow_nan=False))["images"] == len(labels)
    for draw in (plots.confusion_matrix, plots.reliability_diagram, plots.roc_and_precision_recall):
        assert Image.open(io.BytesIO(draw(report))).width > 400


def test_a_class_without_images_has_no_recall_and_does_not_lower_the_macro_f1() -> None:
    report = report_of(np.array([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1]], np.float32), np.array([0, 1]))
    absent = report.classes[2]
    assert (absent.images, absent.precision, absent.recall, absent.f1, absent.roc_auc) == (0, None, None, None, None)
    assert report.macro_f1 == 1.0


def test_probabilities_of_a_model_that_diverged_are_the_users_error() -> None:
    with pytest.raises(UserError, match=r"not finite.*learning_rate"):
        report_of(np.array([[np.nan, np.nan]], np.float32), np.array([0]))


def test_the_summary_is_seven_plain_numbers_so_that_exp_show_stays_narrow() -> None:
    summary = report_of(*four_images()).test_summary()
    assert list(summary) == ["accuracy", "accuracy_low", "accuracy_high", "macro_f1", "loss", "ece", "brier"]
    assert {type(value) for value in summary.values()} == {float}


def test_tables_hold_no_empty_bin_and_no_more_than_six_decimals() -> None:
    report = report_of(*random_images(200, 5))
    assert all(row["images"] for row in report.reliability_rows())
    rows = [*report.reliability_rows(), *report.roc_rows(), *report.precision_recall_rows(), *report.class_rows()]
    numbers = [value for row in rows for value in row.values() if isinstance(value, float)]
    assert numbers == [round(number, 6) for number in numbers]


@pytest.mark.parametrize("classes", [2, 20, 21, 100])
def test_the_confusion_matrix_is_drawn_for_two_to_a_hundred_classes(classes: int) -> None:
    picture = Image.open(io.BytesIO(plots.confusion_matrix(report_of(*random_images(400, classes)))))
    assert 500 < picture.width < 2400


def test_names_are_drawn_as_they_are_written() -> None:
    probabilities, labels = random_images(20, 3)
    report = evaluate(probabilities, labels, [r"$\frac{1", "猫\n", "a" * 300], 0.95, 10)
    assert Image.open(io.BytesIO(plots.confusion_matrix(report))).width < 2000


def test_the_title_of_the_confusion_matrix_is_no_wider_than_the_matrix() -> None:
    probabilities, labels = random_images(20, 3)
    report = evaluate(probabilities, labels, ["a" * 30, "b" * 30, "c" * 30], 0.95, 10)
    assert Image.open(io.BytesIO(plots.confusion_matrix(report))).width < 1050


@pytest.mark.parametrize(("images", "dimensions", "spread", "drawn"),
                         [(3, 2, 1, True), (2, 2, 1, False), (9, 1, 1, False), (9, 4, 0, False)])  # fmt: skip
def test_embeddings_that_span_no_plane_have_no_map(images: int, dimensions: int, spread: int, drawn: bool) -> None:
    embeddings = 1 + spread * torch.randn(images, dimensions, generator=torch.Generator().manual_seed(0))
    split = Split(np.zeros((images, 1, 8, 8), np.uint8), np.zeros(images, np.int64))
    pictures = embedding_pictures(LightningModule(), {"embedding": embeddings}, split, ["cat"])
    assert list(pictures) == ["embedding_map"] * drawn


def test_the_headline_of_perfect_curves_names_no_class_as_the_hardest() -> None:
    perfect = evaluate(np.eye(3, dtype=np.float32), np.arange(3), ["ant", "bee", "cat"], 0.95, 10)
    assert plots.separation_finding(perfect) == "Every class is separated from the rest: all average precisions are 1"
    probabilities, labels = random_images(40, 3)
    assert plots.separation_finding(evaluate(probabilities, labels, ["ant", "bee", "cat"], 0.95, 10)).startswith(
        "Hardest"
    )


def test_the_gallery_shows_the_images_own_pixels_enlarged() -> None:
    image = np.zeros((1, 3, 2, 2), np.uint8)
    image[0, :, 0, 0] = (10, 200, 30)
    picture = Image.open(io.BytesIO(plots.mistakes_gallery(image, ["cat"], ["dog"], [0.9], 1, 10))).convert("RGB")
    pixels = np.asarray(picture).reshape(-1, 3)
    black, green = ((pixels == colour).all(axis=1).sum() for colour in ((0, 0, 0), (10, 200, 30)))
    assert green > 100**2
    assert black == pytest.approx(3 * green, rel=0.05)


def test_without_mistakes_the_gallery_is_a_picture_that_says_so() -> None:
    nothing = np.zeros((0, 1, 8, 8), np.uint8)
    none, hidden = (plots.mistakes_gallery(nothing, [], [], [], mistakes, 360) for mistakes in (0, 7))
    assert Image.open(io.BytesIO(none)).width > 300
    assert none != hidden


def test_a_share_short_of_all_is_never_called_all_of_it() -> None:
    assert [plots.percent(share).split()[0] for share in (1.0, 0.99999, 0.98765, 0.00001, 0.0)] == [
        "100.0", "99.9", "98.8", "0.1", "0.0"
    ]  # fmt: skip


def test_training_curves_bear_an_epoch_without_validation_and_a_loss_that_blew_up() -> None:
    rows = [{**HISTORY[0], "val_loss": None, "val_accuracy": None}, {**HISTORY[1], "train_loss": math.inf}]
    assert plots.training_curves(rows, 2) != plots.training_curves(HISTORY, 2)
    assert plots.training_curves(rows[:1], 1)


@pytest.mark.parametrize("suggestion", [None, 0.01, 0.03])
def test_the_learning_rate_curve_is_drawn_whatever_was_suggested(suggestion: float | None) -> None:
    rates, losses = [1e-3, 1e-2, 1e-1], [2.0, 1.0, math.nan]
    with_loss, without = (plots.learning_rate_curve(r, x, suggestion, 0.01) for r, x in ((rates, losses), ([], [])))
    assert with_loss != without


class Tags(HTMLParser):
    """The tags, links and text of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.links: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.text += data


def write_page(path: Path, debug: bool = False) -> bytes:
    """A whole report, with names that would be HTML."""
    probabilities, labels = four_images()
    report = evaluate(probabilities, labels, ["<b>&", "two", "<script>"], 0.95, 10)
    pictures = Pictures(
        learning_rate=plots.learning_rate_curve([1e-3, 1e-2, 1e-1], [2.0, 1.0, 3.0], 0.01, 0.02),
        training=plots.training_curves(HISTORY, 2),
        confusion=plots.confusion_matrix(report),
        reliability=plots.reliability_diagram(report),
        curves=plots.roc_and_precision_recall(report),
        mistakes=plots.mistakes_gallery(np.zeros((1, 1, 8, 8), np.uint8), ["<b>&"], ["two"], [0.6], 2, 4),
    )
    write_report(
        path,
        report,
        "ab" * 32,
        data={"source": "<i>folder</i>", "images": 1234},
        tuning={"learning rate": 0.02},
        training={"best epoch": 2},
        mistakes=[{"file": "<img src=x onerror=alert(1)>.png", "probability": 0.6}],
        params={"seed": 0, "model": {"width": None, "flip": False, "network": '"><b>'}},
        pictures=pictures,
        embeddings={},
        debug=debug,
    )
    return path.read_bytes()


def test_the_page_takes_no_name_for_html_and_loads_nothing(tmp_path: Path) -> None:
    page = Tags()
    page.feed(write_page(tmp_path / "report.html").decode())
    assert not page.tags & {"b", "i", "script", "link", "iframe"}
    assert len([link for link in page.links if link.startswith("data:image/png;base64,")]) == 6
    assert all(link.startswith(("data:", "#")) for link in page.links)
    for text in ("<b>&", "<script>", "<i>folder</i>", "<img src=x onerror=alert(1)>.png", '"><b>'):
        assert text in page.text
    for text in ("50.0\N{NO-BREAK SPACE}%", "1,234", "model.width", "null", "false"):
        assert text in page.text


def test_the_page_of_a_debug_run_says_so_on_top(tmp_path: Path) -> None:
    assert b"debug run" not in write_page(tmp_path / "report.html")
    head, _, _ = write_page(tmp_path / "report.html", debug=True).partition(b"Model <code>")
    assert b"A debug run" in head


def test_pictures_and_page_are_the_same_bytes_in_any_process_and_with_any_matplotlib_settings(tmp_path: Path) -> None:
    settings = tmp_path / "matplotlibrc"
    settings.write_text("font.size: 30\nsavefig.dpi: 50\naxes.facecolor: red\n")
    pages = []
    for seed in ("1", "2"):
        page = tmp_path / f"{seed}.html"
        environment = {**os.environ, "PYTHONHASHSEED": seed} | ({"MATPLOTLIBRC": str(settings)} if seed == "2" else {})
        imports = "from pathlib import Path; from tests.unit.reports.test_reports import write_page"
        code = f"{imports}; write_page(Path({str(page)!r}))"
        root = Path(__file__).parents[3]
        subprocess.run([sys.executable, "-c", code], cwd=root, env=environment, check=True, timeout=300)
        pages.append(page.read_bytes())
    assert pages[0] == pages[1]
    assert pages[0] == write_page(tmp_path / "here.html")
