"""The report as a page: it takes no name for HTML, and loads nothing."""

from html.parser import HTMLParser
from pathlib import Path

import numpy as np

from refit.evaluation.classification import evaluate
from refit.evaluation.findings import Finding
from refit.reports import plots
from refit.reports.page import Pictures, write_report
from tests.unit.evaluation.test_classification import four_images
from tests.unit.reports.test_plots import HISTORY


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


def write_page(path: Path, debug: bool = False, *, advice: bool = True, curve: bool = True) -> bytes:
    """A whole report, with names that would be HTML."""
    probabilities, labels = four_images()
    report = evaluate(probabilities, labels, ["<b>&", "two", "<script>"], 0.95, 10)
    pictures = Pictures(
        learning_rate=plots.learning_rate_curve([1e-3, 1e-2, 1e-1], [2.0, 1.0, 3.0], 0.01, 0.02) if curve else None,
        frozen_learning_rate=None,
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
        {"majority": 0.25, "neighbours": 0.5},
        [Finding("No image of <b>two</b> is found", "set loss.class_weights: balanced")] if advice else [],
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
    for text in ("No image of <b>two</b> is found.", "What may help: set loss.class_weights: balanced."):
        assert text in page.text
    for text in ("50.0\N{NO-BREAK SPACE}%", "1,234", "model.width", "null", "false"):
        assert text in page.text


def test_the_page_of_a_debug_run_says_so_on_top(tmp_path: Path) -> None:
    assert b"debug run" not in write_page(tmp_path / "report.html")
    head, _, _ = write_page(tmp_path / "report.html", debug=True).partition(b"Model <code>")
    assert b"A debug run" in head


def test_a_run_without_findings_and_without_a_range_test_says_so(tmp_path: Path) -> None:
    html = write_page(tmp_path / "report.html", advice=False, curve=False).decode()
    assert "None: no check of this run found a problem." in html
    assert "Training loss by learning rate" not in html
