"""The page of the prepared data."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from refit.artifacts.decisions import Decision
from refit.artifacts.prepared import DatasetInfo, ManifestRow, Split
from refit.data.pack import Packed
from refit.reports import data_report
from refit.reports.data_report import EXAMPLES, write_data_report

CLASSES = ["cat", "<b>dog</b>", "emu"]
LABELS = [0] * 12 + [1] * 9 + [2]


def row(number: int, label: int, split: str = "train", sha256: str = "") -> ManifestRow:
    return ManifestRow(f"{number}.png", split, CLASSES[label], sha256 or f"{number:064}", 10 + number, 20)


MANIFEST = [*(row(number, label) for number, label in enumerate(LABELS)), row(40, 0, "val"), row(41, 1, "test")]
LEFT_OUT: list[dict[str, object]] = [
    {"file": f"{number}.txt", "why": "its name does not end in .png"} for number in range(3)
]


def page(
    path: Path,
    manifest: Sequence[ManifestRow] = MANIFEST,
    left_out: Sequence[dict[str, object]] = LEFT_OUT,
    obeyed: Sequence[Decision] = (),
    near: Sequence[Sequence[str]] | None = None,
) -> str:
    info = DatasetInfo(
        1, "folder", CLASSES, "rgb", [3, 16, 16], {"train": 22, "val": 1, "test": 1}, [0.5], [0.5], "f" * 64
    )
    pixels = np.random.default_rng(0).integers(0, 256, (22, 3, 16, 16), dtype=np.uint8)
    packed = Packed(info, {}, [*left_out], obeyed, near)
    write_data_report(path, packed, Split(pixels, np.array(LABELS)), manifest)
    return path.read_text()


def test_the_page_has_the_images_of_each_class_and_split(tmp_path: Path) -> None:
    text = page(tmp_path / "page.html")
    assert "<h1>24 images of 3 classes</h1>" in text
    rows = re.findall(r"<tr><th>(.+?)</th><td>(\d+)</td><td>(\d+)</td><td>(\d+)</td><td[^>]*>(\d+)</td></tr>", text)
    assert rows == [
        ("cat", "12", "1", "0", "13"), ("&lt;b&gt;dog&lt;/b&gt;", "9", "0", "1", "10"), ("emu", "1", "0", "0", "1")
    ]  # fmt: skip
    assert "10 to 51, half of them up to 22" in text, "the widths"


def test_the_page_shows_the_mean_and_some_images_of_each_class_and_needs_no_other_file(tmp_path: Path) -> None:
    text = page(tmp_path / "page.html")
    pictures = re.findall(r'<img src="([^"]+)"[^>]*alt="(the mean of|an image of) ([^"]+)">', text)
    shown = [(what, name) for _, what, name in pictures]
    assert shown.count(("the mean of", "cat")) == shown.count(("the mean of", "emu")) == 1
    assert shown.count(("an image of", "cat")) == shown.count(("an image of", "&lt;b&gt;dog&lt;/b&gt;")) == EXAMPLES
    assert shown.count(("an image of", "emu")) == 1
    assert all(url.startswith("data:image/png;base64,") for url, *_ in pictures)
    assert re.findall(r'(?:src|href)="(?!data:|#)(.*?)"', text) == ["audit/audit.html"], "where make audit writes"
    assert "<script" not in text
    assert "<b>dog" not in text


def test_files_left_out_are_listed_with_their_reasons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_report, "_LISTED", 2)
    text = page(tmp_path / "page.html")
    assert "<li>3: its name does not end in .png</li>" in text
    dropped: list[dict[str, object]] = [
        {"file": "a", "why": "dropped by data/audit.csv"},
        {"file": "b", "why": "dropped by data/audit.csv: near-duplicate of c"},
        {"file": "d", "why": "a copy of e, which is in the test split"},
    ]
    reasons = re.findall("<li>(.+?)</li>", page(tmp_path / "page.html", left_out=dropped))
    assert reasons == ["2: dropped by data/audit.csv", "1: a copy"]
    assert text.count("<td>its name does not end in .png</td>") == 2
    assert "The first 2; data/prepared_left_out.csv" in text
    assert "every file of the source is in the data set" in page(tmp_path / "page.html", left_out=[])


def test_images_with_the_same_pixels_are_listed_together(tmp_path: Path) -> None:
    assert "no two images of a split have the same pixels" in page(tmp_path / "page.html")
    text = page(tmp_path / "page.html", [*MANIFEST, row(50, 0, "val", "a"), row(51, 0, "val", "a")])
    assert "<tr><td>val</td><td>50.png, 51.png</td></tr>" in text


def test_near_duplicates_are_listed_if_they_were_looked_for(tmp_path: Path) -> None:
    assert "are not looked for here. <code>make audit</code>" in page(tmp_path / "page.html")
    text = page(tmp_path / "page.html", near=[["0.png", "3.png"]])
    assert "1 group of near-duplicates, identical images among them, each in one split" in text
    assert "<tr><td>train</td><td>0.png, 3.png</td></tr>" in text


def test_decisions_are_counted_by_kind_and_listed_in_the_order_of_their_files(tmp_path: Path) -> None:
    assert "has no decision about an image of this source" in page(tmp_path / "page.html")
    obeyed = [Decision("b.png", "drop", "", "<i>blurred</i>", 2), Decision("a.png", "relabel", "emu", "", 3)]
    text = page(tmp_path / "page.html", obeyed=[*obeyed, Decision("c.png", "drop", "", "", 4)])
    assert "2 drop, 1 relabel." in text
    assert re.findall(r"<tr><td>([abc].png)</td><td>(.+?)</td><td>(.*?)</td></tr>", text) == [
        ("a.png", "relabel to emu", ""), ("b.png", "drop", "&lt;i&gt;blurred&lt;/i&gt;"), ("c.png", "drop", "")
    ]  # fmt: skip


def test_the_same_data_give_the_same_bytes(tmp_path: Path) -> None:
    assert page(tmp_path / "one.html") == page(tmp_path / "other.html")
