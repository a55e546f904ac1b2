"""`make verify`: run the last commit again in a clean folder. Is every file what dvc.lock says?"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from pipelines.tools.workspace import bring_images
from refit.runtime.command import run_command

Hashes = dict[str, str]


def main() -> None:
    """Exits 0 if all files are the same, and 1 if one is not."""
    root = Path.cwd()
    shown = subprocess.run(["git", "show", "HEAD:dvc.lock"], capture_output=True, text=True, check=False)
    if shown.returncode:
        sys.exit("error: the last commit has no dvc.lock; run: dvc repro, and commit it")
    with TemporaryDirectory() as folder:
        clean = Path(folder) / "refit"
        subprocess.run(["git", "clone", "--quiet", str(root), str(clean)], check=True)
        bring_images(root, clean)
        environment = {**os.environ, "MLFLOW_TRACKING_URI": ""}  # a store of its own, removed with the folder
        again = subprocess.run(["dvc", "repro", "--force"], cwd=clean, env=environment, check=False)
        if again.returncode:
            sys.exit("error: the last commit does not run: see above")
        # The cache of either folder says which files a directory has: the same hash has the same files.
        listings = (root, clean)
        differing = compare(tracked(shown.stdout, listings), tracked((clean / "dvc.lock").read_text(), listings))
    if differing:
        sys.exit(f"error: {differing} files are not what dvc.lock says")


def tracked(lock: str, roots: Sequence[Path]) -> Hashes:
    """The md5 of each dependency and output in a dvc.lock: of each file of a folder if a cache of `roots` lists them,
    else of the folder."""
    hashes: Hashes = {}
    for stage in yaml.safe_load(lock)["stages"].values():
        for entry in [*stage.get("deps", []), *stage.get("outs", [])]:
            hashes |= dict(files_of(entry, roots))
    return hashes


def files_of(entry: dict[str, Any], roots: Sequence[Path]) -> Iterator[tuple[str, str]]:
    path, md5 = entry["path"], entry["md5"]
    listings = (root / ".dvc/cache/files/md5" / md5[:2] / md5[2:] for root in roots)
    listing = next((file for file in listings if file.is_file()), None)
    if md5.endswith(".dir") and listing:
        yield from ((f"{path}/{file['relpath']}", file["md5"]) for file in json.loads(listing.read_bytes()))
    else:
        yield path, md5


def compare(committed: Hashes, again: Hashes) -> int:
    """Print a line for each file; returns how many differ."""
    paths = sorted(committed.keys() | again.keys())
    differs = [committed.get(path) != again.get(path) for path in paths]
    for path, is_other in zip(paths, differs, strict=True):
        print(f"{'DIFFERS' if is_other else 'same':8} {path}")
    print(f"{len(paths) - sum(differs)} files are the same, {sum(differs)} differ")
    return sum(differs)


if __name__ == "__main__":
    run_command(main)
