"""A table of images: a CSV or Parquet file with a row for each, or a folder of such files.

A row names a file, below the table's own folder, or holds the image's bytes. Its columns:
- the image: `path`, `file` or `file_name`; or in Parquet `image` or `bytes`, the content of an image file, as bytes or
  as Hugging Face's {bytes, path};
- its class: `label` or `class`: a text, or a number; Hugging Face's ClassLabel gives the numbers their names;
- optional: `split` (train, val, valid, validation or test); `group`, whose images all get the same split; and `weight`,
  how much a training image counts in the loss, 1 if it is empty.

In a folder these are read: all `metadata.csv` of Hugging Face's imagefolder, or else all Parquet files. A file or its
folder whose name begins with that of a split, such as test-00000-of-00001.parquet, gives its rows this split.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import NamedTuple

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
    Watched,
    listed,
)
from refit.data.sources.tables import FILE, LABEL, Table, bytes_of, column_of, read_table, table_files
from refit.params import DataParams, nearest
from refit.runtime.errors import UserError

_NOT_LISTED = "no row of the table names it"


class _Row(NamedTuple):
    name: str
    """A path relative to the manifest's folder, or the table's name and the row."""
    at: str
    """For an error: the row, or its line, and the table."""
    table: Table
    number: int
    file: Path | None = None
    given: PurePosixPath | None = None
    """The file as the row names it."""
    label: str | None = None
    split: SplitName | None = None
    group: str | None = None
    weight: float = 1.0


def manifest(data: DataParams) -> Source:
    root, where = Path(data.root), f"data.root = {data.root!r}"
    files = table_files(root, where)
    watched = Watched({_relative(file, _base(root)): file for file in files}, where)
    tables = [read_table(file, root, where) for file in files]
    for table in tables:  # so that a wrong table is an error before any work
        column_of(table, LABEL)

    def list_images() -> Listing:
        return _list_images(root, where, tables, watched)

    return Source(lambda: list_images().classes, list_images)


def images_in_table(path: Path) -> tuple[list[Unlabelled], list[LeftOut]]:
    """The images of a table, which needs no labels, and what is left out. Raises UserError."""
    tables = [read_table(file, path, str(path)) for file in table_files(path, str(path))]
    rows, faults = _checked(row for table in tables for row in _rows(table, _base(path)))
    return [Unlabelled(as_text(row.name), partial(_open, row)) for row in rows], faults


def _list_images(root: Path, where: str, tables: Sequence[Table], watched: Watched) -> Listing:
    found = [_labelled(row, where) for table in tables for row in _rows(table, _base(root))]
    rows, left_out = _checked(found)
    images, files = [], Watched({row.name: row.file for row in rows if row.file}, where)
    for row in rows:
        if row.label is None:
            left_out.append(LeftOut(row.name, f"{row.at} has no label", fault=True))
        else:
            version = files.version(row.name) if row.file else watched.version(_relative(row.table.path, _base(root)))
            images.append(
                LabelledImage(row.name, row.label, partial(_open, row), row.split, row.group, version, row.weight)
            )

    def check_unchanged() -> None:
        watched.check_unchanged()
        files.check_unchanged()

    left_out += _unnamed(root, rows, left_out)
    # Also those of which all images have a fault: they are to be found missing.
    classes = _order(tables, {row.label for row in found if row.label is not None})
    return listed(images, where, left_out, classes, check_unchanged)


def _order(tables: Sequence[Table], present: set[str]) -> list[str]:
    """The classes as a table numbers them, or else in alphabetical order."""
    names = next((table.names for table in tables if table.names), None)
    return [name for name in names if name in present] if names and present <= set(names) else sorted(present)


def _unnamed(root: Path, rows: Sequence[_Row], left_out: Sequence[LeftOut]) -> list[LeftOut]:
    """The image files in the folders of the tables that no row names."""
    told = {gone.name for gone in left_out}
    named = {row.file for row in rows if row.file}
    folders = {row.table.path.parent for row in rows if row.file}
    files = {file for folder in folders for file in find_images(folder)} - named
    names = sorted(file.relative_to(_base(root)).as_posix() for file in files)
    return [LeftOut(name, _NOT_LISTED) for name in names if name not in told]


# Rows


def _rows(table: Table, base: Path) -> Iterator[_Row]:
    file_column = None if table.has_bytes else column_of(table, FILE)
    shown = _relative(table.path, base)
    folder = table.path.parent.relative_to(base)
    for number in range(table.rows):
        at = f"row {number} of {shown}" if table.lines is None else f"line {table.lines[number]} of {shown}"
        if file_column is None:
            yield _Row(f"{shown}/{number}", at, table, number)
        else:
            given = PurePosixPath(_text(table.columns[file_column][number]) or "")
            yield _Row(str(folder / given) if given.parts else at, at, table, number, table.path.parent / given, given)


def _labelled(row: _Row, where: str) -> _Row:
    """The row with its label, split, group and weight. Raises UserError."""
    columns, where = row.table.columns, f"{where}: {row.at}"
    label = _label(columns[column_of(row.table, LABEL)][row.number], row.table, where)
    split = _split(columns["split"][row.number], where) if "split" in columns else row.table.split
    group = _text(columns["group"][row.number]) if "group" in columns else None
    weight = _weight(columns["weight"][row.number], where) if "weight" in columns else 1.0
    return row._replace(label=label, split=split, group=group, weight=weight)


def _checked(rows: Iterable[_Row]) -> tuple[list[_Row], list[LeftOut]]:
    """The rows whose image can be looked for, and what is wrong with the others."""
    first: dict[str, _Row] = {}
    good, faults = [], []
    for row in rows:
        if row.name in first:  # left out under the row's own name, as the image may be in the data set
            faults.append(LeftOut(row.at, f"it names {as_text(row.name)}, as {first[row.name].at} does", fault=True))
            continue
        first[row.name] = row
        if fault := _fault_of_file(row):
            faults.append(LeftOut(row.name, f"{row.at}: {fault}", fault=True))
        else:
            good.append(row)
    return good, faults


def _fault_of_file(row: _Row) -> str | None:
    file, given, folder = row.file, row.given, row.table.path.parent
    if file is None or given is None:
        return None
    if not given.parts:
        return "it names no file"
    if given.is_absolute() or ".." in given.parts:
        return "it is not below the folder of the table"
    try:
        if not file.is_file():
            return "there is no such file"
    except OSError as error:  # such as a name that is too long
        return f"{error.strerror}"
    if not file.resolve().is_relative_to(folder.resolve()):
        return "it links to a file that is not below the folder of the table"
    return None


def _label(value: object, table: Table, where: str) -> str | None:
    if table.names is not None and isinstance(value, int):
        if not 0 <= value < len(table.names):
            if value == -1:  # Hugging Face's mark for an image without a label
                return None
            raise UserError(f"{where} has label {value}; expected 0 to {len(table.names) - 1}")
        return table.names[value]
    if isinstance(value, (bytes, list, dict)):
        raise UserError(f"{where} has a label that is neither a text nor a number")
    return _text(value)


def _text(value: object) -> str | None:
    if isinstance(value, float):  # as pandas writes a column of integers of which some are missing
        return None if math.isnan(value) else f"{value:.0f}" if value.is_integer() else str(value)
    return None if value is None or value == "" else str(value)


def _split(value: object, where: str) -> SplitName | None:
    text = _text(value)
    if text is None:
        raise UserError(f"{where} has no split; expected {', '.join(SPLIT_NAMES)}, or no column split")
    if text.lower() not in SPLIT_NAMES:
        raise UserError(f"{where} has split {text!r}{nearest(text, list(SPLIT_NAMES))}; expected "
                        f"{', '.join(SPLIT_NAMES)}")  # fmt: skip
    return SPLIT_NAMES[text.lower()]


def _weight(value: object, where: str) -> float:
    if value is None or value == "":
        return 1.0
    try:
        weight = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        weight = math.nan
    if not 0 < weight < math.inf:
        raise UserError(f"{where} has weight {value!r}; expected a number above 0, or nothing for 1")
    return weight


def _open(row: _Row) -> Image.Image:
    if row.file is not None:
        return open_image(row.file)
    content = bytes_of(row.table, row.number)
    if not content:
        raise BadImageError("the row has no bytes of an image")
    return open_image(content)


def _base(root: Path) -> Path:
    return root if root.is_dir() else root.parent


def _relative(path: Path, base: Path) -> str:
    return as_text(path.relative_to(base).as_posix())
