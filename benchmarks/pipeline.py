"""`dvc repro` of all stages on digits against one script that does the same in one process; and DVC's own overhead.

python -m benchmarks.pipeline [--rounds 5] [--only NAME]
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.compare import Result, command_line, compare, interleave

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}

# The stages' own functions, one after the other, as a `python train.py` would call them.
_SINGLE_SCRIPT = """
from refit.params import load_params
from refit.params.reads import READS
from stages import check, prepare, scale_batch, find_lr, features, fit, test, predict

params = load_params()
check.main(params)
for stage in (prepare, scale_batch, find_lr, features, fit, test, predict):
    stage.main(params.only(*READS[stage.__name__.removeprefix("stages.")]))
"""


def against_one_script(rounds: int) -> list[Result]:
    """All stages from scratch, with warm file caches."""
    with clone_here() as ours, clone_here() as single:
        script = single / "single_script.py"
        script.write_text(_SINGLE_SCRIPT, encoding="utf-8")
        measured = interleave(
            {
                "dvc repro": lambda: seconds_of(["dvc", "repro", "--force"], ours),
                "one script": lambda: seconds_of([sys.executable, script.name], single),
            },
            rounds,
            warm_up=0,
        )
    name = "dvc repro of all stages on digits ÷ one script"
    return [compare(name, measured["dvc repro"], measured["one script"], 1.3, "lower")]


def nothing_to_do(rounds: int) -> list[Result]:
    """`dvc repro` when nothing changed, against that of a pipeline without stages."""
    with clone_here() as ours, TemporaryDirectory() as folder:
        seconds_of(["dvc", "repro"], ours)
        empty = Path(folder)
        subprocess.run(["git", "init", "--quiet"], cwd=empty, check=True)
        subprocess.run(["dvc", "init", "--quiet"], cwd=empty, env=ENVIRONMENT, check=True)
        (empty / "dvc.yaml").write_text("stages: {}\n", encoding="utf-8")
        measured = interleave(
            {"ours": lambda: seconds_of(["dvc", "repro"], ours), "empty": lambda: seconds_of(["dvc", "repro"], empty)},
            rounds,
        )
    name = "dvc repro with nothing to do ÷ of an empty pipeline"
    return [compare(name, measured["ours"], measured["empty"], 1.2, "lower")]


@contextmanager
def clone_here() -> Iterator[Path]:
    """A clone of the repository's last commit in a temporary folder."""
    with TemporaryDirectory() as folder:
        clone = Path(folder) / "refit"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        yield clone


def seconds_of(command: list[str], folder: Path) -> float:
    began = time.perf_counter()
    output_of(command, folder)
    return time.perf_counter() - began


def output_of(command: list[str], folder: Path) -> str:
    """The standard output of `command`, which must succeed."""
    environment = {**ENVIRONMENT, "PYTHONPATH": str(folder)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


if __name__ == "__main__":
    command_line(__doc__, [nothing_to_do, against_one_script])
