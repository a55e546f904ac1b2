"""The suspects of the last `make audit`: pairs of near-duplicates and likely label errors, the worst first.

`data/audit` has `suspects.csv`, a row for each; `audit.json`, which names the data set; and the page.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from refit.artifacts.decisions import Decision, Kind, as_csv
from refit.artifacts.files import read_csv, read_json, write_csv, write_json
from refit.artifacts.paths import AUDIT_RECORD, PREPARED, SUSPECTS
from refit.artifacts.prepared import DatasetInfo
from refit.runtime.errors import UserError

COLUMNS = ("rank", "kind", "file", "other", "label", "suggested", "score", "split", "other_label", "other_split",
           "mirrored", "alike")  # fmt: skip
COMMAND = "make audit"


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
    alike: str = ""
    """label: the most similar image with the same label, empty if there is none. duplicate: always empty."""

    @property
    def shown(self) -> tuple[str, ...]:
        """The files of the images that its pictures show."""
        return (self.image.file, self.other.file, *([self.alike] if self.alike else []))

    @property
    def undecided(self) -> tuple[Prepared, ...]:
        """The images that a decision may be about: its own, and of a pair the other one too."""
        return (self.image, self.other) if self.kind == "duplicate" else (self.image,)

    def decision(self, about: Prepared, kind: Kind, label: str = "") -> Decision:
        """A decision about one of its images, with the reason that is known from the audit."""
        why = f"it was {about.label}" if kind == "relabel" else ""
        if kind == "drop" and self.kind == "duplicate":
            other = self.image if about == self.other else self.other
            where = "" if other.split == about.split else f" in {other.split}"
            where += "" if other.label == about.label else f", which is {other.label}"
            why = f"near-duplicate of {other.file}{where}"
        return Decision(about.file, kind, label, why)

    def proposed(self) -> str:
        """The row of data/audit.csv, for a person to take or not."""
        kind: Kind = "drop" if self.kind == "duplicate" else "relabel"
        return as_csv(self.decision(self.image, kind, self.suggested))


def write_suspects(folder: Path, suspects: Sequence[Suspect], info: DatasetInfo) -> None:
    """Write the list, and which data set it is of."""
    write_csv(folder / SUSPECTS.name, [_as_row(suspect) for suspect in suspects], COLUMNS)
    write_json(folder / AUDIT_RECORD.name, {"data_sha256": info.sha256})


def read_suspects(info: DatasetInfo, files: Sequence[str]) -> list[Suspect]:
    """The suspects, in the order of the list. `info` and `files` describe the prepared data set.

    Raises UserError if there was no audit yet, or it was of another data set.
    """
    audited = read_json(AUDIT_RECORD, COMMAND).get("data_sha256")
    suspects = [_from_row(row) for row in read_csv(SUSPECTS)]
    named = {file for suspect in suspects for file in suspect.shown}
    if audited != info.sha256 or not named <= set(files):  # other names of the same images do not change the sha256
        raise UserError(f"{SUSPECTS} is of other images than {PREPARED} has now; run: {COMMAND}")
    return suspects


def is_decided(suspect: Suspect, decisions: Mapping[str, Decision]) -> bool:
    """Whether `decisions`, by file, settle it. Another label alone settles no pair: the two stay near-duplicates."""
    kinds = [decisions[image.file].kind for image in suspect.undecided if image.file in decisions]
    return any(kind != "relabel" or suspect.kind == "label" for kind in kinds)


def _as_row(suspect: Suspect) -> dict[str, object]:
    image, other = suspect.image, suspect.other
    values = (suspect.rank, suspect.kind, image.file, other.file, image.label, suspect.suggested,
              f"{suspect.score:.4f}", image.split, other.label, other.split,
              "yes" if suspect.mirrored else "", suspect.alike)  # fmt: skip
    return dict(zip(COLUMNS, values, strict=True))


def _from_row(row: dict[str, str]) -> Suspect:
    return Suspect(
        int(row["rank"]), "duplicate" if row["kind"] == "duplicate" else "label",
        Prepared(row["file"], row["label"], row["split"]),
        Prepared(row["other"], row["other_label"], row["other_split"]),
        row["suggested"], float(row["score"]), bool(row["mirrored"]), row["alike"],
    )  # fmt: skip
