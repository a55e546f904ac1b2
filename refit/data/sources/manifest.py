"""A table of images: a CSV or Parquet file with a row for each, or a folder of such files.

A row names a file, below the table's own folder, or holds the image's bytes. Its columns:
- the image: `path`, `file` or `file_name`; or in Parquet `image` or `bytes`, the content of an image file, as bytes or
  as Hugging Face's {bytes, path};
- its class: `label` or `class`: a text, or a number; Hugging Face's ClassLabel gives the numbers their names;
- optional: `split` (train, val, valid, validation or test), and `group`, whose images all get the same split.

In a folder these are read: all `metadata.csv` of Hugging Face's imagefolder, or else all Parquet files. A file or its
folder whose name begins with that of a split, such as test-00000-of-00001.parquet, gives its rows this split.
"""

import csv
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from PIL import Image

from refit.artifacts.files import as_text
from refit.data.images import BadImageError, find_images, open_image
from refit.data.sources.source import (
    SPLIT_NAMES,
    LabelledImage,
    LeftOut,
    Listing,
    Source,
    SplitName,
    Unlabelled,
    listed,
)
from refit.params import DataParams, nearest
from refit.runtime.errors import UserError

TABLES = (".csv", ".parquet")
_FILE, _BYTES, _LABEL = ("path", "file", "file_name"), ("image", "bytes"), ("label", "class")
_NOT_LISTED = "no row of the table names it"
_SPLIT = re.compile(rf"({'|'.join(sorted(SPLIT_NAMES, key=len, reverse=True))})(?=[-._]|$)")


class _Table(NamedTuple):
    """One file of the manifest."""

    path: Path
    split: SplitName | None
    """That of its rows, by the file's name."""
    columns: Mapping[str, Sequence[Any]]
    """Without the bytes of images."""
    names: Sequence[str] | None
    """The class of each number, if the file tells it."""
    has_bytes: str | None
    """The column that holds the images."""


class _Row(NamedTuple):
    name: str
    """A path relative to the manifest's folder, or the table's name and the row."""
    label: str | None
    split: SplitName | None
    group: str | None
    file: Path | None
    where: str
    """For an error: the table and the row."""
    table: _Table
    number: int


def manifest(data: DataParams) -> Source:
    root, where = Path(data.root), f"data.root = {data.root!r}"
    tables = _tables(root, where)
    for table in tables:  # so that a wrong table is an error before any work
        _column(table, _LABEL)

    def list_images() -> Listing:
        return _list_images(root, where, tables)

    return Source(lambda: list_images().classes, list_images)


def images_in_table(path: Path) -> tuple[list[Unlabelled], list[LeftOut]]:
    """The images of a table, which needs no labels, and what is left out. Raises UserError."""
    rows, faults = _checked_rows(path, str(path), _tables(path, str(path)))
    return [Unlabelled(row.name, partial(_open, row)) for row in rows], faults


def _list_images(root: Path, where: str, tables: Sequence[_Table]) -> Listing:
    states = {path: path.stat().st_mtime_ns for path in (table.path for table in tables)}
    rows, left_out = _checked_rows(root, where, tables)
    images = []
    for row in rows:
        if row.label is None:
            left_out.append(LeftOut(row.name, f"{row.where} has no label", fault=True))
        else:
            images.append(LabelledImage(row.name, row.label, partial(_open, row), row.split, row.group))
    _check_groups(images, where)

    def check_unchanged() -> None:
        for path, state in states.items():
            if not path.exists() or path.stat().st_mtime_ns != state:
                raise UserError(f"{where}: {path.name} was changed or removed while it was read; run again")

    return listed(images, where, [*left_out, *_unnamed(root, rows, left_out)], _order(tables, images), check_unchanged)


def _order(tables: Sequence[_Table], images: Sequence[LabelledImage]) -> list[str] | None:
    """The classes as a table numbers them; None if the order is that of the alphabet."""
    present = {image.label for image in images}
    names = next((table.names for table in tables if table.names), None)
    return [name for name in names if name in present] if names and present <= set(names) else None


def _unnamed(root: Path, rows: Sequence[_Row], left_out: Sequence[LeftOut]) -> Iterator[LeftOut]:
    """The image files in the folders of the tables that no row names."""
    told = {gone.name for gone in left_out}
    named = {row.file for row in rows if row.file}
    base = _base(root)
    for folder in sorted({row.table.path.parent for row in rows if row.file}):
        for file in find_images(folder):
            name = _relative(file, base)
            if file not in named and name not in told:
                yield LeftOut(name, _NOT_LISTED)


def _check_groups(images: Sequence[LabelledImage], where: str) -> None:
    splits: dict[str, SplitName | None] = {}
    for image in images:
        if image.group is not None and splits.setdefault(image.group, image.split) != image.split:
            raise UserError(f"{where}: group {image.group!r} is in {splits[image.group]} and in {image.split}; give "
                            "all its rows the same split")  # fmt: skip


# Rows


def _checked_rows(root: Path, where: str, tables: Sequence[_Table]) -> tuple[list[_Row], list[LeftOut]]:
    """The rows whose image can be looked for, and what is wrong with the others."""
    rows: dict[str, _Row] = {}
    faults: list[LeftOut] = []
    for row in (row for table in tables for row in _rows(table, _base(root), where)):
        fault = None
        if row.name in rows:
            fault = f"{row.where} names the same image as {rows[row.name].where}"
        elif row.file is not None:
            fault = _fault_of_file(row)
        if fault:
            faults.append(LeftOut(row.name, fault, fault=True))
        else:
            rows[row.name] = row
    return list(rows.values()), faults


def _fault_of_file(row: _Row) -> str | None:
    file, folder = row.file, row.table.path.parent
    assert file is not None
    given = PurePosixPath(row.table.columns[_column(row.table, _FILE)][row.number] or "")
    if not given.parts:
        return f"{row.where} names no file"
    if given.is_absolute() or ".." in given.parts:
        return f"{row.where}: it is not below the folder of the table"
    if not file.is_file():
        return f"{row.where}: there is no such file"
    if not file.resolve().is_relative_to(folder.resolve()):
        return f"{row.where}: it links to a file that is not below the folder of the table"
    return None


def _rows(table: _Table, base: Path, where: str) -> Iterator[_Row]:
    columns = table.columns
    label = next((columns[name] for name in _LABEL if name in columns), None)
    file_column = None if table.has_bytes else _column(table, _FILE)
    count = len(next(iter(columns.values()))) if columns else 0
    shown = _relative(table.path, base)
    for number in range(count):
        file = None
        name = f"{shown}/{number}"
        if file_column:
            given = str(columns[file_column][number] or "")
            file = table.path.parent / given
            name = given if table.path.parent == base else f"{_relative(table.path.parent, base)}/{given}"
        at = f"row {number + 2 if table.path.suffix == '.csv' else number} of {shown}"
        yield _Row(
            name or at, _label(label[number] if label else None, table, f"{where}: {at}"),
            _split(columns["split"][number], f"{where}: {at}") if "split" in columns else table.split,
            _text(columns["group"][number]) if "group" in columns else None, file, at, table, number,
        )  # fmt: skip


def _label(value: object, table: _Table, where: str) -> str | None:
    if table.names is not None and isinstance(value, int):
        if not 0 <= value < len(table.names):
            if value == -1:  # Hugging Face's mark for an image without a label
                return None
            raise UserError(f"{where} has label {value}; expected 0 to {len(table.names) - 1}")
        return table.names[value]
    return _text(value)


def _text(value: object) -> str | None:
    return None if value is None or value == "" else str(value)


def _split(value: object, where: str) -> SplitName | None:
    text = _text(value)
    if text is None:
        raise UserError(f"{where} has no split; expected {', '.join(SPLIT_NAMES)}, or no column split")
    if text.lower() not in SPLIT_NAMES:
        raise UserError(f"{where} has split {text!r}{nearest(text, list(SPLIT_NAMES))}; expected "
                        f"{', '.join(SPLIT_NAMES)}")  # fmt: skip
    return SPLIT_NAMES[text.lower()]


def _open(row: _Row) -> Image.Image:
    if row.file is not None:
        return open_image(row.file)
    content = _bytes(row)
    if content is None:
        raise BadImageError("it is empty")
    return open_image(content)


# Tables


def _tables(root: Path, where: str) -> list[_Table]:
    if root.is_file() and root.suffix.lower() in TABLES:
        files = [root]
    elif root.is_dir():
        files = sorted(root.rglob("metadata.csv")) or sorted(root.rglob("*.parquet"))
    else:
        files = []
    if not files:
        raise UserError(f"{where} is no table; data.source = manifest expects a file {' or '.join(TABLES)}, or a "
                        "folder with metadata.csv or Parquet files")  # fmt: skip
    return [_read_table(file, _split_of(file, root), where) for file in files]


def _split_of(file: Path, root: Path) -> SplitName | None:
    for part in reversed(file.relative_to(root).parts if file != root else ()):
        if found := _SPLIT.match(part):
            return SPLIT_NAMES[found[1]]
    return None


def _read_table(file: Path, split: SplitName | None, where: str) -> _Table:
    try:
        if file.suffix.lower() == ".csv":
            table = _Table(file, split, _read_csv(file), None, None)
        else:
            table = _read_parquet(file, split)
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: {file.name} is not UTF-8 (byte {error.start:,}); save it as UTF-8") from None
    except (OSError, ValueError, csv.Error) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{where}: {file.name} cannot be read as a table: {reason}") from None
    if not table.has_bytes:
        _column(table, _FILE)
    return table


def _read_csv(file: Path) -> dict[str, list[str | None]]:
    with file.open(encoding="utf-8-sig", newline="") as text:
        rows = csv.reader(text, strict=True)
        header = next(rows, [])
        if len(set(header)) < len(header):
            raise ValueError(f"a column is named twice: {', '.join(header)}")
        columns: dict[str, list[str | None]] = {name: [] for name in header}
        for row in rows:
            if not row:
                continue
            if len(row) != len(header):
                raise ValueError(f"line {rows.line_num} has {len(row)} fields, but the header {len(header)}")
            for name, value in zip(header, row, strict=True):
                columns[name].append(value)
    return columns


def _read_parquet(file: Path, split: SplitName | None) -> _Table:
    import pyarrow.parquet as pq

    parquet = pq.ParquetFile(file)
    schema = parquet.schema_arrow
    has_bytes = next((name for name in _BYTES if name in schema.names and _holds_bytes(schema.field(name).type)), None)
    wanted = [name for name in (*_FILE, *_LABEL, "split", "group") if name in schema.names]
    columns = parquet.read(columns=wanted).to_pydict()
    if not wanted:
        columns = {"": [None] * parquet.metadata.num_rows}
    return _Table(file, split, columns, _class_names(schema.metadata or {}), has_bytes)


def _holds_bytes(kind: Any) -> bool:
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return "bytes" in kind.names
    return any(is_kind(kind) for is_kind in (pa.types.is_binary, pa.types.is_large_binary))


def _class_names(metadata: Mapping[bytes, bytes]) -> list[str] | None:
    """Those of Hugging Face's ClassLabel."""
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        return next(list(map(str, features[name]["names"])) for name in _LABEL if name in features)
    except (KeyError, ValueError, TypeError, StopIteration):
        return None


def _bytes(row: _Row) -> bytes | None:
    assert row.table.has_bytes is not None
    groups = _row_groups(row.table.path)
    group = next(i for i, (start, end) in enumerate(groups) if start <= row.number < end)
    value = _column_of_group(row.table.path, group, row.table.has_bytes)[row.number - groups[group][0]].as_py()
    found: bytes | None = value["bytes"] if isinstance(value, dict) else value
    return found or None


@lru_cache(maxsize=64)
def _row_groups(path: Path) -> list[tuple[int, int]]:
    """The first row of each row group, and the one after its last."""
    import pyarrow.parquet as pq

    metadata, start, found = pq.ParquetFile(path).metadata, 0, []
    for group in range(metadata.num_row_groups):
        end = start + metadata.row_group(group).num_rows
        found.append((start, end))
        start = end
    return found


@lru_cache(maxsize=1)  # neighbouring rows are read one after the other
def _column_of_group(path: Path, group: int, column: str) -> Any:
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(path).read_row_group(group, columns=[column], use_threads=False).column(column)
    except (OSError, ValueError) as error:
        raise BadImageError(f"{path.name} is damaged: {str(error).partition(chr(10))[0]}") from None


def _column(table: _Table, names: Sequence[str]) -> str:
    """The column that has one of these names. Raises UserError if none has."""
    found = next((name for name in names if name in table.columns), None)
    if found is None:
        has = ", ".join(
            map(repr, [name for name in table.columns if name] + ([table.has_bytes] if table.has_bytes else []))
        )
        raise UserError(f"{table.path} has no column {' or '.join(names)}; it has {has or 'none'}")
    return found


def _base(root: Path) -> Path:
    return root if root.is_dir() else root.parent


def _relative(path: Path, base: Path) -> str:
    return as_text(path.relative_to(base).as_posix())
