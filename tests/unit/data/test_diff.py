"""What differs between two data sets."""

import pytest

from refit.artifacts.prepared import ManifestRow
from refit.data.diff import differences


def row(name: str, label: str = "cat", split: str = "train", sha256: str | None = None) -> ManifestRow:
    return ManifestRow(name, split, label, sha256 or f"pixels of {name}", 8, 8)


A = [row("a"), row("b"), row("c", "dog"), row("d", split="test")]


@pytest.mark.parametrize(
    ("b", "expected"),
    [
        (A, []),
        ([*reversed(A)], []),
        ([*A, row("e")], [("added", "e (cat, train)")]),
        (A[1:], [("removed", "a (cat, train)")]),
        ([row("a", sha256="other"), *A[1:]], [("changed", "a (cat, train)")]),
        ([row("z", sha256="pixels of a"), *A[1:]], [("renamed", "a -> z")]),
        ([row("a", "dog"), *A[1:]], [("relabelled", "a: cat -> dog")]),
        ([row("a", split="val"), *A[1:]], [("moved", "a: train -> val")]),
        ([row("a", "dog", "val"), *A[1:]], [("relabelled", "a: cat -> dog"), ("moved", "a: train -> val")]),
        (
            [row("dog/a", "dog", sha256="pixels of a"), *A[1:]],
            [("renamed", "a -> dog/a"), ("relabelled", "dog/a: cat -> dog")],
        ),
    ],
)
def test_each_difference_is_named_once(b: list[ManifestRow], expected: list[tuple[str, str]]) -> None:
    assert [(one.kind, one.describe()) for one in differences(A, b)] == expected


def test_images_prepared_at_another_size_are_not_called_changed() -> None:
    smaller = [row._replace(sha256=f"small {row.name}") for row in A]
    assert differences(A, smaller) == []
    assert [one.kind for one in differences(A, [*smaller, row("e")])] == ["added"]


def test_of_two_copies_one_is_renamed_and_the_other_removed() -> None:
    before = [row("a", sha256="same"), row("b", sha256="same"), row("c")]
    found = differences(before, [row("z", sha256="same"), row("c")])
    assert [(one.kind, one.describe()) for one in found] == [("removed", "b (cat, train)"), ("renamed", "a -> z")]
