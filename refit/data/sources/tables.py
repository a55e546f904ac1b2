"""CSV and Parquet files with a row for each image."""

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from refit.artifacts.files import as_text
from refit.data.images import BadImageError
from refit.data.sources.source import SPLIT_NAMES, SplitName
from refit.runtime.errors import UserError

TABLES = (".csv", ".parquet")
FILE, _BYTES, LABEL = ("path", "file", "file_name"), ("image", "bytes"), ("label", "class")
_SPLIT = re.compile(rf"({'|'.join(sorted(SPLIT_NAMES, key=len, reverse=True))})(?=[-._]|$)")
_DAMAGED = (OSError, ValueError, pa.ArrowException)


class Table(NamedTuple):
    """One file of a manifest."""

    path: Path
    split: SplitName | None
    """That of its rows, by the file's name."""
    rows: int
    all_columns: Sequence[str]
    columns: Mapping[str, Sequence[Any]]
    """Those that are used, without the bytes of images."""
    lines: Sequence[int] | None = None
    """Where each row of a CSV file is in it."""
    names: Sequence[str] | None = None
    """The class of each number, if the file tells it."""
    has_bytes: str | None = None
    """The column that holds the images."""


def table_files(root: Path, where: str) -> list[Path]:
    """The tables in the manifest `root`, sorted: itself, if it is a file. Raises UserError if it has no table."""
    if root.is_file() and root.suffix.lower() in TABLES:
        return [root]
    for pattern in ("metadata.csv", "*.parquet"):
        if files := [file for file in sorted(root.rglob(pattern)) if file.is_file() and not _is_hidden(file, root)]:
            return files
    raise UserError(f"{where} is no table; data.source = manifest expects a file {' or '.join(TABLES)}, or a folder "
                    "with metadata.csv or Parquet files")  # fmt: skip


def _is_hidden(file: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(root).parts)


def read_table(file: Path, root: Path, where: str) -> Table:
    """A table that names or holds an image in each row. Raises UserError."""
    split = _split_of(file, root)
    try:
        table = _read_csv(file, split) if file.suffix.lower() == ".csv" else _read_parquet(file, split)
    except UnicodeDecodeError as error:
        line = f" (line {error.object.count(10, 0, error.start) + 1:,})" if file.suffix.lower() == ".csv" else ""
        raise UserError(f"{where}: {as_text(file.name)} is not UTF-8{line}; save it as UTF-8") from None
    except (*_DAMAGED, csv.Error) as error:
        raise UserError(f"{where}: {as_text(file.name)} cannot be read as a table: {_first_line(error)}") from None
    if not table.has_bytes:
        column_of(table, FILE)
    return table


def column_of(table: Table, names: Sequence[str]) -> str:
    """The column that has one of these names. Raises UserError if none has."""
    found = next((name for name in names if name in table.columns), None)
    if found is None:
        has = ", ".join(map(repr, table.all_columns)) or "none"
        raise UserError(f"{as_text(str(table.path))} has no column {' or '.join(names)}; it has {has}")
    return found


def bytes_of(table: Table, number: int) -> bytes | None:
    """The image in a row of a table that holds them. Raises BadImageError."""
    assert table.has_bytes is not None
    try:
        groups = _row_groups(table.path)
        group = next(i for i, (start, end) in enumerate(groups) if start <= number < end)
        value = _column_of_group(table.path, group, table.has_bytes)[number - groups[group][0]].as_py()
    except (*_DAMAGED, StopIteration, IndexError) as error:
        raise BadImageError(f"{as_text(table.path.name)} is damaged: {_first_line(error)}") from None
    found: bytes | None = value["bytes"] if isinstance(value, dict) else value
    return found


def _split_of(file: Path, root: Path) -> SplitName | None:
    for part in reversed(file.relative_to(root).parts):
        if found := _SPLIT.match(part):
            return SPLIT_NAMES[found[1]]
    return None


def _first_line(error: Exception) -> str:
    return as_text(str(error).strip().partition("\n")[0]) or type(error).__name__


# CSV


def _read_csv(file: Path, split: SplitName | None) -> Table:
    rows = csv.reader(io.StringIO(file.read_bytes().decode("utf-8-sig"), newline=""), strict=True)
    header = next(rows, [])
    _check_header(header)
    columns: dict[str, list[str]] = {name: [] for name in header}
    lines = []
    line = rows.line_num + 1  # the next row's first one
    for row in rows:
        if row:
            if len(row) != len(header):
                raise ValueError(f"line {line} has {len(row)} fields, but the header {len(header)}")
            for name, value in zip(header, row, strict=True):
                columns[name].append(value)
            lines.append(line)
        line = rows.line_num + 1
    return Table(file, split, len(lines), header, columns, lines)


def _check_header(header: Sequence[str]) -> None:
    if twice := [name for number, name in enumerate(header) if name in header[:number]]:
        raise ValueError(f"column {twice[0]!r} is in it twice")


# Parquet


def _read_parquet(file: Path, split: SplitName | None) -> Table:
    with pq.ParquetFile(file) as parquet:
        schema = parquet.schema_arrow
        _check_header(schema.names)
        fields = [schema.field(name) for name in _BYTES if name in schema.names]
        has_bytes = next((field.name for field in fields if _holds_bytes(field.type)), None)
        wanted = [name for name in (*FILE, *LABEL, "split", "group", "weight") if name in schema.names]
        columns = parquet.read(columns=wanted).to_pydict()
        count, names = parquet.metadata.num_rows, _class_names(schema.metadata or {})
    return Table(file, split, count, schema.names, columns, None, names, has_bytes)


def _holds_bytes(kind: Any) -> bool:
    if pa.types.is_struct(kind):
        return "bytes" in kind.names and _holds_bytes(kind.field("bytes").type)
    return any(is_kind(kind) for is_kind in (pa.types.is_binary, pa.types.is_large_binary))


def _class_names(metadata: Mapping[bytes, bytes]) -> list[str] | None:
    """Those of Hugging Face's ClassLabel."""
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        return next(list(map(str, features[name]["names"])) for name in LABEL if name in features)
    except (KeyError, ValueError, TypeError, StopIteration):
        return None


@lru_cache(maxsize=64)
def _row_groups(path: Path) -> list[tuple[int, int]]:
    """The first row of each row group, and the one after its last."""
    start, found = 0, []
    with pq.ParquetFile(path) as parquet:
        for group in range(parquet.metadata.num_row_groups):
            end = start + parquet.metadata.row_group(group).num_rows
            found.append((start, end))
            start = end
    return found


@lru_cache(maxsize=1)  # neighbouring rows are read one after the other
def _column_of_group(path: Path, group: int, column: str) -> Any:
    with pq.ParquetFile(path) as parquet:
        return parquet.read_row_group(group, columns=[column], use_threads=False).column(column)
