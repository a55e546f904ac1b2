"""Is one experiment better than another, and what differs between them? `make versus A=NAME [B=NAME]`.

Each is an experiment, commit, branch or tag; B defaults to this workspace. They are compared on the images that both
were tested on, so neither was trained on any of them.
"""

import csv
import io
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import yaml
from dvc.api import DVCFileSystem
from dvc.exceptions import DvcException
from dvc.scm import SCMError

from refit.artifacts.paths import OUTCOMES, TEST
from refit.evaluation.comparison import Comparison, Row, paired
from refit.params import load_params
from refit.params.dotted import flatten
from refit.reports.summary import Fact, as_lines
from refit.runtime.command import command_parser, run_command
from refit.runtime.errors import UserError

HERE = "workspace"
_SHOWN = 10  # classes, and images


class Tested(NamedTuple):
    """A tested model of a revision."""

    name: str
    model: str
    accuracy: float
    outcomes: list[Row]
    """The rows of outcomes.csv, one per test image."""
    params: dict[str, str]
    """Under dotted keys."""


def main(first: str, second: str) -> None:
    confidence = load_params().test.confidence
    a, b = read_tested(first), read_tested(second)
    if a.params.get("data.source") != b.params.get("data.source"):
        raise UserError(f"{a.name} and {b.name} have different images: data.source differs")
    labels = {row["file"]: row["actual"] for row in a.outcomes}  # an image with a new label counts as another
    theirs = {row["file"]: row["predicted"] for row in b.outcomes if row["actual"] == labels.get(row["file"])}
    comparison, differences = paired(a.outcomes, "other", theirs, confidence)
    if not comparison.images:
        raise UserError(f"{a.name} and {b.name} have no test image in common: their images have other names")
    print("\n".join(["Comparison", *as_lines(as_facts(a, b, comparison))]))
    print("\n".join(["", "Parameters that differ", *_aligned(different_params(a, b))]))
    print("\n".join(["", "Classes in which they differ most", *_aligned(different_classes(differences))]))
    print("\n".join(["", "Images that one of them has right", *_aligned(different_images(differences))]))


def read_tested(revision: str) -> Tested:
    """Raises UserError if there is no such revision, or its test results cannot be read."""
    try:
        read = _reader(revision)
        test = json.loads(read(str(TEST)))
        outcomes = list(csv.DictReader(io.StringIO(read(str(OUTCOMES)), newline="")))
        params = yaml.safe_load(read("params.yaml"))
    except SCMError:
        raise UserError(f"{revision} is no experiment, commit, branch or tag; `dvc exp list` has the names") from None
    except (OSError, DvcException) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"{revision} has no test results ({reason}); run it: dvc repro, or fetch them: dvc pull"
        ) from None
    if test.get("debug"):
        raise UserError(f"the test of {revision} is a debug run: its metrics say nothing about the model")
    return Tested(revision, test.get("tested", "?"), test["accuracy"], outcomes,
                  {key: str(value) for key, value in flatten(params).items()})  # fmt: skip


def _reader(revision: str) -> Callable[[str], str]:
    """A function that reads a file of the revision as text: from git, or DVC's cache or remote."""
    if revision == HERE:
        return lambda file: Path(file).read_text(encoding="utf-8")
    read: Callable[[str], str] = DVCFileSystem(rev=revision).read_text
    return read


def as_facts(a: Tested, b: Tested, found: Comparison) -> list[Fact]:
    surer = "A" if found.low > 0 else "B" if found.high < 0 else None
    return [
        *(
            Fact(letter, f"{one.name}: model {one.model}, accuracy {one.accuracy:.4f} on {len(one.outcomes):,} images")
            for letter, one in (("A", a), ("B", b))
        ),
        Fact("compared", f"{found.accuracy:.4f} with {found.other_accuracy:.4f} on {found.images:,} images of both"),
        Fact("difference", f"{found.difference:+.4f} (confidence interval {found.low:+.4f} to {found.high:+.4f})"),
        Fact("verdict", f"{surer} is better" if surer else "no more than chance may do"),
    ]


def different_params(a: Tested, b: Tested) -> list[tuple[str, str]]:
    keys = sorted(key for key in a.params.keys() | b.params.keys() if a.params.get(key) != b.params.get(key))
    rows = [(key, f"A {a.params.get(key, 'has none')}, B {b.params.get(key, 'has none')}") for key in keys]
    return rows or [("none", "the code, the images or the versions differ: git diff A B, dvc diff A B")]


def different_classes(differences: list[Row]) -> list[tuple[str, str]]:
    """The classes for which the numbers of right images differ most."""
    a = Counter(row["actual"] for row in differences if row["predicted"] == row["actual"])
    b = Counter(row["actual"] for row in differences if row["other"] == row["actual"])
    classes = sorted(a.keys() | b.keys(), key=lambda name: (-abs(a[name] - b[name]), name))
    return [(name, f"right by A alone {a[name]:,}, by B alone {b[name]:,}") for name in classes[:_SHOWN]]


def different_images(differences: list[Row]) -> list[tuple[str, str]]:
    rows = [(row["file"], f"is {row['actual']}: A {row['predicted']}, B {row['other']}") for row in differences]
    return [*rows[:_SHOWN], ("...", f"and {len(rows) - _SHOWN:,} more")] if len(rows) > _SHOWN else rows


def _aligned(rows: list[tuple[str, str]]) -> list[str]:
    width = max((len(name) for name, _ in rows), default=0)
    return [f"  {name:<{width}}  {text}" for name, text in rows] or ["  none"]


if __name__ == "__main__":
    parser = command_parser()
    parser.add_argument("first", metavar="A", help="an experiment, commit, branch or tag")
    parser.add_argument("second", metavar="B", nargs="?", default=HERE, help="another one; this workspace by default")
    run_command(main, parser)
