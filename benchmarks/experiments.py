"""`dvc exp show` with many experiments. Creating them takes two minutes, so `make bench` does not include this.

python -m benchmarks.experiments [--rounds 5]
"""

import sys

from benchmarks.compare import Result, command_line, compare, interleave
from benchmarks.pipeline import clone_here, output_of, seconds_of

# Creates experiments like those of `dvc exp run`, without running them.
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


def experiments(rounds: int) -> list[Result]:
    """`dvc exp show` with 200 experiments: its time, and its memory compared with no experiments."""
    show = [sys.executable, "-c", _SHOW]
    with clone_here() as clone:
        seconds_of(["dvc", "repro"], clone)
        memory = {"none": [float(output_of(show, clone)) for _ in range(rounds)]}
        output_of([sys.executable, "-c", _EXPERIMENTS, "200"], clone)
        memory["200"] = [float(output_of(show, clone)) for _ in range(rounds)]
        seconds = interleave({"dvc exp show": lambda: seconds_of(["dvc", "exp", "show", "--no-pager"], clone)}, rounds)
    return [
        compare("dvc exp show with 200 experiments, s", seconds["dvc exp show"], [1.0] * rounds, 5, "lower"),
        compare("dvc exp show, peak memory: 200 experiments ÷ none", memory["200"], memory["none"], 1.2, "lower"),
    ]


if __name__ == "__main__":
    command_line(__doc__, [experiments])
