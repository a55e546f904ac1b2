"""docs/promises.md and docs/lightning.md name tests that exist."""

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
PROMISES = TESTS.parent / "docs/promises.md"
LIGHTNING = TESTS.parent / "docs/lightning.md"
NAMED = re.compile(r"`([^`\s]*/test_[^`\s]*)`")


def names_in(file: Path) -> set[str]:
    """The names of a file's tests as in pytest, such as TestScaler::test_x; empty if the file does not exist."""
    body = ast.parse(file.read_text(encoding="utf-8")).body if file.is_file() else []
    names = {node.name for node in body if isinstance(node, ast.FunctionDef)}
    for one in body:
        if isinstance(one, ast.ClassDef):
            names |= {f"{one.name}::{node.name}" for node in one.body if isinstance(node, ast.FunctionDef)}
    return names


@pytest.mark.parametrize(("page", "at_least"), [(PROMISES, 80), (LIGHTNING, 50)])
def test_every_test_named_on_a_page_exists(page: Path, at_least: int) -> None:
    named = NAMED.findall(page.read_text(encoding="utf-8"))
    assert len(named) > at_least, "too few names were found on the page"
    missing = []
    for reference in named:
        path, _, name = reference.partition("::")
        there = names_in(TESTS / path)
        if not there or (name and name not in there):
            missing.append(reference)
    assert not missing


def test_every_promise_names_a_test() -> None:
    rows = [line for line in PROMISES.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    assert not [row for row in rows if not NAMED.search(row) and "| Promise |" not in row]
