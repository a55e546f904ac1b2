"""The suspects of an audit: pairs of near-duplicates and likely label errors, the worst first, each with the row of
data/audit.csv that it proposes."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np

from refit.artifacts.decisions import COLUMNS
from refit.artifacts.files import csv_text
from refit.data.duplicates import Pair
from refit.data.label_errors import Floats, LabelSuspect, Numbers
from refit.data.sources.source import SPLITS


class Prepared(NamedTuple):
    """A prepared image."""

    file: str
    label: str
    split: str


@dataclass(frozen=True)
class Suspect:
    rank: int
    """From 1, among those of its kind."""
    kind: Literal["label", "duplicate"]
    image: Prepared
    other: Prepared
    """duplicate: the image to keep. label: the most similar image of the suggested class."""
    suggested: str
    """The class that it may be; empty for a duplicate."""
    score: float
    """duplicate: the similarity, up to 1, high is worse. label: the probability of its label, low is worse."""
    mirrored: bool
    shown: tuple[int, ...]
    """Positions of the images that its pictures show: its own, that of `other`, and for a label the most similar image
    of its own label, if there is one."""

    def as_row(self) -> dict[str, object]:
        """Of suspects.csv."""
        return {
            "rank": self.rank, "kind": self.kind, "file": self.image.file, "other": self.other.file,
            "label": self.image.label, "suggested": self.suggested, "score": f"{self.score:.4f}",
            "split": self.image.split, "other_label": self.other.label, "other_split": self.other.split,
        }  # fmt: skip

    def proposed(self) -> str:
        """The row of data/audit.csv, for a person to take or not."""
        if self.kind == "duplicate":
            where = "" if self.other.split == self.image.split else f" in {self.other.split}"
            where += "" if self.other.label == self.image.label else f", which is {self.other.label}"
            values = (self.image.file, "drop", "", f"near-duplicate of {self.other.file}{where}")
        else:
            values = (self.image.file, "relabel", self.suggested, f"it was {self.image.label}")
        return csv_text([dict(zip(COLUMNS, values, strict=True))]).partition("\n")[2].rstrip("\n")


def duplicate_suspects(pairs: Sequence[Pair], images: Sequence[Prepared], kept: Collection[str]) -> list[Suspect]:
    """Pairs across splits first, whose test measures memory, then those with two labels, then by similarity. Of a pair
    the image in the training split is to go, or the second one. Pairs with an image in `kept` are no suspects."""
    order: dict[str, int] = {split: number for number, split in enumerate(SPLITS)}
    found = []
    for pair in pairs:
        first, second = images[pair.first], images[pair.second]
        positions = (pair.first, pair.second) if order[first.split] < order[second.split] else (pair.second, pair.first)
        image, other = (images[i] for i in positions)
        if image.file not in kept and other.file not in kept:
            found.append(Suspect(0, "duplicate", image, other, "", pair.similarity, pair.mirrored, positions))
    found.sort(key=lambda one: (one.image.split == one.other.split, one.image.label == one.other.label, -one.score))
    return _ranked(found)


def label_suspects(
    suspects: Sequence[LabelSuspect], features: Floats, labels: Numbers, classes: Sequence[str],
    images: Sequence[Prepared], checked: Collection[str],
) -> list[Suspect]:  # fmt: skip
    """In their order, each with the most similar images of both classes by the cosine of their features (N, D). Those
    in `checked` are no suspects."""
    directions = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    of_class = [np.flatnonzero(labels == label) for label in range(len(classes))]
    found = []
    for suspect in suspects:
        i = suspect.position
        if images[i].file in checked:
            continue
        alike = []
        for label in (suspect.suggested, labels[i]):
            candidates = of_class[label][of_class[label] != i]
            alike += [int(candidates[(directions[candidates] @ directions[i]).argmax()])] if len(candidates) else []
        suggested = classes[suspect.suggested]
        found.append(Suspect(0, "label", images[i], images[alike[0]], suggested, suspect.score, False, (i, *alike)))
    return _ranked(found)


def _ranked(suspects: Sequence[Suspect]) -> list[Suspect]:
    return [replace(suspect, rank=rank) for rank, suspect in enumerate(suspects, start=1)]
