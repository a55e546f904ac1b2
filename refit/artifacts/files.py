"""Read files, and write them atomically: a file is complete or it does not exist."""

import csv
import io
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from refit.runtime.errors import UserError

CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
"""Characters that begin a new line or change what a terminal shows."""


def as_text(name: str) -> str:
    """A file name as valid Unicode in one line, for tables and errors: bytes that are not UTF-8 are escaped, and so are
    control characters."""
    escaped = CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), name)
    return escaped.encode("utf-8", "backslashreplace").decode()


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Write a file atomically: a reader never sees a part of it, not even after a power failure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sibling = path.with_name(f".{path.name}.partial")
    with sibling.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    sibling.replace(path)
    _fsync_folder(path.parent)


def write_json(path: Path, value: object) -> None:
    """Write `value` as indented JSON. Raises ValueError on NaN and infinity, which JSON does not have."""
    write_bytes(path, (json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n").encode())


def read_json(path: Path, command: str) -> dict[str, Any]:
    """The object in a JSON file. Raises UserError if it is missing or invalid; the message says to run `command`."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; run: {command}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {error}; run: {command}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} does not contain a JSON object; run: {command}")
    return values


def csv_text(rows: Sequence[Mapping[str, object]], columns: Sequence[str] = ()) -> str:
    """Rows that share their keys, as CSV. The header is `columns`, or the first row's keys."""
    text = io.StringIO(newline="")
    if names := list(columns or (rows[0] if rows else ())):
        writer = csv.DictWriter(text, fieldnames=names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return text.getvalue()


def write_csv(path: Path, rows: Sequence[Mapping[str, object]], columns: Sequence[str] = ()) -> None:
    """Write a table as csv_text formats it."""
    write_bytes(path, csv_text(rows, columns).encode())


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of a table that write_csv wrote."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def read_numbers(path: Path) -> list[dict[str, float]]:
    """The rows of a table that write_csv wrote, all of whose values are numbers."""
    return [{name: float(value) for name, value in row.items()} for row in read_csv(path)]


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A new empty folder to fill. It replaces `path` if the block succeeds, and is removed if the block fails."""
    sibling = path.with_name(f".{path.name}.partial")
    shutil.rmtree(sibling, ignore_errors=True)
    sibling.mkdir(parents=True)
    try:
        yield sibling
        for file in sibling.rglob("*"):
            if file.is_file():
                with file.open("rb") as written:
                    os.fsync(written.fileno())
        shutil.rmtree(path, ignore_errors=True)
        sibling.replace(path)
        _fsync_folder(path.parent)
    finally:
        shutil.rmtree(sibling, ignore_errors=True)


def _fsync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
