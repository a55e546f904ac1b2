"""Read data/audit.csv: what people decided about single images of the source. `prepare` obeys it; nothing writes it."""

import csv
import io
from pathlib import Path
from typing import Literal, NamedTuple, cast, get_args

from refit.artifacts.paths import DECISIONS
from refit.runtime.errors import UserError

Kind = Literal["keep", "drop", "relabel"]
COLUMNS = ("file", "decision", "label", "why")


class Decision(NamedTuple):
    file: str
    """The image's name in the source, as prepare's tables write it."""
    kind: Kind
    label: str
    """The new class; empty unless `kind` is relabel."""
    why: str
    row: int
    """Its line in the file, for errors."""

    def __str__(self) -> str:
        return f"{DECISIONS}, line {self.row}, {self.file}"


def read_decisions(path: Path = DECISIONS) -> list[Decision]:
    """The decisions, in the order of the file. An empty list if the file does not exist or is empty.

    Raises UserError that names the line if a column is missing, or a row is not a decision or decides about a file
    again.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")  # spreadsheets begin a file with a byte order mark
    except FileNotFoundError:
        return []
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise UserError(f"{path}, line {line}: not UTF-8; save the file as CSV with the encoding UTF-8") from None
    rows = csv.DictReader(io.StringIO(text, newline=""), skipinitialspace=True)
    if text.strip() and (missing := [name for name in COLUMNS if name not in (rows.fieldnames or ())]):
        first = text.splitlines()[0]
        raise UserError(
            f"{path}, line 1: there is no column {', '.join(missing)} in {first!r}; expected {','.join(COLUMNS)}"
        )
    found: dict[str, Decision] = {}
    for values in rows:
        decision = _decision(values, rows.line_num, path)
        if before := found.get(decision.file):
            raise UserError(f"{decision} is decided about in line {before.row} already; delete one of the two")
        found[decision.file] = decision
    return list(found.values())


def _decision(values: dict[str, str | None], row: int, path: Path) -> Decision:
    file, kind, label, why = ((values[name] or "").strip() for name in COLUMNS)
    where = f"{path}, line {row}"
    if None in values:
        raise UserError(f"{where}: more than {len(COLUMNS)} values; put a value with a comma into double quotes")
    if not file:
        raise UserError(f"{where}: the file is missing; name an image, or delete the line")
    if kind not in get_args(Kind):
        raise UserError(f"{where}, {file}: the decision {kind!r} is unknown; expected {', '.join(get_args(Kind))}")
    if kind == "relabel" and not label:
        raise UserError(f"{where}, {file}: relabel needs the new class in the column label")
    if kind != "relabel" and label:
        raise UserError(f"{where}, {file}: {kind} takes no label, and {label!r} is one; empty it, or relabel the image")
    return Decision(file, cast(Kind, kind), label, why, row)
