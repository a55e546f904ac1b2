"""Train, validation and test splits: stratified, seeded, and without common pixels."""

from collections import Counter
from itertools import count
from pathlib import Path
from typing import cast

import pytest
from PIL import Image

from refit.data.sources.source import Item, SplitName
from refit.data.splits import assign_splits, find_label_conflicts
from refit.params import DataParams
from refit.runtime.errors import UserError
from tests.fixtures import Changed

_NUMBERS = count()


def item(label: int, split: SplitName | None = None, name: str | None = None) -> Item:
    return Item(name or f"{next(_NUMBERS)}.png", label, split, lambda: Image.new("L", (1, 1)))


@pytest.fixture
def data(changed: Changed) -> DataParams:
    return changed({"data.val": 0.15, "data.test": 0.2}).data


ITEMS = [item(label) for label, count in enumerate((7, 50, 101, 333)) for _ in range(count)]
DISTINCT = [str(i) for i in range(len(ITEMS))]


def test_splits_are_stratified_to_within_one_image_per_class(data: DataParams) -> None:
    splits = assign_splits(ITEMS, DISTINCT, data, seed=0)
    counts = Counter((entry.label, split) for entry, split in zip(ITEMS, splits, strict=True))
    for label, total in Counter(entry.label for entry in ITEMS).items():
        assert abs(counts[label, "test"] - 0.2 * total) < 1
        assert abs(counts[label, "val"] - 0.15 * total) < 1
        assert counts[label, "train"] == total - counts[label, "test"] - counts[label, "val"]


def test_the_same_seed_gives_the_same_split_and_another_seed_another_split(data: DataParams) -> None:
    first = assign_splits(ITEMS, DISTINCT, data, seed=1)
    assert first == assign_splits(ITEMS, DISTINCT, data, seed=1)
    other = assign_splits(ITEMS, DISTINCT, data, seed=2)
    assert sum(a != b for a, b in zip(first, other, strict=True)) > len(ITEMS) / 4


def test_no_class_is_split_in_file_order(data: DataParams) -> None:
    """Neighbouring files are often frames of the same video."""
    splits = assign_splits(ITEMS, DISTINCT, data, seed=0)
    for label in (2, 3):
        tested = [i for i, split in enumerate(s for s, e in zip(splits, ITEMS, strict=True) if e.label == label)
                  if split == "test"]  # fmt: skip
        assert max(tested) - min(tested) > 2 * len(tested)


def test_a_new_class_does_not_change_the_splits_of_the_others(data: DataParams) -> None:
    before = assign_splits(ITEMS, DISTINCT, data, seed=0)
    more = [item(4) for _ in range(20)]
    after = assign_splits([*ITEMS, *more], [*DISTINCT, *(f"new{i}" for i in range(20))], data, seed=0)
    assert after[: len(ITEMS)] == before


def test_added_images_move_almost_no_other_image_and_none_from_train_to_test(data: DataParams) -> None:
    """Otherwise a model would be tested on training images of the earlier model that it is compared with."""
    grown, hashes = list(ITEMS), list(DISTINCT)
    before = assign_splits(grown, hashes, data, seed=0)
    moves: Counter[tuple[SplitName | None, SplitName | None]] = Counter()
    for day in range(20):  # added at the front, because the order of the files must not matter
        added = [f"added {day} {i}" for i in range(12)]
        grown = [*(item(i % 4, None, name) for i, name in enumerate(added)), *grown]
        hashes = [*added, *hashes]
        after = assign_splits(grown, hashes, data, seed=0)
        moves.update(zip(before, after[12:], strict=True))
        before = after
    stayed = sum(count for (old, new), count in moves.items() if old == new)
    assert stayed / moves.total() > 0.98
    assert not moves["train", "test"]
    assert moves["train", "val"], "some images at a border between splits always move"


def test_an_image_s_split_does_not_depend_on_the_prepared_size(data: DataParams) -> None:
    """Another data.image_size gives other pixels."""
    assert assign_splits(ITEMS, DISTINCT, data, 0) == assign_splits(ITEMS, [f"64 {i}" for i in DISTINCT], data, 0)


def test_identical_pixels_are_never_in_two_splits(data: DataParams) -> None:
    hashes = [str(i % 37) for i in range(333)]
    splits = assign_splits(ITEMS[-333:], hashes, data, seed=0)
    assert Counter(splits).keys() == {"train", "val", "test"}
    assert len(set(zip(hashes, splits, strict=True))) == 37


@pytest.mark.parametrize("held_out", ["val", "test"])
def test_a_training_copy_of_a_held_out_image_is_left_out(held_out: SplitName, data: DataParams) -> None:
    items = [item(0, "train"), item(0, held_out), item(0, "train"), *(item(0, "train") for _ in range(20))]
    hashes = ["twin", "twin", "twin", *(str(i) for i in range(20))]
    assert assign_splits(items, hashes, data, seed=0)[:3] == [None, held_out, None]


def test_an_image_in_val_and_test_stays_in_test_only(data: DataParams) -> None:
    items = [item(0, "val"), item(0, "test"), item(0, "train"), item(0, "val"), item(0, "train")]
    assert assign_splits(items, ["twin", "twin", "twin", "a", "b"], data, 0) == [None, "test", None, "val", "train"]


def test_the_source_s_own_splits_are_kept(data: DataParams) -> None:
    own = cast(list[SplitName], ["train"] * 10 + ["val"] * 3 + ["test"] * 5)
    assert assign_splits([item(0, split) for split in own], DISTINCT[:18], data, seed=0) == own


def test_a_split_that_the_source_lacks_is_drawn_from_its_training_images(data: DataParams) -> None:
    items = [item(i % 2, "train") for i in range(40)] + [item(i % 2, "test") for i in range(10)]
    splits = assign_splits(items, DISTINCT[:50], data, seed=0)
    assert splits[40:] == ["test"] * 10
    assert Counter(splits[:40]) == {"train": 34, "val": 6}


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_fraction_too_small_for_one_image_fails_with_an_error_that_names_its_key(
    split: str, changed: Changed
) -> None:
    data = changed({f"data.{split}": 0.01}).data
    with pytest.raises(UserError, match=rf"with 10 images the {split} split is empty; raise data\.{split}"):
        assign_splits([item(0) for _ in range(10)], DISTINCT[:10], data, seed=0)


def test_identical_images_of_two_classes_are_found(tmp_path: Path) -> None:
    items = [item(label) for label in (0, 1, 0, 1, 2, 0)]
    assert find_label_conflicts(items, ["a", "b", "a", "c", "b", "d"]) == [[1, 4]]


def test_near_duplicates_and_the_source_s_groups_are_never_in_two_splits(data: DataParams) -> None:
    """Each image is in a chain of them: near-duplicates of one group connect the images of another one."""
    items = [Item(f"{i}.png", 0, None, ITEMS[0].open, f"person {i // 2}") for i in range(300)]
    near = [i // 3 for i in range(300)]
    splits = assign_splits(items, DISTINCT[:300], data, seed=0, near=near)
    assert Counter(splits).keys() == {"train", "val", "test"}
    for first in range(0, 300, 6):  # two persons share the near-duplicates in the middle
        assert len(set(splits[first : first + 6])) == 1
