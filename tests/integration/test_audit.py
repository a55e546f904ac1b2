"""`make audit`, the whole command on small images whose colour is their class: it lists what was planted, and decides
nothing."""

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from refit.artifacts.features import FeaturesInfo, write_features
from refit.artifacts.files import read_csv
from refit.artifacts.prepared import read_info, read_names
from refit.commands import audit
from refit.params import check_params
from refit.reports import audit as page
from refit.runtime.errors import UserError
from stages import prepare
from tests.fixtures import Values
from tests.unit.data.test_duplicates import SIDE, cropped, picture

COLOURS = {"red": (230, 40, 40), "green": (40, 200, 60), "blue": (50, 60, 230)}
EACH = 40
WRONG = {f"{'red' if number % 2 else 'green'}/wrong_{number}.png" for number in range(10)}
"""They are blue."""
COPIES = {f"blue/{number:02}.png": f"blue/copy_{number:02}.png" for number in range(6)}
SUSPECTS, PAGE = Path("data/audit/suspects.csv"), Path("data/audit/audit.html")


def coloured(seed: int, colour: str) -> Image.Image:
    return Image.blend(picture(seed), Image.new("RGB", (SIDE, SIDE), COLOURS[colour]), 0.5)


@pytest.fixture
def planted(workspace: Path, values: Values) -> Path:
    """A workspace in which `prepare` has run on images of three colours, with wrong labels and near-duplicates."""
    root = workspace / "data/raw"
    for number, name in enumerate(COLOURS):
        (root / name).mkdir()
        for i in range(EACH):
            coloured(100 * number + i, name).save(root / name / f"{i:02}.png")
    for i, wrong in enumerate(sorted(WRONG)):
        coloured(1000 + i, "blue").save(root / wrong)
    for original, copy in COPIES.items():
        cropped(Image.open(root / original)).save(root / copy)
    given = values({"data.source": "folder", "data.image_size": SIDE})
    (workspace / "params.yaml").write_text(yaml.safe_dump(given))
    run_prepare(workspace)
    return workspace


def run_prepare(workspace: Path) -> None:
    prepare.main(check_params(yaml.safe_load((workspace / "params.yaml").read_text())).only("seed", "data"))


def run_audit(workspace: Path) -> list[dict[str, str]]:
    audit.main(check_params(yaml.safe_load((workspace / "params.yaml").read_text())).only(*audit.READS))
    return read_csv(SUSPECTS)


def of_kind(rows: list[dict[str, str]], kind: str) -> list[dict[str, str]]:
    return [row for row in rows if row["kind"] == kind]


def test_planted_labels_and_near_duplicates_are_the_first_suspects_and_no_decision_is_written(
    planted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (planted / "data/audit.csv").write_text("file,decision,label,why\n")
    rows = run_audit(planted)
    labels, duplicates = of_kind(rows, "label"), of_kind(rows, "duplicate")
    first = labels[: 2 * len(WRONG)]
    assert len(WRONG & {row["file"] for row in first}) >= 0.7 * len(WRONG)
    assert all(row["suggested"] == "blue" for row in first if row["file"] in WRONG)
    assert {frozenset((row["file"], row["other"])) for row in duplicates} == set(map(frozenset, COPIES.items()))
    for ranked in (labels, duplicates):
        assert [int(row["rank"]) for row in ranked] == list(range(1, len(ranked) + 1))
    across = [row["split"] != row["other_split"] for row in duplicates]
    assert across == sorted(across, reverse=True)
    assert any(across)

    said = capsys.readouterr().out
    assert f"near-duplicates  6 pairs, {sum(across)} of them across splits, 0 mirrored" in said
    assert "label errors" in said
    assert "a weak detector" in said
    assert f"{labels[0]['file']},relabel,{labels[0]['suggested']},it was {labels[0]['label']}" in said
    assert f"{duplicates[0]['file']},drop,,near-duplicate of {duplicates[0]['other']}" in said
    assert (planted / "data/audit.csv").read_text() == "file,decision,label,why\n"


def test_the_page_shows_the_pictures_of_each_suspect_and_needs_no_other_file(planted: Path) -> None:
    rows, html = run_audit(planted), PAGE.read_text()
    pictures = re.findall(r'<img src="data:image/jpeg;base64,([^"]+)"', html)
    assert len(pictures) == 2 * len(of_kind(rows, "duplicate")) + 3 * len(of_kind(rows, "label"))
    assert Image.open(io.BytesIO(base64.b64decode(pictures[0]))).size == (SIDE, SIDE)
    assert re.findall(r'(?:src|href)="(?!data:|#)(.*?)"', html) == ["../prepared_report.html"], "which is there too"
    assert PAGE.parent.joinpath("../prepared_report.html").is_file()
    places = [html.index(row["file"]) for row in of_kind(rows, "label")[:3]]
    assert places == sorted(places), "the worst first"
    before = PAGE.read_bytes(), SUSPECTS.read_bytes()
    run_audit(planted)
    assert (PAGE.read_bytes(), SUSPECTS.read_bytes()) == before


def test_a_long_list_is_shown_in_part_and_the_page_says_so(planted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "SHOWN", 2)
    run_audit(planted)
    html = PAGE.read_text()
    assert html.count('<div class="pictures">') == 4
    assert "The 2 worst of 6; suspects.csv beside this page" in html


def test_decided_images_are_no_suspects_any_more(planted: Path) -> None:
    before = run_audit(planted)
    label = next(row for row in of_kind(before, "label") if row["file"] in WRONG)
    kept, dropped, *_ = of_kind(before, "duplicate")
    others = [row["file"] for row in of_kind(before, "label") if row["file"] != label["file"]]
    rows = [f"{label['file']},relabel,{label['suggested']},", f"{kept['file']},keep,,", f"{dropped['file']},drop,,",
            f"{others[0]},keep,,"]  # fmt: skip
    (planted / "data/audit.csv").write_text("\n".join(["file,decision,label,why", *rows, ""]))
    run_prepare(planted)
    after = run_audit(planted)
    assert not {label["file"], others[0]} & {row["file"] for row in of_kind(after, "label")}
    assert len(of_kind(after, "duplicate")) == len(of_kind(before, "duplicate")) - 2
    assert not {kept["file"], dropped["file"]} & {row["file"] for row in of_kind(after, "duplicate")}


def test_the_features_of_data_features_are_used_if_they_are_of_this_data_set(
    planted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    info, random = read_info(), np.random.default_rng(0)
    features = {
        split: np.stack([np.eye(2)[int(name in WRONG)] + 0.01 * random.normal(size=2) for name in read_names(split)])
        .astype(np.float32)
        for split in info.counts
    }  # fmt: skip
    write_features(FeaturesInfo([*features], "backbone", info.sha256), features)
    by_features = run_audit(planted)
    assert "by the features of pretrained layers" in capsys.readouterr().out
    write_features(FeaturesInfo([*features], "backbone", "another data set"), features)
    by_pixels = run_audit(planted)
    assert "a weak detector" in capsys.readouterr().out
    assert of_kind(by_features, "label") != of_kind(by_pixels, "label")


def test_without_a_prepared_data_set_the_error_says_what_to_run(workspace: Path, values: Values) -> None:
    (workspace / "params.yaml").write_text(yaml.safe_dump(values({})))
    with pytest.raises(UserError, match="run: dvc repro prepare"):
        run_audit(workspace)


def test_an_audit_without_suspects_writes_a_list_with_its_header_alone(planted: Path) -> None:
    rows = run_audit(planted)
    keep = [f"{name},keep,,\n" for name in sorted({row[which] for row in rows for which in ("file", "other")})]
    (planted / "data/audit.csv").write_text("file,decision,label,why\n" + "".join(keep))
    assert run_audit(planted) == []
    assert SUSPECTS.read_text() == ",".join(rows[0]) + "\n"
