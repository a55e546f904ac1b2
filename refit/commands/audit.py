"""List near-duplicates and likely label errors with their pictures, the worst first: `make audit`.

It proposes rows for data/audit.csv and never writes them there: a person decides (`make decide`), and `prepare` obeys.
"""

import itertools
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from refit.artifacts.choices import read_batch
from refit.artifacts.decisions import read_decisions
from refit.artifacts.features import read_features_of_data
from refit.artifacts.files import whole_folder
from refit.artifacts.paths import AUDIT, AUDIT_PAGE, BATCH, DECISIONS, PREPARED, SUSPECTS
from refit.artifacts.prepared import DatasetInfo, Pixels, Split, pixels_in, read_info, read_manifest, read_split
from refit.artifacts.suspects import Prepared, Suspect, write_suspects
from refit.data.duplicates import SMALLEST, check_audit_packages, find_near_duplicates, groups_of
from refit.data.label_errors import Floats, find_label_errors
from refit.data.suspects import duplicate_suspects, label_suspects
from refit.params import Params, load_params
from refit.params.data import data_name
from refit.reports.audit import write_audit_page
from refit.runtime.command import run_command
from refit.runtime.errors import UserError
from refit.runtime.stage import run_stage

READS = ("seed", "data", "model", "trainer")
NAMED = 5  # suspects of each kind that are printed
WEAK = "small pixels, a weak detector: with pretrained weights (make photos) it finds far more"
_SMALL = 16  # pixels, of the images that are features themselves
_MICRO_BATCH = 16  # images, if scale_batch has not found how many fit


class Images(NamedTuple):
    """All prepared images, split by split."""

    info: DatasetInfo
    splits: list[Split]
    described: list[Prepared]

    def pixels(self, position: int) -> Pixels:
        """uint8 (C, H, W)."""
        for split in self.splits:
            if position < len(split.images):
                break
            position -= len(split.images)
        image: Pixels = split.images[position]
        return image


def main(params: Params) -> None:
    check_audit_packages()
    images, decisions = read_images(), read_decisions()
    kept = {decision.file for decision in decisions if decision.kind == "keep"}
    checked = {decision.file for decision in decisions}
    pairs = find_near_duplicates(images.pixels, len(images.described))
    features, made_of = read_or_compute_features(params, images)
    labels = np.concatenate([split.labels for split in images.splits])
    groups = groups_of(pairs, len(labels))
    errors = find_label_errors(features, labels, groups, params.seed)
    duplicates = duplicate_suspects(pairs, images.described, kept)
    wrong = label_suspects(errors, features, labels, images.info.classes, images.described, checked)
    name = data_name(params.data.source, params.data.root)
    with whole_folder(AUDIT) as folder:
        write_suspects(folder, [*duplicates, *wrong], images.info)
        pixels = pixels_in(PREPARED, read_manifest())
        write_audit_page(folder / AUDIT_PAGE.name, name, len(labels), duplicates, wrong, pixels, made_of)
    print("\n".join(summary(name, images.info, duplicates, wrong, made_of)))


def read_images() -> Images:
    """Raises UserError if there is no prepared data set."""
    info = read_info()
    splits = [read_split(name, mapped=True) for name in info.counts]
    return Images(info, splits, [Prepared(row.name, row.label, row.split) for row in read_manifest()])


def read_or_compute_features(params: Params, images: Images) -> tuple[Floats, str]:
    """(N, D), and what they are: those of data/features if they are of this data set, else those that the pretrained
    network in params.yaml computes now, else pixels."""
    features = read_features_of_data(images.info.sha256)
    if features is None and params.model.weights and params.model.system == "classifier":
        from refit.training.features import compute_features  # imports of seconds

        print(f"computing the features of {len(images.described):,} images", flush=True)
        try:
            _, features = compute_features(params, read_batch().micro_batch if BATCH.is_file() else _MICRO_BATCH)
        except UserError as error:  # such as a network that does not end with one linear layer
            print(f"no features: {error}")
    if features is not None and [len(features[split]) for split in images.info.counts] == [
        *images.info.counts.values()
    ]:
        return np.concatenate([features[split] for split in images.info.counts]), "the features of pretrained layers"
    return np.stack([_small(images.pixels(i)) for i in range(len(images.described))]), WEAK


def _small(pixels: Pixels) -> Floats:
    """(C * h * w,) of at most _SMALL x _SMALL pixels, 0..1."""
    channels = [Image.fromarray(channel) for channel in pixels]
    size = tuple(min(_SMALL, side) for side in channels[0].size)
    return (
        np.stack([np.asarray(channel.resize((size[0], size[1]), Image.Resampling.BOX)) for channel in channels]).ravel()
        / 255
    )


def summary(
    name: str, info: DatasetInfo, duplicates: Sequence[Suspect], wrong: Sequence[Suspect], made_of: str
) -> list[str]:
    """The lines that a person reads: the worst suspects of each kind, and how to decide."""
    across = sum(suspect.image.split != suspect.other.split for suspect in duplicates)
    mirrored = Counter(suspect.mirrored for suspect in duplicates)[True]
    pairs = "pair" if len(duplicates) == 1 else "pairs"
    lines = [
        f"Audit of {name}: {sum(info.counts.values()):,} images",
        f"  near-duplicates  {len(duplicates):,} {pairs}, {across:,} of them across splits, "
        f"{mirrored:,} mirrored",
        *(f"    {one.score:.3f}  {one.image.file} ({one.image.split}), {one.other.file} ({one.other.split})"
          for one in duplicates[:NAMED]),
        *([f"    smaller than {SMALLEST} pixels, so only identical images were looked for"]
          if min(info.shape[1:]) < SMALLEST else []),
        f"  label errors     {len(wrong):,} suspects, by {made_of}",
        *(f"    {one.score:.3f}  {one.image.file}: {one.image.label}, looks like {one.suggested}"
          for one in wrong[:NAMED]),
    ]  # fmt: skip
    worst = itertools.chain(duplicates[:1], wrong[:1])
    return [
        *lines,
        f"  pictures         {AUDIT_PAGE}, the worst first; {SUSPECTS} has all",
        "To decide with keys, one after the other: make decide",
        f"or add rows to {DECISIONS}, such as",
        *(f"  {one.proposed()}" for one in worst),
        "or with keep for an image that is right; then run: dvc repro",
    ]


if __name__ == "__main__":
    run_command(lambda: run_stage(lambda: main(load_params().only(*READS))))
