"""Compare two experiments: which one is better, and how they differ. `make versus A=NAME [B=NAME]`.

A and B are experiments, commits, branches or tags; B defaults to this workspace. They are compared on the images that
both were tested on, so that neither was trained on them.
"""

import csv
import io
import json
from collections import Counter
from contextlib import suppress
from typing import NamedTuple

import yaml
from dvc.exceptions import DvcException

from pipelines.tools.revisions import HERE, reader, reading
from refit.artifacts.paths import DECISIONS, OUTCOMES, TEST
from refit.evaluation.comparison import Comparison, Row, paired
from refit.params import PARAMS_FILE, load_params
from refit.params.dotted import flatten
from refit.reports.summary import Fact, as_lines
from refit.runtime.command import command_parser, run_command
from refit.runtime.errors import UserError
from refit.tasks.task import TASKS

_SHOWN = 10  # classes, or images


class Tested(NamedTuple):
    """The tested model of a revision."""

    name: str
    model: str
    task: str
    score: float
    outcomes: list[Row]
    """The rows of outcomes.csv, one per test image."""
    params: dict[str, str]
    """Values by dotted key."""
    decisions: frozenset[str] = frozenset()
    """The rows of data/audit.csv."""


def main(first: str, second: str) -> None:
    """Raises UserError if there is no `first`, or the two cannot be compared."""
    if not first:
        raise UserError(
            "A is missing: the experiment, commit, branch or tag to compare with the model in this folder, as in: "
            "make versus A=exp-name; to list the experiments: dvc exp list"
        )
    confidence = load_params().test.confidence
    a, b = read_tested(first), read_tested(second)
    comparison, differences = compared(a, b, confidence)
    print("\n".join(["Comparison", *as_lines(as_facts(a, b, comparison))]))
    print("\n".join(["", "Parameters that differ", *_aligned(different_params(a, b))]))
    print("\n".join(["", "Classes with the largest difference", *_aligned(different_classes(a.task, differences))]))
    print("\n".join(["", "Images that one model predicts better", *_aligned(different_images(differences))]))


def read_tested(revision: str) -> Tested:
    """Raises UserError if there is no such revision, or its test results cannot be read."""
    with reading(revision, "test results"):
        read = reader(revision)
        test = json.loads(read(TEST))
        outcomes = list(csv.DictReader(io.StringIO(read(OUTCOMES).decode(), newline="")))
        params = yaml.safe_load(read(PARAMS_FILE))
    decisions: list[str] = []
    with suppress(OSError, DvcException):  # there was no such file before
        decisions = read(DECISIONS).decode().splitlines()[1:]
    if test.get("debug"):
        raise UserError(f"the test of {revision} is a debug run: its metrics are not those of a fully trained model")
    task = test.get("task", "classification")  # the only task of the versions that did not write it
    values = {key: str(value) for key, value in flatten(params).items()}
    score = test[TASKS[task].SCORE]
    return Tested(revision, test.get("tested", "?"), task, score, outcomes, values, frozenset(filter(None, decisions)))


def compared(a: Tested, b: Tested, confidence: float) -> tuple[Comparison, list[Row]]:
    """The two on their common test images, as in paired(). Raises UserError if they cannot be compared."""
    if a.params.get("data.source") != b.params.get("data.source"):
        raise UserError(f"{a.name} and {b.name} have different images: data.source differs")
    if a.task != b.task:
        raise UserError(f"{a.name} and {b.name} solve different tasks: {a.task} and {b.task}")
    labels = {row["file"]: row["actual"] for row in a.outcomes}  # an image with a new label is a different image
    predicted_by_b = {row["file"]: row["predicted"] for row in b.outcomes if row["actual"] == labels.get(row["file"])}
    found = paired(a.outcomes, "other", predicted_by_b, TASKS[a.task].outcome_scores, confidence)
    if not found[0].images:
        raise UserError(f"{a.name} and {b.name} have no test images in common: no file name and label is in both")
    return found


def as_facts(a: Tested, b: Tested, found: Comparison) -> list[Fact]:
    if a.model == b.model and not found.this_better and not found.other_better:
        verdict = "they are the same model"
    elif found.low <= 0 <= found.high:
        verdict = "neither is better: the difference may be chance"
    else:
        verdict = "A is better" if found.low > 0 else "B is better"
    score = TASKS[a.task].SCORE
    return [
        *(
            Fact(letter, f"{one.name}: model {one.model}, {score} {one.score:.4f} on {len(one.outcomes):,} images")
            for letter, one in (("A", a), ("B", b))
        ),
        Fact(score, f"A {found.score:.4f}, B {found.other_score:.4f} on {found.images:,} common images"),
        Fact("difference", f"{found.difference:+.4f} (confidence interval {found.low:+.4f} to {found.high:+.4f})"),
        Fact("verdict", verdict),
    ]


def different_params(a: Tested, b: Tested) -> list[tuple[str, str]]:
    keys = sorted(key for key in a.params.keys() | b.params.keys() if a.params.get(key) != b.params.get(key))
    rows = [(key, f"A {a.params.get(key, 'not set')}, B {b.params.get(key, 'not set')}") for key in keys]
    if a.decisions != b.decisions:
        only_a, only_b = len(a.decisions - b.decisions), len(b.decisions - a.decisions)
        rows.append((str(DECISIONS), f"decisions about images: {only_a:,} only in A, {only_b:,} only in B"))
    return rows or [("none", "the code, the images or the packages may differ; see: git diff A B, dvc diff A B")]


def different_classes(task: str, differences: list[Row]) -> list[tuple[str, str]]:
    """The classes with the largest difference in the number of images that a model predicts better."""
    scores, actual = TASKS[task].outcome_scores, [row["actual"] for row in differences]
    by_a, by_b = (scores(actual, [row[who] for row in differences]) for who in ("predicted", "other"))
    a = Counter(name for name, better in zip(actual, by_a > by_b, strict=True) if better)
    b = Counter(name for name, better in zip(actual, by_b > by_a, strict=True) if better)
    classes = sorted(a.keys() | b.keys(), key=lambda name: (-abs(a[name] - b[name]), name))
    return [(name, f"A is better: {a[name]:,}, B: {b[name]:,}") for name in classes[:_SHOWN]]


def different_images(differences: list[Row]) -> list[tuple[str, str]]:
    rows = [(row["file"], f"true {row['actual']}: A {row['predicted']}, B {row['other']}") for row in differences]
    return [*rows[:_SHOWN], ("...", f"and {len(rows) - _SHOWN:,} more")] if len(rows) > _SHOWN else rows


def _aligned(rows: list[tuple[str, str]]) -> list[str]:
    width = max((len(name) for name, _ in rows), default=0)
    return [f"  {name:<{width}}  {text}" for name, text in rows] or ["  none"]


if __name__ == "__main__":
    parser = command_parser()
    parser.add_argument("first", metavar="A", nargs="?", default="", help="an experiment, commit, branch or tag")
    parser.add_argument("second", metavar="B", nargs="?", default=HERE, help="another one; this workspace by default")
    run_command(main, parser)
