"""Whatever is in a source: each of its files is an image of the data set or in the list of those left out, once."""

import tempfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from refit.data.pack import Packed
from refit.runtime.errors import UserError
from tests.fixtures import Changed
from tests.fixtures.sources import Files, animals, packed, png, write_archive, write_files, write_parquet

SETTINGS = settings(
    derandomize=True, deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
PARTS = st.sampled_from(["cat", "dog", "train", "test", "val", ".git", "__MACOSX", "é", "a b", "deep"])
LAST = st.sampled_from(["1.png", "2.JPG", "3.jpeg", ".4.png", "notes.txt", "é\n.png", "Thumbs.db", "png"])
NAMES = st.lists(PARTS, max_size=3).flatmap(lambda folders: LAST.map(lambda last: "/".join([*folders, last])))
# Some are good, of which some have the same pixels, also with other labels, and some are not.
CONTENTS = st.one_of(st.integers(100, 110).map(png), st.sampled_from([b"", b"text", png(1)[:40], png(0)]))
EXTRAS = st.dictionaries(NAMES, CONTENTS, max_size=15)


@pytest.fixture(autouse=True)
def _in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """To start processes for each example would take most of the time."""
    monkeypatch.setattr("refit.data.decoding.in_parallel", lambda work, count, together: map(work, range(count)))


def one_path_each(files: Files) -> Files:
    """Without files of which another one is in a folder of the same name."""
    folders = [f"{name.rpartition('/')[0]}/" for name in files]
    taken = {name for name in files if any(folder.startswith(f"{name}/") for folder in folders)}
    return {name: content for name, content in files.items() if name not in taken}


def assert_complete(result: Packed, folder: Path, files: set[str]) -> None:
    prepared = pq.read_table(folder / "manifest.parquet")["name"].to_pylist()
    left_out = [row["file"] for row in result.left_out]
    assert sorted([*prepared, *left_out]) == sorted(name.replace("\n", "\\n") for name in files)
    counts, report = result.info.counts, result.report
    assert sum(counts.values()) == len(prepared)
    assert {split: report[split] for split in counts} == counts
    assert report["left_out"] == len(left_out)
    assert report["skipped"] + report["left_out_copies"] <= report["left_out"]


def pack_or_refuse(changed: Changed, source: str, root: Path, names: set[str]) -> bool:
    """Whether it was packed; if not, there is one clear error, as for a class of which no image can be read."""
    folder = root.parent / "packed"
    try:
        result = packed(changed, source, root, folder, bad_images="skip")
    except UserError:
        return False
    assert_complete(result, folder, names)
    return True


@SETTINGS
@given(extras=EXTRAS, split=st.booleans())
def test_each_file_of_a_folder_or_an_archive_is_prepared_or_left_out(
    extras: Files, split: bool, changed: Changed
) -> None:
    classes = {(f"train/{name}" if split else name): content for name, content in animals().items()}
    files = one_path_each({**classes, **extras})
    with tempfile.TemporaryDirectory() as parent:
        outcomes = {
            kind: pack_or_refuse(changed, source, root, set(files))
            for kind, source, root in (
                ("folder", "folder", write_files(Path(parent, "1/raw"), files)),
                ("zip", "archive", write_archive(_made(parent, "2") / "raw.zip", files)),
                ("tar", "archive", write_archive(_made(parent, "3") / "raw.tar", files)),
            )
        }
    assert len(set(outcomes.values())) == 1, outcomes


def _made(parent: str, name: str) -> Path:
    Path(parent, name).mkdir()
    return Path(parent, name)


ROWS = st.lists(
    st.tuples(
        st.sampled_from(["gone.png", "cat/0.png", "./cat/0.png", "../raw", "", "more.png", "dog/1.png", "bad.png"]),
        st.sampled_from(["cat", "dog", ""]),
        st.sampled_from(["", "one", "two"]),
    ),
    max_size=12,
)


@SETTINGS
@given(rows=ROWS, unnamed=st.sets(st.sampled_from(["cat/a.png", "b.png", "dog/c.jpg"])))
def test_each_row_of_a_table_is_prepared_or_left_out(
    rows: list[tuple[str, str, str]], unnamed: set[str], changed: Changed
) -> None:
    good = [(name, name[:3], "") for name in animals()]
    all_rows = [*good, *rows]
    with tempfile.TemporaryDirectory() as parent:
        more = {"more.png": png(90), "bad.png": b"text"}
        root = write_files(Path(parent, "raw"), animals() | more | dict.fromkeys(unnamed, png(91)))
        columns = zip(*all_rows, strict=True)
        table = write_parquet(root / "t.parquet", dict(zip(("path", "label", "group"), columns, strict=True)))
        folder = root.parent / "packed"
        result = packed(changed, "manifest", table, folder, bad_images="skip")
        prepared = pq.read_table(folder / "manifest.parquet")["name"].to_pylist()
    left_out = [str(row["file"]) for row in result.left_out]
    named = {name.removeprefix("./") for name, _, _ in all_rows}
    files = {*animals(), *more, *unnamed}
    assert len(set(prepared)) == len(prepared)
    assert len(set(left_out)) == len(left_out)
    assert not set(prepared) & set(left_out)
    assert files <= {*prepared, *left_out}
    assert len(prepared) + len(left_out) == len(all_rows) + len(files - named)
    assert result.report["left_out"] == len(left_out)
    assert sum(result.info.counts.values()) == len(prepared)
