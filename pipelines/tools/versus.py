"""Is one experiment better than another, and what is different in it? `python -m pipelines.tools.versus A [B]`.

Each is an experiment, commit, branch or tag; B may be left out for what lies here. Compared on the images that both
were tested on, so that neither was trained on any.
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

from refit.evaluation.comparison import Comparison, Row, paired
from refit.params import load_params
from refit.reports.summary import Fact, as_lines
from refit.runtime.command import run_command
from refit.runtime.errors import UserError
from refit.tracking.runs import flatten

HERE = "workspace"
_SHOWN = 10  # classes, and images


class Tested(NamedTuple):
    """A model that was tested, in some revision."""

    name: str
    model: str
    accuracy: float
    outcomes: list[Row]
    """Of each test image: outcomes.csv."""
    params: dict[str, str]
    """With dotted keys."""


def main(arguments: list[str]) -> None:
    if not 1 <= len(arguments) <= 2 or any(argument.startswith("-") for argument in arguments):
        raise UserError("usage: python -m pipelines.tools.versus A [B], each an experiment, commit, branch or tag")
    confidence = load_params().test.confidence
    a, b = (read_tested(name) for name in (*arguments, HERE)[:2])
    if a.params.get("data.source") != b.params.get("data.source"):
        raise UserError(f"{a.name} and {b.name} are of other images: data.source differs")
    labels = {row["file"]: row["actual"] for row in a.outcomes}  # an image that was labelled anew is another
    theirs = {row["file"]: row["predicted"] for row in b.outcomes if row["actual"] == labels.get(row["file"])}
    comparison, differences = paired(a.outcomes, "other", theirs, confidence)
    if not comparison.images:
        raise UserError(f"{a.name} and {b.name} have no test image in common: their images have other names")
    print("\n".join(["Comparison", *as_lines(as_facts(a, b, comparison))]))
    print("\n".join(["", "Parameters that differ", *_aligned(different_params(a, b))]))
    print("\n".join(["", "Classes in which they differ most", *_aligned(different_classes(differences))]))
    print("\n".join(["", "Images that one of them has right", *_aligned(different_images(differences))]))


def read_tested(revision: str) -> Tested:
    """Raises UserError where there is no such revision, or none of its tests is at hand."""
    try:
        read = _reader(revision)
        test = json.loads(read("data/evaluation/test.json"))
        outcomes = list(csv.DictReader(io.StringIO(read("data/evaluation/outcomes.csv"), newline="")))
        params = yaml.safe_load(read("params.yaml"))
    except SCMError:
        raise UserError(f"{revision} is no experiment, commit, branch or tag; `dvc exp list` has the names") from None
    except (OSError, DvcException) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{revision} holds no test ({reason}); run it: dvc repro, or bring it: dvc pull") from None
    if test.get("debug"):
        raise UserError(f"the test of {revision} is a debug run: its figures say nothing of a model")
    return Tested(revision, test.get("tested", "?"), test["accuracy"], outcomes, flatten(params))


def _reader(revision: str) -> Callable[[str], str]:
    """What reads a file of the revision as text: from DVC's cache or remote, or git."""
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
    return rows or [("none", "it is the code, the images or the versions: git diff A B, dvc diff A B")]


def different_classes(differences: list[Row]) -> list[tuple[str, str]]:
    """By how many images more one of them has right of a class, the largest numbers first."""
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
    run_command(main)
