"""The suspects of an audit: pairs of near-duplicates and likely label errors, the worst first."""

from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np

from refit.artifacts.suspects import Prepared, Suspect
from refit.data.duplicates import Pair
from refit.data.label_errors import Floats, LabelSuspect, Numbers
from refit.data.sources.source import SPLITS


def duplicate_suspects(pairs: Sequence[Pair], images: Sequence[Prepared], kept: Collection[str]) -> list[Suspect]:
    """Pairs across splits first, whose test measures memory, then those with two labels, then by similarity. Of a pair
    the image in the training split is to go, or the second one. Pairs with an image in `kept` are no suspects."""
    order: dict[str, int] = {split: number for number, split in enumerate(SPLITS)}
    found = []
    for pair in pairs:
        first, second = images[pair.first], images[pair.second]
        image, other = (first, second) if order[first.split] < order[second.split] else (second, first)
        if image.file not in kept and other.file not in kept:
            found.append(Suspect(0, "duplicate", image, other, "", pair.similarity, pair.mirrored))
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
            alike += [images[candidates[(directions[candidates] @ directions[i]).argmax()]]] if len(candidates) else []
        suggested, of_its_own = classes[suspect.suggested], alike[1].file if len(alike) > 1 else ""
        found.append(Suspect(0, "label", images[i], alike[0], suggested, suspect.score, False, of_its_own))
    return _ranked(found)


def _ranked(suspects: Sequence[Suspect]) -> list[Suspect]:
    return [replace(suspect, rank=rank) for rank, suspect in enumerate(suspects, start=1)]
