"""What many small images cost DVC and `prepare`, as files in class folders and as one zip file.

python -m benchmarks.many_files [COUNT]    100,000 by default: 2 GB of disk in TMPDIR, ten minutes on two cores
"""

import io
import json
import os
import resource
import shutil
import subprocess
import sys
import time
import zipfile
from argparse import ArgumentParser
from collections.abc import Callable, Iterator
from contextlib import chdir
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
from PIL import Image

SIDE = 32  # pixels
CLASSES = 10
NEW = 100  # images that arrive later

PREPARE = """
import sys
from pathlib import Path
from refit.data.pack import pack
from refit.data.sources.open import open_source
from refit.params import DataParams

source, root = sys.argv[1:]
data = DataParams(source=source, root=root)
Path("prepared").mkdir()
pack(open_source(data), data, 0, Path("prepared"))
"""


class Cost(NamedTuple):
    seconds: float
    of_cpu: float
    """Of all processes together: less disturbed by others on the machine."""


class Layout(NamedTuple):
    source: str
    """The value of data.source."""
    root: str
    write: Callable[[Path, Iterator[tuple[str, bytes]]], None]


def images(first: int, count: int) -> Iterator[tuple[str, bytes]]:
    """The names and contents of JPEG files, no two of which are the same: about 1 kB each."""
    random = np.random.default_rng(first)
    for number in range(first, first + count):
        file = io.BytesIO()
        coarse = Image.fromarray(random.integers(0, 256, (8, 8, 3), np.uint8))
        coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
        yield f"class_{number % CLASSES}/{number:07}.jpg", file.getvalue()


def to_folder(path: Path, files: Iterator[tuple[str, bytes]]) -> None:
    for name, content in files:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)


def to_zip(path: Path, files: Iterator[tuple[str, bytes]]) -> None:
    """Appends to an archive that exists, in a copy: the one that is there may be a link to DVC's cache."""
    copy = path.with_suffix(".new")
    if path.exists():
        shutil.copy(path, copy)
    with zipfile.ZipFile(copy, "a") as archive:  # stored: JPEG is compressed already
        for name, content in files:
            archive.writestr(name, content)
    copy.replace(path)


LAYOUTS = {
    "class folders": Layout("folder", "photos", to_folder),
    "one zip file": Layout("archive", "photos.zip", to_zip),
}


def measure(count: int, folder: Path) -> dict[str, dict[str, Cost]]:
    """The cost of each step with each layout. The layouts take turns, so that a slow time of the machine hits both."""
    repos = {name: folder / layout.root for name, layout in LAYOUTS.items()}
    for name, repo in repos.items():
        repo.mkdir()
        _run(repo, "dvc", "init", "--no-scm", "--quiet")
        LAYOUTS[name].write(repo / LAYOUTS[name].root, images(0, count))
        stages = {"train": {"cmd": "true", "deps": [LAYOUTS[name].root]}}
        (repo / "dvc.yaml").write_text(json.dumps({"stages": stages}))

    def each(step: Callable[[Layout, Path], Cost]) -> dict[str, Cost]:
        return {name: step(layout, repos[name]) for name, layout in LAYOUTS.items()}

    found = {"dvc add": each(lambda layout, repo: _run(repo, "dvc", "add", "--quiet", layout.root))}
    each(lambda _, repo: _run(repo, "dvc", "repro", "--quiet"))
    found["dvc repro, nothing new"] = each(lambda _, repo: _run(repo, "dvc", "repro", "--quiet"))
    found["dvc status, nothing new"] = each(lambda _, repo: _run(repo, "dvc", "status", "--quiet"))
    found["prepare"] = each(_prepare)
    for name, layout in LAYOUTS.items():
        layout.write(repos[name] / layout.root, images(count, NEW))
    found[f"dvc add, {NEW} images more"] = each(lambda layout, repo: _run(repo, "dvc", "add", "--quiet", layout.root))
    each(lambda layout, repo: _remove(repo / layout.root))
    found["dvc checkout"] = each(lambda _, repo: _run(repo, "dvc", "checkout", "--quiet"))
    return found


def _prepare(layout: Layout, repo: Path) -> Cost:
    path = {"PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    return _run(repo, sys.executable, "-c", PREPARE, layout.source, layout.root, **path)


def _remove(path: Path) -> Cost:
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    return Cost(0, 0)


def _run(folder: Path, *command: str, **environment: str) -> Cost:
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    with chdir(folder):
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, **environment})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    of_cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Cost(time.perf_counter() - began, of_cpu)


def _megabytes(folder: Path) -> float:
    return sum(file.lstat().st_blocks * 512 for file in folder.rglob("*")) / 1e6


def main(count: int) -> None:
    with TemporaryDirectory() as folder:
        found = measure(count, Path(folder))
        space = {name: f"{_megabytes(Path(folder) / layout.root):,.0f}" for name, layout in LAYOUTS.items()}
    rows = {step: {name: f"{cost.seconds:.1f} ({cost.of_cpu:.1f})" for name, cost in costs.items()}
            for step, costs in found.items()}  # fmt: skip
    print(f"{count:,} JPEG files of {SIDE} x {SIDE} pixels: seconds, and in parentheses those of CPU time\n")
    print("| Step |", " | ".join(LAYOUTS), "|\n|---|---|---|")
    for step, cells in {**rows, "MB on disk: both versions, with DVC's cache": space}.items():
        print(f"| {step} |", " | ".join(cells[name] for name in LAYOUTS), "|")


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("count", metavar="COUNT", type=int, nargs="?", default=100_000, help="how many images")
    main(parser.parse_args().count)
