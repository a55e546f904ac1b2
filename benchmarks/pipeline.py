"""`dvc repro` of all stages on digits against one script that does the same in one process; and DVC's own share.

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

# The stages' own functions, one after the other: what `python train.py` would be.
_SINGLE_SCRIPT = """
from refit.params import load_params
from stages import check, prepare, scale_batch, find_lr, fit, test, predict

params = load_params()
check.main(params)
for stage in (prepare, scale_batch, find_lr, fit, test, predict):
    stage.main(params.only(*stage.READS))
"""


# As `dvc exp run` leaves them, without the work.
_EXPERIMENTS = """
import json, pathlib, sys
from dvc.repo import Repo

repo, params, metrics = Repo(), pathlib.Path("params.yaml"), pathlib.Path("data/evaluation/test.json")
before, values = params.read_text(), json.loads(metrics.read_text())
for number in range(int(sys.argv[1])):
    params.write_text(before.replace("weight_decay: 0.05", f"weight_decay: {(number + 1) / 10_000}"))
    metrics.unlink()  # a link into DVC's cache
    metrics.write_text(json.dumps({**values, "accuracy": 0.5 + number / 1000}))
    repo.experiments.save(name=f"made-{number:03}", force=True)
"""

_SHOW = """
import contextlib, io
from dvc.cli import main
from benchmarks.compare import peak_memory

with contextlib.redirect_stdout(io.StringIO()) as table:
    assert main(["exp", "show", "--no-pager"]) == 0
print(peak_memory())
"""


def against_one_script(rounds: int) -> list[Result]:
    """All stages from nothing, the files in the operating system's cache."""
    with _clone() as ours, _clone() as single:
        script = single / "single_script.py"
        script.write_text(_SINGLE_SCRIPT, encoding="utf-8")
        measured = interleave(
            {
                "dvc repro": lambda: _seconds(["dvc", "repro", "--force"], ours),
                "one script": lambda: _seconds([sys.executable, script.name], single),
            },
            rounds,
        )
    name = "dvc repro of all stages on digits ÷ one script"
    return [compare(name, measured["dvc repro"], measured["one script"], 1.3, "lower")]


def nothing_to_do(rounds: int) -> list[Result]:
    """`dvc repro` where nothing changed, and of a pipeline without a stage."""
    with _clone() as ours, TemporaryDirectory() as folder:
        _seconds(["dvc", "repro"], ours)
        empty = Path(folder)
        subprocess.run(["git", "init", "--quiet"], cwd=empty, check=True)
        subprocess.run(["dvc", "init", "--quiet"], cwd=empty, env=ENVIRONMENT, check=True)
        (empty / "dvc.yaml").write_text("stages: {}\n", encoding="utf-8")
        measured = interleave(
            {"ours": lambda: _seconds(["dvc", "repro"], ours), "empty": lambda: _seconds(["dvc", "repro"], empty)},
            rounds,
        )
    name = "dvc repro with nothing to do ÷ of an empty pipeline"
    return [compare(name, measured["ours"], measured["empty"], 1.2, "lower")]


def experiments(rounds: int) -> list[Result]:
    """`dvc exp show` of 200 experiments: its seconds, and its memory against that without any."""
    show = [sys.executable, "-c", _SHOW]
    with _clone() as clone:
        _seconds(["dvc", "repro"], clone)
        memory = {"none": [float(_run(show, clone)) for _ in range(rounds)]}
        _run([sys.executable, "-c", _EXPERIMENTS, "200"], clone)
        memory["200"] = [float(_run(show, clone)) for _ in range(rounds)]
        seconds = interleave({"dvc exp show": lambda: _seconds(["dvc", "exp", "show", "--no-pager"], clone)}, rounds)
    return [
        compare("dvc exp show with 200 experiments, s", seconds["dvc exp show"], [1.0] * rounds, 5, "lower"),
        compare("dvc exp show, peak memory: 200 experiments ÷ none", memory["200"], memory["none"], 1.2, "lower"),
    ]


@contextmanager
def _clone() -> Iterator[Path]:
    """The repository's last commit in a temporary folder of its own."""
    with TemporaryDirectory() as folder:
        clone = Path(folder) / "refit"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        yield clone


def _seconds(command: list[str], folder: Path) -> float:
    began = time.perf_counter()
    _run(command, folder)
    return time.perf_counter() - began


def _run(command: list[str], folder: Path) -> str:
    """What it prints."""
    environment = {**ENVIRONMENT, "PYTHONPATH": str(folder)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


if __name__ == "__main__":
    command_line(__doc__, [nothing_to_do, against_one_script, experiments])
