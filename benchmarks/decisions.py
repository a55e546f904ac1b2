"""What decisions about suspects are worth: labels in a folder of photos are made wrong, `make audit` looks for them,
and those that it lists are corrected, as a careful person would.

`python -m benchmarks.decisions FOLDER WEIGHTS [--wrong N] [--seed N]`: FOLDER has one folder per class, maybe in train,
val and test, which are put together; WEIGHTS is the file of timm's EfficientNet-Lite0. The splits are drawn, with 0.4
of the photos in the test split, so that the difference can be measured. 30 changed copies are added too. Everything
runs in a temporary copy of the repository: `dvc repro` and a commit, the audit, the decisions, `dvc exp run`, `make
versus A=HEAD` and `dvc exp show`.
"""

import contextlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import yaml

from benchmarks.audit import RECIPE, plant
from pipelines.tools.workspace import copy_working_tree
from refit.artifacts.decisions import decide, read_decisions
from refit.artifacts.prepared import read_info, read_manifest
from refit.artifacts.suspects import read_suspects
from refit.runtime.command import command_parser, run_command

WRONG = 300
TEST = 0.4  # of the photos
_AUTHOR = {
    f"GIT_{who}_{what}": "benchmark@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")
}


def main(folder: Path, weights: Path, wrong: int, seed: int) -> None:
    folder, weights, root = folder.resolve(), weights.resolve(), Path.cwd()
    with TemporaryDirectory() as copy:
        copy_working_tree(root, Path(copy))
        with contextlib.chdir(copy):
            photos = Path("data/raw/photos")
            for file in sorted(path for path in folder.rglob("*") if path.is_file()):
                (photos / file.parent.name).mkdir(parents=True, exist_ok=True)
                shutil.copy(file, photos / file.parent.name)
            shutil.copy(weights, "data/weights")
            planted, copies = plant(photos, np.random.default_rng(seed), wrong)
            values = yaml.safe_load((root / RECIPE).read_text(encoding="utf-8"))
            values["data"] |= {"root": str(photos), "test": TEST}
            values["model"]["weights"] = f"data/weights/{weights.name}"
            Path("params.yaml").write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
            Path("dvc.lock").unlink(missing_ok=True)
            run("git", "init", "--quiet")
            run("dvc", "repro", "test")
            run("git", "add", "--all")
            run("git", "commit", "--quiet", "--message", "with wrong labels")
            run(sys.executable, "-m", "refit.commands.audit")
            correct(planted, copies)
            run("dvc", "exp", "run", "--name", "decided", "test")
            run(sys.executable, "-m", "pipelines.tools.versus", "HEAD")
            run("dvc", "exp", "show", "--only-changed", "--drop", "data/.*", "--md")


def correct(planted: dict[str, str], copies: dict[str, tuple[str, str]]) -> None:
    """Give each suspect whose label was made wrong its class back, and drop one of each pair with a planted copy."""
    suspects = read_suspects(read_info(), [row.name for row in read_manifest()])
    for suspect in suspects:
        image = suspect.image
        if suspect.kind == "duplicate" and {image.file, suspect.other.file} & copies.keys():
            decide(image.file, suspect.decision(image, "drop"))
        elif suspect.kind == "label" and image.file in planted:
            decide(image.file, suspect.decision(image, "relabel", planted[image.file]))
    made = read_decisions()
    labels = [suspect for suspect in suspects if suspect.kind == "label"]
    listed = [suspect for suspect in labels if suspect.image.file in planted]
    right = sum(suspect.suggested == planted[suspect.image.file] for suspect in listed)
    print(f"{len(planted)} wrong labels: {len(listed)} are among {len(labels)} suspects, {right} of them with their "
          f"own class as the suggestion; {len(made)} decisions")  # fmt: skip


def run(*command: str) -> None:
    print("$", " ".join(command), flush=True)
    subprocess.run(command, check=True, env={**os.environ, **_AUTHOR})


if __name__ == "__main__":
    parser = command_parser()
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="the photos, one folder per class")
    parser.add_argument("weights", metavar="WEIGHTS", type=Path, help="of timm's EfficientNet-Lite0")
    parser.add_argument("--wrong", type=int, default=WRONG, help="labels that are made wrong")
    parser.add_argument("--seed", type=int, default=0, help="chooses what is planted where")
    run_command(main, parser)
