"""`prepare` does with single images what people decided in data/audit.csv, and nothing else."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from refit.artifacts.decisions import read_decisions
from refit.artifacts.files import read_csv
from refit.data.pack import Packed, pack
from refit.data.sources.open import open_source
from refit.runtime.errors import UserError
from stages import prepare
from tests.fixtures import Changed
from tests.unit.data.test_duplicates import SIDE, cropped, picture
from tests.unit.data.test_pack import contents, empty, manifest, photos

HEADER = "file,decision,label,why\n"
Decide = Callable[..., Packed]


@pytest.fixture
def decided(changed: Changed, tmp_path: Path) -> Decide:
    """Pack tmp_path/raw into tmp_path/packed with these rows in audit.csv; None: without the file."""

    def run(rows: str | None = "", **keys: object) -> Packed:
        (tmp_path / "packed").mkdir()
        file = tmp_path / "audit.csv"
        if rows is not None:
            file.write_text(HEADER + rows)
        root = {"data.source": "folder", "data.root": str(tmp_path / "raw")}
        params = changed(root | {f"data.{key}": value for key, value in keys.items()})
        source = open_source(params.data)
        return pack(source, params.data, params.seed, tmp_path / "packed", read_decisions(file))

    return run


def classes(tmp_path: Path) -> dict[str, str]:
    return {row["name"]: row["class"] for row in manifest(tmp_path / "packed")}


@pytest.mark.parametrize("rows", ["", "cat/03.png,keep,,it is a cat\n"])
def test_an_empty_list_and_a_kept_image_change_no_byte(rows: str, decided: Decide, tmp_path: Path) -> None:
    photos(tmp_path / "raw")
    decided(None)
    (tmp_path / "packed").rename(tmp_path / "before")
    assert decided(rows).near_duplicates is None
    assert contents(tmp_path / "packed") == contents(tmp_path / "before")


def test_a_dropped_image_is_left_out_with_the_reason(decided: Decide, tmp_path: Path) -> None:
    photos(tmp_path / "raw")
    packed = decided("cat/03.png,drop,,blurred\ndog/05.png,drop,,\n")
    assert packed.left_out == [
        {"file": "cat/03.png", "why": "dropped by data/audit.csv: blurred"},
        {"file": "dog/05.png", "why": "dropped by data/audit.csv"},
    ]
    assert packed.report["decisions"] == packed.report["left_out"] == 2
    assert len(classes(tmp_path)) == 38
    assert not {"cat/03.png", "dog/05.png"} & classes(tmp_path).keys()


def test_a_relabelled_image_has_the_new_class(decided: Decide, tmp_path: Path) -> None:
    photos(tmp_path / "raw")
    packed = decided("cat/03.png,relabel,dog,a dog\n")
    found = classes(tmp_path)
    assert found.pop("cat/03.png") == "dog"
    assert all(name.startswith(label) for name, label in found.items())
    assert packed.report["decisions"] == 1
    assert packed.left_out == []


def test_relabelling_resolves_identical_images_with_different_labels_and_keeping_one_does_not(
    decided: Decide, tmp_path: Path
) -> None:
    photos(tmp_path / "raw")
    (tmp_path / "raw/dog/00.png").write_bytes((tmp_path / "raw/cat/00.png").read_bytes())
    with pytest.raises(UserError, match="identical images with different labels"):
        decided("cat/00.png,keep,,a cat\n")
    (tmp_path / "packed").rename(tmp_path / "failed")
    decided("dog/00.png,relabel,cat,a cat\n")
    assert classes(tmp_path)["dog/00.png"] == "cat"


def test_an_image_that_cannot_be_decoded_can_be_dropped(decided: Decide, tmp_path: Path) -> None:
    photos(tmp_path / "raw")
    empty(tmp_path / "raw/cat/00.png")
    packed = decided("cat/00.png,drop,,empty\n")
    assert packed.left_out == [{"file": "cat/00.png", "why": "dropped by data/audit.csv: empty"}]
    assert packed.report["skipped"] == 0


@pytest.mark.parametrize("file", ["cat/03.png", "cat/gone.png"])
def test_a_class_that_the_source_does_not_have_stops_it(file: str, decided: Decide, tmp_path: Path) -> None:
    photos(tmp_path / "raw")
    with pytest.raises(UserError) as raised:
        decided(f"{file},relabel,dgo,\n")
    assert str(raised.value).startswith(f"data/audit.csv, line 2, {file}: 'dgo' is not one of the classes cat, dog")


def test_a_decision_about_a_file_that_left_the_source_is_named_and_changes_nothing(
    decided: Decide, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos(tmp_path / "raw")
    rows = "cat/03.png,drop,,blurred\ncat/77.png,drop,,\nemu/1.png,keep,,\n"
    packed = decided(rows)
    warning, *lines = capsys.readouterr().err.splitlines()
    assert warning.startswith("warning: data/audit.csv: 2 decisions are about files that the source does not have")
    assert lines == ["  line 3: cat/77.png", "  line 4: emu/1.png"], "its neighbours are other images"
    assert [decision.file for decision in packed.obeyed] == ["cat/03.png"]
    assert packed.report["decisions"] == 1
    assert [row["file"] for row in packed.left_out] == ["cat/03.png"]


@pytest.mark.parametrize(
    ("written", "near"),
    [
        ("cat/0003.png", "cat/03.png"),
        ("Cat/03.PNG", "cat/03.png"),
        ("cat/03.jpeg", None),  # decided about, as the second row
        ("dgo/03.png", "dog/03.png"),
        ("cat/99.png", None),
    ],
)
def test_the_warning_names_a_near_image_that_is_not_decided_about(
    written: str, near: str | None, decided: Decide, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos(tmp_path / "raw")
    other = "cat/03.png,keep,,\n" if written == "cat/03.jpeg" else ""
    decided(f"{written},drop,,\n{other}")
    assert capsys.readouterr().err.splitlines()[1:] == [
        f"  line 2: {written}" + (f"; did you mean {near}?" if near else "")
    ]


def test_many_decisions_about_files_that_are_gone_are_listed_in_part(
    decided: Decide, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos(tmp_path / "raw")
    decided("".join(f"gone/{number}.jpg,keep,,\n" for number in range(100, 130)))
    lines = capsys.readouterr().err.splitlines()
    assert (len(lines), lines[-1]) == (22, "  and 10 more")


def test_prepare_obeys_and_says_how_many_decisions_of_each_kind(
    changed: Changed, workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos(workspace / "data/raw")
    rows = "cat/03.png,drop,,blurred\ncat/04.png,relabel,dog,\ncat/05.png,keep,,\ncat/06.png,drop,,\n"
    (workspace / "data/audit.csv").write_text(HEADER + rows)
    prepare.main(changed({"data.source": "folder"}).only("seed", "data"))
    assert "data/audit.csv is obeyed: 2 drop, 1 keep, 1 relabel\n" in capsys.readouterr().out
    assert json.loads((workspace / "data/prepared_report.json").read_text())["decisions"] == 4
    assert json.loads((workspace / "data/metrics/data.json").read_text()) == {"data": "raw", "decisions": 4}
    assert [row["file"] for row in read_csv(workspace / "data/prepared_left_out.csv")] == ["cat/03.png", "cat/06.png"]


def plant_near_duplicates(root: Path) -> None:
    """20 photos per class, each twice: as it was taken, and cropped."""
    for number, name in enumerate(("cat", "dog")):
        (root / name).mkdir(parents=True)
        for i in range(20):
            image = picture(100 * number + i)
            image.save(root / name / f"{i:02}.png")
            cropped(image).resize((SIDE, SIDE)).save(root / name / f"{i:02}_cropped.png")


def straddling(tmp_path: Path) -> int:
    split = {row["name"]: row["split"] for row in manifest(tmp_path / "packed")}
    return sum(split[name] != split[name.replace("_cropped", "")] for name in split)


def test_near_duplicates_get_the_same_split_only_if_asked_for(
    decided: Decide, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant_near_duplicates(tmp_path / "raw")
    packed = decided(group_duplicates=True)
    assert straddling(tmp_path) == 0
    pairs = [[f"{name}/{i:02}.png", f"{name}/{i:02}_cropped.png"] for name in ("cat", "dog") for i in range(20)]
    assert sorted(map(sorted, packed.near_duplicates or [])) == pairs
    assert min(packed.info.counts.values()) > 0
    (tmp_path / "packed").rename(tmp_path / "grouped")
    monkeypatch.setitem(sys.modules, "imagehash", None)  # as where the extra is not installed
    decided(group_duplicates=False)
    assert straddling(tmp_path) > 5


def test_the_source_s_own_splits_are_kept_with_a_warning(
    decided: Decide, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed, split in enumerate(("train", "val", "test")):
        photos(tmp_path / "raw" / split, seed=seed)
    decided(group_duplicates=False)
    (tmp_path / "packed").rename(tmp_path / "before")
    decided(group_duplicates=True)
    assert contents(tmp_path / "packed") == contents(tmp_path / "before")
    assert "warning: data.group_duplicates changes nothing" in capsys.readouterr().err
