"""What MLflow missed because it could not be reached: kept in `data/state/mlflow/<sha256 of the model>/` until
`python -m refit.commands.sync` has sent it.

It is all that is needed, also when another model has taken this one's place in `data/`: in `fit` the run of a fit, in
`test` what a test of its model would have added to it.
"""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple, TextIO

from refit.artifacts.files import repository_root, whole_folder, write_bytes, write_json

UNSENT = Path("data/state/mlflow")
SYNC = "python -m refit.commands.sync"
NOTE = "mlflow_run"
"""The file that names the run's id."""
POINTS = "mlflow_points"
PICTURES = "pictures"
MODEL = "model"
IMAGES = "images.npy"


class Point(NamedTuple):
    """A metric's value at a step."""

    name: str
    value: float
    timestamp: int
    """Milliseconds since 1970."""
    step: int


@dataclass(frozen=True)
class Opening:
    """What a run is opened with."""

    params: dict[str, str]
    tags: dict[str, str]
    started: int
    """Milliseconds since 1970."""


class Journal:
    """The points of a run, also on disk in a folder, where a fit that is cut off leaves them to the one that goes on.

    A point that is told again after that is the same one.
    """

    def __init__(self, folder: Path | None) -> None:
        self.points = read_points(folder / POINTS) if folder else []
        self._told = {(point.name, point.step) for point in self.points}
        self._path = folder / POINTS if folder else None
        self._file: TextIO | None = None

    def add(self, points: Sequence[Point]) -> None:
        new = [point for point in points if (point.name, point.step) not in self._told]
        self.points += new
        self._told |= {(point.name, point.step) for point in new}
        if self._path and self._file is None:
            self._file = self._path.open("a", encoding="utf-8")
        if self._file is not None:
            self._file.writelines(f"\n{json.dumps(point)}" for point in new)
            self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def read_points(path: Path) -> list[Point]:
    """Those that were written whole."""
    points = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            points.append(Point(*json.loads(line)))
        except (ValueError, TypeError):  # a kill cut it short
            continue
    return points


def unsent() -> list[str]:
    """The sha256 of each model of which something waits."""
    parts = (path for part in ("fit", "test") for path in (repository_root() / UNSENT).glob(f"*/{part}"))
    return sorted({path.parent.name for path in parts})


def unsent_part(sha256: str, part: str) -> Path:
    """Where a part, `fit` or `test`, waits or would wait."""
    return repository_root() / UNSENT / sha256 / part


def keep_files(folder: Path, files: Sequence[Path]) -> None:
    """Copies, each below the name of its own folder."""
    for file in files:
        kept = folder / "files" / file.absolute().parent.name / file.name
        kept.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, kept)


def kept_files(folder: Path) -> list[Path]:
    return sorted((folder / "files").glob("*/*"))


@contextmanager
def keep_fit(sha256: str, opening: Opening, run_id: str, points: Sequence[Point]) -> Iterator[Path]:
    """The folder that the rest of a fit's run is to be written to."""
    with whole_folder(unsent_part(sha256, "fit")) as folder:
        write_json(folder / "opening.json", asdict(opening))
        write_bytes(folder / POINTS, "".join(f"\n{json.dumps(point)}" for point in points).encode())
        if run_id:
            write_bytes(folder / NOTE, run_id.encode())
        yield folder


def kept_opening(folder: Path) -> Opening:
    return Opening(**json.loads((folder / "opening.json").read_text(encoding="utf-8")))


def keep_test(sha256: str, metrics: Mapping[str, float], files: Sequence[Path]) -> None:
    """What a test would add to the run of this model; it takes the place of what an earlier one would."""
    with whole_folder(unsent_part(sha256, "test")) as folder:
        write_json(folder / "metrics.json", dict(metrics))
        keep_files(folder, files)


def kept_metrics(folder: Path) -> dict[str, float]:
    metrics: dict[str, float] = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    return metrics
