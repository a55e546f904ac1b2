"""Train, validation and test splits: stratified, seeded, no duplicates across splits, stable as images are added."""

import hashlib
from collections import defaultdict
from collections.abc import Sequence

from refit.data.sources.source import SPLITS, Item, SplitName
from refit.params import DataParams
from refit.runtime.errors import UserError


def find_label_conflicts(items: Sequence[Item], hashes: Sequence[str]) -> list[list[int]]:
    """Groups of images with identical pixels but different labels, as positions in `items`."""
    return [group for group in _groups(hashes) if len({items[i].label for i in group}) > 1]


def assign_splits(
    items: Sequence[Item], hashes: Sequence[str], data: DataParams, seed: int, near: Sequence[int] = ()
) -> list[SplitName | None]:
    """The split of each item; None for a training copy of a held-out image, which is left out.

    `hashes` are the sha256 of each item's pixels; `near`, if given, is the number of each item's group of
    near-duplicates. Splits that the source defines are kept. A missing split is drawn from the training images of each
    class, in groups of identical pixels, of near-duplicates or of the source's own groups, so that all copies of an
    image, and all images of a group, are in the same split. The images of a class are sorted by a hash of
    their names and divided into test, val and train, in this order: when images are added or removed, the others keep
    their splits, except for the few at a boundary.
    """
    given = {item.split for item in items if item.split is not None}
    assigned: list[SplitName | None] = [None] * len(items)
    free: list[list[int]] = []
    for copies in _groups(hashes):
        held_out = [i for i in copies if items[i].split in ("val", "test")]
        if not held_out:
            free.append(copies)
            continue
        strictest: SplitName = "test" if any(items[i].split == "test" for i in copies) else "val"
        for i in copies:
            assigned[i] = strictest if items[i].split == strictest else None
    to_draw: dict[int, list[list[int]]] = defaultdict(list)
    names: list[list[str | int]] = [[] if item.group is None else [item.group] for item in items]
    for own, number in zip(names, near, strict=False):
        own.append(number)
    for group in _joined(free, names):
        to_draw[items[group[0]].label].append(group)

    fractions = {"test": 0 if "test" in given else data.test, "val": 0 if "val" in given else data.val}
    for groups in to_draw.values():
        test = round(fractions["test"] * len(groups))
        val = round(fractions["val"] * len(groups))
        for place, group in enumerate(sorted(groups, key=lambda group: min(_rank(items[i], seed) for i in group))):
            split: SplitName = "test" if place < test else "val" if place < test + val else "train"
            for i in group:
                assigned[i] = split
    for split in SPLITS:
        if split not in assigned:
            hint = f"; raise data.{split}" if split != "train" else ""
            raise UserError(f"data.source = {data.source!r}: with {len(items)} images the {split} split is empty{hint}")
    return assigned


def _joined(copies: Sequence[list[int]], groups: Sequence[Sequence[str | int]]) -> list[list[int]]:
    """Groups of identical pixels, joined where they have images of the same group. `groups` are those of each image: a
    text is one of the source's, a number one of near-duplicates."""
    joined: dict[int, list[int]] = {}  # by the position of the first of its images
    first_of: dict[str | int, int] = {}
    for positions in copies:
        names = {group for i in positions for group in groups[i]}
        together = sorted({first_of[name] for name in names if name in first_of})
        merged = [i for first in together for i in joined.pop(first)] + positions
        joined[merged[0]] = merged
        first_of |= {group: merged[0] for i in merged for group in groups[i]}
    return list(joined.values())


def _rank(item: Item, seed: int) -> bytes:
    """A pseudo-random sort key that depends on the seed and the item's name alone."""
    return hashlib.sha256(f"{seed} {item.name}".encode("utf-8", "surrogateescape")).digest()


def _groups(hashes: Sequence[str]) -> list[list[int]]:
    """Positions grouped by equal hash, in order of first appearance."""
    groups: dict[str, list[int]] = defaultdict(list)
    for i, digest in enumerate(hashes):
        groups[digest].append(i)
    return list(groups.values())
