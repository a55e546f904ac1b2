"""Train, validation and test: stratified, seeded, never the same pixels on two sides, and kept as images are added."""

import hashlib
from collections import defaultdict
from collections.abc import Sequence

from refit.data.sources import SPLITS, Item, SplitName
from refit.params import DataParams
from refit.runtime.errors import UserError


def find_label_conflicts(items: Sequence[Item], hashes: Sequence[str]) -> list[list[int]]:
    """Groups of images with identical pixels but different labels, as positions in `items`."""
    return [group for group in _groups(hashes) if len({items[i].label for i in group}) > 1]


def assign_splits(items: Sequence[Item], hashes: Sequence[str], data: DataParams, seed: int) -> list[SplitName | None]:
    """The split of each item; None for a training copy of a held-out image, which is left out.

    `hashes` names each item's pixels. Splits that the source has are kept; a missing one is drawn from the training
    images, class by class and over groups of identical pixels, so that all copies of an image fall on one side. What is
    drawn of an image depends on its name: as others come and go it stays where it is, but for the few at a border
    between two splits. Where val is drawn too, test borders on val alone.
    """
    own = {item.split for item in items if item.split is not None}
    assigned: list[SplitName | None] = [None] * len(items)
    to_draw: dict[int, list[list[int]]] = defaultdict(list)
    for group in _groups(hashes):
        held_out = [i for i in group if items[i].split in ("val", "test")]
        if not held_out:
            to_draw[items[group[0]].label].append(group)
            continue
        strictest: SplitName = "test" if any(items[i].split == "test" for i in group) else "val"
        for i in group:
            assigned[i] = strictest if items[i].split == strictest else None

    shares = {"test": 0 if "test" in own else data.test, "val": 0 if "val" in own else data.val}
    for groups in to_draw.values():
        test = round(shares["test"] * len(groups))
        val = round(shares["val"] * len(groups))
        for place, group in enumerate(sorted(groups, key=lambda group: min(_rank(items[i], seed) for i in group))):
            split: SplitName = "test" if place < test else "val" if place < test + val else "train"
            for i in group:
                assigned[i] = split
    for split in SPLITS:
        if split not in assigned:
            hint = f"; raise data.{split}" if split != "train" else ""
            raise UserError(f"data.source = {data.source!r}: the {split} split of {len(items)} images is empty{hint}")
    return assigned


def _rank(item: Item, seed: int) -> bytes:
    """As good as random, and the item's own."""
    return hashlib.sha256(f"{seed} {item.name}".encode("utf-8", "surrogateescape")).digest()


def _groups(hashes: Sequence[str]) -> list[list[int]]:
    """Positions that share their hash, in order of first appearance."""
    groups: dict[str, list[int]] = defaultdict(list)
    for i, digest in enumerate(hashes):
        groups[digest].append(i)
    return list(groups.values())
