"""What MLflow has missed because it could not be reached, until `make sync` sends it.

It waits in `data/state/mlflow/<sha256 of the model>/`, with all that is needed even after `data/` holds another model:
in `fit` the run of a fit, in `test` what a test of its model adds to that run.
"""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple, TextIO

from refit.artifacts.files import whole_folder, write_bytes, write_json
from refit.artifacts.paths import OUTBOX, repository_root

SYNC = "make sync"
RUN_ID = "mlflow_run"
"""The file with the run's id."""
POINTS = "mlflow_points"
PICTURES = "pictures"
MODEL = "model"
IMAGES = "images.npy"

Part = Literal["fit", "test"]


class Point(NamedTuple):
    """A metric's value at a step."""

    name: str
    value: float
    timestamp: int
    """Milliseconds since 1970."""
    step: int


@dataclass(frozen=True)
class RunStart:
    """What a run is created with."""

    params: dict[str, str]
    tags: dict[str, str]
    started: int
    """Milliseconds since 1970."""
    dataset: dict[str, str] = field(default_factory=dict)
    """The arguments of MLflow's Dataset; empty if the data is not known."""


class PointLog:
    """The points of a run, also in a file of `folder`, from which a fit that is resumed reads them.

    A point with the name and step of an earlier one is that one again, and is left out.
    """

    def __init__(self, folder: Path | None) -> None:
        self.points = read_points(folder / POINTS) if folder else []
        self._logged = {(point.name, point.step) for point in self.points}
        self._path = folder / POINTS if folder else None
        self._file: TextIO | None = None

    def add(self, points: Sequence[Point]) -> None:
        new = [point for point in points if (point.name, point.step) not in self._logged]
        self.points += new
        self._logged |= {(point.name, point.step) for point in new}
        if self._path and self._file is None:
            self._file = self._path.open("a", encoding="utf-8")
        if self._file is not None:
            self._file.writelines(f"\n{json.dumps(point)}" for point in new)
            self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def read_points(path: Path) -> list[Point]:
    """The points that were written completely."""
    points = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            points.append(Point(*json.loads(line)))
        except (ValueError, TypeError):  # a kill cut it short
            continue
    return points


def models_in_outbox() -> list[str]:
    """The sha256 of each model of which something waits."""
    parts = (path for part in ("fit", "test") for path in (repository_root() / OUTBOX).glob(f"*/{part}"))
    return sorted({path.parent.name for path in parts})


def outbox_part(sha256: str, part: Part) -> Path:
    """The folder in which this part of a model's run waits, if it does."""
    return repository_root() / OUTBOX / sha256 / part


@contextmanager
def save_fit(sha256: str, start: RunStart, run_id: str, points: Sequence[Point]) -> Iterator[Path]:
    """Save the run of a fit; the block writes its other files to the folder."""
    with whole_folder(outbox_part(sha256, "fit")) as folder:
        write_json(folder / "opening.json", asdict(start))
        write_bytes(folder / POINTS, "".join(f"\n{json.dumps(point)}" for point in points).encode())
        if run_id:
            write_bytes(folder / RUN_ID, run_id.encode())
        yield folder


def save_test(sha256: str, metrics: Mapping[str, float], files: Sequence[Path]) -> None:
    """Save what a test adds to the run of this model, in place of what an earlier test saved."""
    with whole_folder(outbox_part(sha256, "test")) as folder:
        write_json(folder / "metrics.json", dict(metrics))
        save_files(folder, files)


def save_files(folder: Path, files: Sequence[Path]) -> None:
    """Copy the files, each below the name of its own folder."""
    for file in files:
        copy = folder / "files" / file.absolute().parent.name / file.name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)


def saved_files(folder: Path) -> list[Path]:
    return sorted((folder / "files").glob("*/*"))


def read_start(folder: Path) -> RunStart:
    return RunStart(**json.loads((folder / "opening.json").read_text(encoding="utf-8")))


def read_metrics(folder: Path) -> dict[str, float]:
    metrics: dict[str, float] = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    return metrics
