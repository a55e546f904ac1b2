"""Tables of images: CSV, Parquet and Hugging Face's forms, and one clear error for each fault."""

import csv
import io
import json
import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from refit.artifacts.prepared import read_info, read_split
from refit.data.parallel import in_parallel
from refit.runtime.errors import UserError
from tests.fixtures import Changed
from tests.fixtures.sources import (
    animals,
    left_out,
    listed,
    opened,
    packed,
    pixels,
    png,
    pngs,
    write_files,
    write_parquet,
)

NAMES = list(animals())
LABELS = [name.partition("/")[0] for name in NAMES]


def write_table(path: Path, rows: Sequence[Sequence[object]], encoding: str = "utf-8") -> Path:
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.getvalue().encode(encoding))
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_files(tmp_path / "raw", animals())


@pytest.mark.parametrize("path", ["path", "file", "file_name"])
@pytest.mark.parametrize("label", ["label", "class"])
def test_a_csv_names_files_and_their_classes(path: str, label: str, changed: Changed, root: Path) -> None:
    rows = [(label, "more", path), *((name[:3], 1, name) for name in NAMES)]
    table = write_table(root / "t.csv", rows)
    source = opened(changed, "manifest", table)
    assert listed(source) == [(name, name.partition("/")[0], None) for name in NAMES]
    assert [pixels(item)[0, 0] for item in source.list_images().items] == list(range(12))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_csv_has_a_byte_order_mark_quoted_commas_and_empty_lines(encoding: str, changed: Changed, root: Path) -> None:
    (root / "a, b.png").write_bytes(png(99))
    rows = [("path", "label"), ("a, b.png", 'two, "three"'), *((name, "one") for name in NAMES[:3]), ()]
    source = opened(changed, "manifest", write_table(root / "t.csv", rows, encoding))
    assert listed(source)[0] == ("a, b.png", 'two, "three"', None)
    assert len(listed(source)) == 4


def test_the_column_split_gives_the_splits(changed: Changed, root: Path) -> None:
    splits = ["train", "Train", "val", "valid", "validation", "test"] * 2
    rows = [("path", "label", "split"), *zip(NAMES, LABELS, splits, strict=True)]
    given = [split for _, _, split in listed(opened(changed, "manifest", write_table(root / "t.csv", rows)))]
    assert given == ["train", "train", "val", "val", "val", "test"] * 2


def test_weights_of_training_images_are_stored_with_a_mean_of_1_unless_all_are_the_same(
    changed: Changed, root: Path, tmp_path: Path
) -> None:
    places = ("train", "train", "train", "train", "val", "test")
    plain_rows = [(path, label, places[n % 6]) for n, (path, label) in enumerate(zip(NAMES, LABELS, strict=True))]

    def pack_with(name: str, *weights: object) -> Path:
        rows: list[Sequence[object]] = [("path", "label", "split"), *plain_rows]
        if weights:
            rows = [(*row, ("weight", *2 * weights)[n]) for n, row in enumerate(rows)]
        packed(changed, "manifest", write_table(root / "t.csv", rows), tmp_path / name)
        return tmp_path / name

    plain, same = pack_with("plain"), pack_with("same", *["2.5"] * 6)
    assert read_split("train", plain).weights is None
    assert {file.name: file.read_bytes() for file in same.iterdir()} == {
        file.name: file.read_bytes() for file in plain.iterdir()
    }, "the same weight for all images is no weighting"
    weighted = pack_with("weighted", "", "3", 0.5, "1", "9", "9")  # the last two are not for training
    given = np.array([1, 3, 0.5, 1] * 2)
    stored = read_split("train", weighted).weights
    assert stored is not None
    np.testing.assert_allclose(stored, given / given.mean(), rtol=1e-6)
    assert read_split("val", weighted).weights is None
    assert read_info(weighted).sha256 != read_info(plain).sha256, "a fit on other weights is another fit"
    assert (weighted / "train_images.npy").read_bytes() == (plain / "train_images.npy").read_bytes()


@pytest.mark.parametrize("kind", ["csv", "integers", "floats"])
def test_labels_may_be_numbers(kind: str, changed: Changed, root: Path) -> None:
    """pandas makes floats of a column of integers of which one is missing."""
    numbers = [0, -1] * 6
    if kind == "csv":
        table = write_table(root / "t.csv", [("path", "label"), *zip(NAMES, numbers, strict=True)])
    else:
        column = pa.array(numbers, pa.int64() if kind == "integers" else pa.float64())
        table = write_parquet(root / "t.parquet", {"path": NAMES, "label": column})
    assert opened(changed, "manifest", table).read_classes() == ("-1", "0")


@pytest.mark.parametrize("bad_images", ["fail", "skip"])
def test_a_missing_number_is_no_class_of_its_own(bad_images: str, changed: Changed, root: Path, tmp_path: Path) -> None:
    numbers = [float("nan"), *[0.0, 1.0] * 5, 1.0]
    table = write_parquet(root / "t.parquet", {"path": NAMES, "label": numbers})
    if bad_images == "fail":
        with pytest.raises(UserError, match=r"^cat/0\.png: row 0 of t\.parquet has no label; repair"):
            packed(changed, "manifest", table, tmp_path / "packed")
    else:
        result = packed(changed, "manifest", table, tmp_path / "packed", bad_images="skip")
        assert result.info.classes == ["0", "1"]
        assert [row["file"] for row in result.left_out] == ["cat/0.png"]


def test_a_group_never_straddles_the_splits(changed: Changed, tmp_path: Path) -> None:
    names = [f"{number}.png" for number in range(120)]
    root = write_files(tmp_path / "raw", pngs(names))
    rows = [("path", "label", "group"), *((name, n % 3, f"person {n // 4}") for n, name in enumerate(names))]
    packed(changed, "manifest", write_table(root / "t.csv", rows), tmp_path / "packed")
    splits: dict[int, set[str]] = defaultdict(set)
    for row in pq.read_table(tmp_path / "packed/manifest.parquet").to_pylist():
        splits[int(row["name"].partition(".")[0]) // 4].add(row["split"])
    assert len(splits) == 30
    assert all(len(of_group) == 1 for of_group in splits.values())
    assert {split for of_group in splits.values() for split in of_group} == {"train", "val", "test"}


@pytest.mark.parametrize("kind", ["struct", "binary", "large_binary"])
@pytest.mark.parametrize("rows_of_group", [1, 5, 100])
def test_a_parquet_file_holds_images_as_bytes(kind: str, rows_of_group: int, changed: Changed, tmp_path: Path) -> None:
    contents = list(animals().values())
    column: Any = pa.array(contents, pa.large_binary() if kind == "large_binary" else pa.binary())
    if kind == "struct":
        column = [{"bytes": content, "path": name} for content, name in zip(contents, NAMES, strict=True)]
    table = write_parquet(tmp_path / "t.parquet", {"image": column, "label": LABELS}, rows_of_group)
    source = opened(changed, "manifest", table)
    assert listed(source) == [(f"t.parquet/{n}", label, None) for n, label in enumerate(LABELS)]
    items = source.list_images().items
    assert list(in_parallel(lambda n: int(pixels(items[n])[0, 0]), 12)) == list(range(12))
    assert [pixels(items[n])[0, 0] for n in reversed(range(12))] == list(reversed(range(12)))


def hugging_face(names: Sequence[str]) -> dict[bytes, bytes]:
    features = {"image": {"_type": "Image"}, "label": {"names": list(names), "_type": "ClassLabel"}}
    return {b"huggingface": json.dumps({"info": {"features": features}}).encode()}


def write_hugging_face(root: Path, names: Sequence[str] = ("zebra", "ant"), last: int = 1) -> Path:
    for split, start in (("train", 0), ("test", 30)):
        for part in range(2):
            images = [{"bytes": png(start + 10 * part + n), "path": None} for n in range(6)]
            labels = pa.array([0, 1] * 2 + [0, last], pa.int64())
            path = root / f"data/{split}-{part:05}-of-00002.parquet"
            write_parquet(path, {"image": images, "label": labels}, 4, metadata=hugging_face(names))
    (root / ".cache").mkdir()
    (root / ".cache/train-00000.parquet").write_bytes(b"half a download")
    return root


def test_a_folder_of_hugging_face_s_parquet_files_gives_its_splits_and_class_names(
    changed: Changed, tmp_path: Path
) -> None:
    root = write_hugging_face(tmp_path / "raw")
    source = opened(changed, "manifest", root)
    assert source.read_classes() == ("zebra", "ant")  # in their own order
    assert listed(source)[0] == ("data/test-00000-of-00002.parquet/0", "zebra", "test")
    assert [split for _, _, split in listed(source)] == ["test"] * 12 + ["train"] * 12
    info = packed(changed, "manifest", root, tmp_path / "packed").info
    assert info.counts["test"] == 12
    assert sum(info.counts.values()) == 24


def test_hugging_face_s_minus_one_is_an_image_without_a_label(changed: Changed, tmp_path: Path) -> None:
    gone = left_out(opened(changed, "manifest", write_hugging_face(tmp_path / "raw", last=-1)))
    assert len(gone) == 4
    assert gone["data/train-00001-of-00002.parquet/5"] == "row 5 of data/train-00001-of-00002.parquet has no label"


def test_a_number_that_is_no_class_of_hugging_face_is_an_error(changed: Changed, tmp_path: Path) -> None:
    source = opened(changed, "manifest", write_hugging_face(tmp_path / "raw", last=2))
    with pytest.raises(UserError, match=r"row 5 of data/test-00000-of-00002\.parquet has label 2; expected 0 to 1"):
        source.list_images()


def test_hugging_face_s_imagefolder_names_the_files_of_each_split(changed: Changed, tmp_path: Path) -> None:
    root = write_files(tmp_path / "raw", pngs(f"{split}/{n}.png" for split in ("train", "test") for n in range(4)))
    for split in ("train", "test"):
        rows = [("file_name", "label"), *((f"{n}.png", "ab"[n % 2]) for n in range(4))]
        write_table(root / split / "metadata.csv", rows)
    source = opened(changed, "manifest", root)
    assert listed(source)[:2] == [("test/0.png", "a", "test"), ("test/1.png", "b", "test")]
    assert [pixels(item)[0, 0] for item in source.list_images().items] == [4, 5, 6, 7, 0, 1, 2, 3]


def test_an_image_that_no_row_names_is_left_out_once(changed: Changed, root: Path) -> None:
    for folder in (root, root / "cat"):  # the folder of one table is in that of the other
        own = [name for name in NAMES if ("cat" in name) == (folder.name == "cat")][1:]
        rows = [(os.path.relpath(name, folder.relative_to(root)), name[:3]) for name in own]
        write_table(folder / "metadata.csv", [("file_name", "label"), *rows])
    gone = left_out(opened(changed, "manifest", root))
    assert gone == dict.fromkeys(["cat/0.png", "dog/0.png"], "no row of the table names it")


# Tables that are refused

Rows = Sequence[Sequence[object]]
GOOD: Rows = list(zip(NAMES, LABELS, strict=True))


def table(*rows: Sequence[object], header: Sequence[str] = ("path", "label")) -> Callable[[Path], Path]:
    return lambda root: write_table(root / "t.csv", [header, *rows])


def content(written: bytes, name: str = "t.csv") -> Callable[[Path], Path]:
    def write(root: Path) -> Path:
        (root / name).write_bytes(written)
        return root / name

    return write


def parquet(columns: Mapping[str, Any]) -> Callable[[Path], Path]:
    return lambda root: write_parquet(root / "t.parquet", columns)


def doubled_parquet(root: Path) -> Path:
    columns = [pa.array(NAMES), pa.array(LABELS), pa.array(LABELS)]
    pq.write_table(pa.Table.from_arrays(columns, ["path", "label", "label"]), root / "t.parquet")
    return root / "t.parquet"


def damaged_parquet(part: slice) -> Callable[[Path], Path]:
    def write(root: Path) -> Path:
        path = write_parquet(root / "t.parquet", {"path": NAMES, "label": LABELS})
        path.write_bytes(path.read_bytes()[part])
        return path

    return write


def not_utf_8_parquet(root: Path) -> Path:
    labels = pa.Array.from_buffers(pa.string(), 2, pa.array([b"caf\xe9", b"b"]).buffers())
    return write_parquet(root / "t.parquet", {"path": NAMES[:2], "label": labels})


REFUSED: dict[str, tuple[Callable[[Path], Path], str]] = {
    "an empty file": (content(b""), r"t\.csv has no column path or file or file_name; it has none"),
    "a header alone": (table(), "has no class; expected two or more"),
    "one class": (table(*GOOD[:3]), "has one class, 'cat'; expected two or more"),
    "no column of paths": (table(*GOOD, header=("name", "label")), "has no column path or file or file_name; it has '"),
    "no column of labels": (table(*GOOD, header=("path", "animal")), "has no column label or class; it has 'path', 'a"),
    "semicolons": (content(b"path;label\na.png;cat\n"), "has no column path .*it has 'path;label'"),
    "a doubled column": (table(header=("path", "label", "label")), r"t\.csv cannot be read as a table: column 'label'"),
    "a short row": (table(*GOOD, ("a.png",)), "line 14 has 1 fields, but the header 2"),
    "a long row": (table(("a.png", "cat", "more"), *GOOD), "line 2 has 3 fields, but the header 2"),
    "a long row after a text of two lines": (table(("a\nb.png", "cat"), ("a.png", "a", "b")), "line 4 has 3 fields"),
    "an open quote": (content(b'path,label\n"a.png,cat\n'), r"t\.csv cannot be read as a table: unexpected end of dat"),
    "Latin-1": (content("path,label\na.png,cat\nb.png,café\n".encode("latin-1")), r"t\.csv is not UTF-8 \(line 3\); s"),
    "UTF-16": (content("path,label\na.png,cat\n".encode("utf-16")), r"t\.csv is not UTF-8 \(line 1\); save it as UTF-"),
    "an unknown split": (table((NAMES[0], "a", "tset"), header=("path", "label", "split")),
                         r"line 2 of t\.csv has split 'tset'; did you mean test\?; expected train"),
    "a missing split": (table((NAMES[0], "a", ""), header=("path", "label", "split")),
                        r"line 2 of t\.csv has no split; expected train, val, .* or no column split"),
    "a group in two splits": (
        table((NAMES[0], "a", "train", "x"), (NAMES[1], "b", "test", "x"), header=("path", "label", "split", "group")),
        "group 'x' is in train and test; give all its images the same split",
    ),
    "a weight of 0": (table((NAMES[0], "a", "0"), header=("path", "label", "weight")),
                      r"line 2 of t\.csv has weight '0'; expected a number above 0, or nothing for 1"),
    "a weight that is a text": (table((NAMES[0], "a", "heavy"), header=("path", "label", "weight")),
                                r"line 2 of t\.csv has weight 'heavy'; expected a number above 0"),
    "an infinite weight": (parquet({"path": NAMES, "label": LABELS, "weight": [1.0] * 11 + [np.inf]}),
                           r"row 11 of t\.parquet has weight inf; expected a number above 0"),
    "a weight that is not a number": (parquet({"path": NAMES, "label": LABELS, "weight": [np.nan] * 12}),
                                      r"row 0 of t\.parquet has weight nan; expected a number above 0"),
    "a class that is a formula": (table(*GOOD, ("a.png", "=1+1")), "class '=1\\+1' begins like a formula"),
    "a class with a newline": (table(*GOOD, ("a.png", "a\nb")), r"class 'a\\nb' is empty or has a control character"),
    "a class with a NUL": (content(b"path,label\ncat/0.png,a\0b\ncat/1.png,c\n"), r"class 'a\\x00b' is empty or has a"),
    "a blank class": (table(*GOOD, ("a.png", " ")), "class ' ' is empty or has a control character"),
    "no table": (content(b"x", "t.txt"), r"is no table; data\.source = manifest expects a file \.csv or \.parquet"),
    "a folder without tables": (lambda root: root / "cat", r"is no table; data\.source = manifest expects"),
    "nothing": (lambda root: root / "gone.csv", r"is no table; data\.source = manifest expects"),
    "an empty Parquet file": (content(b"", "t.parquet"), r"t\.parquet cannot be read as a table: "),
    "text called Parquet": (content(b"hello" * 99, "t.parquet"), r"t\.parquet cannot be read as a table: "),
    "half a Parquet file": (damaged_parquet(slice(0, 300)), r"t\.parquet cannot be read as a table: "),
    "the end of a Parquet file": (damaged_parquet(slice(-300, None)), r"t\.parquet cannot be read as a table: "),
    "a doubled column in Parquet": (doubled_parquet, r"t\.parquet cannot be read as a table: column 'label' is in it "),
    "Parquet that is not UTF-8": (not_utf_8_parquet, r"t\.parquet is not UTF-8; save it as UTF-8"),
    "Parquet without labels": (parquet({"path": NAMES, "x": LABELS}), "has no column label or class; it has 'path', '"),
    "Parquet without images": (parquet({"image": NAMES, "label": LABELS}), "has no column path .*it has 'image', 'lab"),
    "Parquet without rows": (parquet({"path": pa.array([], pa.string()), "label": pa.array([], pa.string())}),
                             "has no class; expected two or more"),
    "labels that are lists": (parquet({"path": NAMES, "label": [[1]] * 12}), r"row 0 of t\.parquet has a label that i"),
    "labels that are bytes": (parquet({"path": NAMES, "label": [b"a"] * 12}), r"row 0 of t\.parquet has a label that "),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_refused_table_gives_one_line_that_names_it_and_the_fault(case: str, changed: Changed, root: Path) -> None:
    write, message = REFUSED[case]
    path = write(root)
    with pytest.raises(UserError, match=message) as raised:
        opened(changed, "manifest", path).list_images()
    assert str(path) in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1


# Rows that cannot be used, while the others can


def link_out(root: Path) -> None:
    (root.parent / "secret.png").write_bytes(png(99))
    (root / "odd.png").symlink_to(root.parent / "secret.png")


def linked_folder(root: Path) -> None:
    (root.parent / "secret").mkdir()
    (root.parent / "secret/1.png").write_bytes(png(99))
    (root / "more").symlink_to(root.parent / "secret")


def odd(content: bytes) -> Callable[[Path], object]:
    return lambda root: write_files(root, {"odd.png": content})


def nothing(root: Path) -> None:
    pass


AT = r"line 14 of t\.csv"
BELOW = "it is not below the folder of the table"
BAD_ROWS: dict[str, tuple[str, str, Callable[[Path], object], str, str]] = {
    "a missing file": ("gone.png", "cat", nothing, "gone.png", f"{AT}: there is no such file"),
    "a folder": ("cat", "cat", nothing, "cat", f"{AT}: there is no such file"),
    "a parent folder": ("../secret.png", "cat", nothing, "../secret.png", f"{AT}: {BELOW}"),
    "a parent folder on the way": ("cat/../dog/0.png", "cat", nothing, "cat/../dog/0.png", f"{AT}: {BELOW}"),
    "an absolute path": ("/etc/passwd", "cat", nothing, "/etc/passwd", f"{AT}: {BELOW}"),
    "a link out": ("odd.png", "cat", link_out, "odd.png", f"{AT}: it links to a file that is not below the folder"),
    "a linked folder": ("more/1.png", "cat", linked_folder, "more/1.png", f"{AT}: it links to a file that is not"),
    "a pipe": ("odd.png", "cat", lambda root: os.mkfifo(root / "odd.png"), "odd.png", f"{AT}: there is no such file"),
    "a name that is too long": ("x" * 300, "cat", nothing, "x" * 300, f"{AT}: File name too long"),
    "a name with a newline": ("a\nb.png", "cat", nothing, r"a\nb.png", f"{AT}: there is no such file"),
    "a name with a NUL": ("a\0b.png", "cat", nothing, r"a\x00b.png", f"{AT}: there is no such file"),
    "no name": ("", "cat", nothing, "line 14 of t.csv", f"{AT}: it names no file"),
    "no label": ("odd.png", "", odd(png(99)), "odd.png", f"{AT} has no label"),
    "the same file again": ("dog/0.png", "dog", nothing, "line 14 of t.csv", r"it names dog/0\.png, as line 8 of t\.c"),
    "the same file in other words": (".//dog/./0.png", "dog", nothing, "line 14 of t.csv", r"it names dog/0\.png, as "),
    "the same file as another class": ("dog/0.png", "cat", nothing, "line 14 of t.csv", r"it names dog/0\.png, as lin"),
    "zero bytes": ("odd.png", "cat", odd(b""), "odd.png", "not a recogn"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_ROWS)
def test_a_bad_row_fails_with_its_line_or_is_left_out(case: str, changed: Changed, root: Path, tmp_path: Path) -> None:
    path, label, prepare, shown, message = BAD_ROWS[case]
    prepare(root)
    table = write_table(root / "t.csv", [("path", "label"), *GOOD, (path, label)])
    with pytest.raises(UserError, match=message) as raised:
        packed(changed, "manifest", table, tmp_path / "failed")
    assert str(raised.value).startswith(f"{shown}: ")
    assert str(raised.value).endswith("; repair or remove it, or set data.bad_images to skip")
    assert len(str(raised.value).splitlines()) == 1
    result = packed(changed, "manifest", table, tmp_path / "packed", bad_images="skip")
    assert [row["file"] for row in result.left_out] == [shown]
    assert sum(result.info.counts.values()) == 12


@pytest.mark.parametrize("value", [None, {"bytes": None, "path": "1.png"}, {"bytes": b"", "path": None}])
def test_a_row_without_an_image_s_bytes_is_named(value: object, changed: Changed, tmp_path: Path) -> None:
    images = [{"bytes": content, "path": None} for content in animals().values()]
    table = write_parquet(tmp_path / "t.parquet", {"image": [*images, value], "label": [*LABELS, "cat"]})
    with pytest.raises(UserError, match=r"^t\.parquet/12: the row has no bytes of an image; repair"):
        packed(changed, "manifest", table, tmp_path / "packed")


def test_numbers_can_name_files(changed: Changed, tmp_path: Path) -> None:
    root = write_files(tmp_path / "raw", {"1": png(1), "2": png(2)})
    table = write_parquet(root / "t.parquet", {"path": [1, 2], "label": ["a", "b"]})
    assert [name for name, _, _ in listed(opened(changed, "manifest", table))] == ["1", "2"]


def test_damage_in_the_middle_of_a_parquet_file_is_named(changed: Changed, tmp_path: Path) -> None:
    images = [png(n) + np.random.default_rng(n).bytes(5000) for n in range(12)]
    table = write_parquet(tmp_path / "t.parquet", {"image": images, "label": LABELS}, 4)
    content = bytearray(table.read_bytes())
    content[4:60] = b"\xff" * 56  # the first page
    table.write_bytes(content)
    with pytest.raises(UserError, match=r"(?m)^t\.parquet/0: t\.parquet is damaged: .+"):
        packed(changed, "manifest", table, tmp_path / "packed")


@pytest.mark.parametrize("mode", ["fail", "skip"])
def test_a_class_of_which_all_images_are_faulty_is_an_error(
    mode: str, changed: Changed, root: Path, tmp_path: Path
) -> None:
    table = write_table(root / "t.csv", [("path", "label"), *GOOD, ("gone.png", "emu")])
    message = {"fail": r"^gone\.png: line 14", "skip": "no training image of class 'emu'; add training images"}[mode]
    with pytest.raises(UserError, match=message):
        packed(changed, "manifest", table, tmp_path / "packed", bad_images=mode)


@pytest.mark.parametrize("file", ["t.csv", "dog/3.png"])
def test_a_table_or_an_image_that_changes_while_it_is_read_is_an_error(file: str, changed: Changed, root: Path) -> None:
    source = opened(changed, "manifest", write_table(root / "t.csv", [("path", "label"), *GOOD]))
    listing = source.list_images()
    listing.check_unchanged()
    (root / file).write_bytes((root / file).read_bytes() + b"\n")
    with pytest.raises(UserError, match=rf"{file} was changed or removed while it was read; run again"):
        listing.check_unchanged()
