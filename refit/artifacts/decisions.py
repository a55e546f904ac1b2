"""data/audit.csv: what people decided about single images of the source, by hand or with `make decide`. `prepare` obeys
it."""

import csv
import io
from pathlib import Path
from typing import Literal, NamedTuple, cast, get_args

from refit.artifacts.files import csv_text, write_bytes
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
    row: int = 0
    """Its line in the file, for errors; 0 if it is not from there."""

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
    return _parsed(text, path)


def decide(file: str, decision: Decision | None, path: Path = DECISIONS) -> Decision | None:
    """Write what is decided about this file now, in place of what was decided before, which is returned; None stands
    for no decision.

    The rows are sorted by file, so that the same decisions are the same bytes in whatever order they were made. Further
    columns stay, and so does the row if it says the same already. Raises UserError as read_decisions does, and for a
    name that a table cannot hold; then nothing is written.
    """
    before = {one.file: one for one in read_decisions(path)}.get(file)
    if same(before, decision):
        return before
    content = path.read_text(encoding="utf-8-sig") if path.exists() else ""
    table = csv.DictReader(io.StringIO(content, newline=""), skipinitialspace=True)
    columns = list(table.fieldnames or COLUMNS)
    rows = {(row["file"] or "").strip(): row for row in table}
    if decision is None:
        del rows[file]
    else:
        rows[file] = rows.get(file, {}) | dict(zip(COLUMNS, decision, strict=False))
    text = csv_text([rows[name] for name in sorted(rows)], columns)
    if not same({one.file: one for one in _parsed(text, path)}.get(file), decision):
        raise UserError(f"{path} cannot hold the name {file!r}, which begins or ends with a space; rename the file")
    write_bytes(path, text.encode())
    return before


def same(one: Decision | None, other: Decision | None) -> bool:
    """Whether both decide the same, for whatever reason."""
    return (one and one[:3]) == (other and other[:3])


def as_csv(decision: Decision) -> str:
    """The decision as a row of the file, without the end of the line."""
    return csv_text([dict(zip(COLUMNS, decision, strict=False))]).partition("\n")[2].rstrip("\n")


def _parsed(text: str, path: Path) -> list[Decision]:
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
