"""Interleaved rounds of the measurements that are compared, and the table of results."""

import argparse
import json
import os
import platform
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

Rounds = dict[str, list[float]]
RESULTS = Path(__file__).with_name("results.json")


@dataclass(frozen=True)
class Result:
    """One row of the table: the median over the rounds, and their range."""

    name: str
    ratio: float
    low: float
    high: float
    target: float
    better: Literal["higher", "lower"]
    rounds: int

    @property
    def met(self) -> bool:
        return self.ratio >= self.target if self.better == "higher" else self.ratio <= self.target


def interleave(measurements: Mapping[str, Callable[[], float]], rounds: int, warm_up: int = 1) -> Rounds:
    """Take every measurement once per round, so that a slow period of the machine affects all of them.

    The first `warm_up` rounds are not counted.
    """
    measured: Rounds = {name: [] for name in measurements}
    for number in range(-warm_up, rounds):
        for name, measure in measurements.items():
            value = measure()
            if number >= 0:
                measured[name].append(value)
            note = "warm-up" if number < 0 else f"round {number + 1} of {rounds}"
            print(f"  {note}: {name} {value:,.4g}", file=sys.stderr, flush=True)
    return measured


def compare(name: str, ours: list[float], baseline: list[float], target: float, better: Literal["higher", "lower"],
            combine: Callable[[float, float], float] = lambda a, b: a / b) -> Result:  # fmt: skip
    """The result of `combine`, by default the ratio, over the rounds of our measurements and the baseline's."""
    each = [combine(a, b) for a, b in zip(ours, baseline, strict=True)]
    return Result(name, statistics.median(each), min(each), max(each), target, better, len(each))


def report(results: list[Result]) -> None:
    """Print the table, and store its rows in results.json with those of the other benchmarks."""
    kept = {entry["name"]: entry for entry in json.loads(RESULTS.read_text())} if RESULTS.exists() else {}
    kept |= {result.name: asdict(result) for result in results}
    RESULTS.write_text(json.dumps(list(kept.values()), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{machine()}\n\n{table(results)}")


def table(results: list[Result]) -> str:
    lines = ["| What | Median | Range | Target | Met |", "|---|---|---|---|---|"]
    for one in results:
        sign = "≥" if one.better == "higher" else "≤"
        lines.append(
            f"| {one.name} | {one.ratio:.4g} | {one.low:.4g} to {one.high:.4g} | {sign} {one.target:g} "
            f"| {'yes' if one.met else 'no'} |"
        )
    return "\n".join(lines)


def command_line(about: str | None, benchmarks: Sequence[Callable[[int], list[Result]]]) -> None:
    """Run all benchmarks, or the one that --only names, and report the results."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=[benchmark.__name__ for benchmark in benchmarks])
    arguments = parser.parse_args()
    results: list[Result] = []
    for benchmark in benchmarks:
        if arguments.only in (None, benchmark.__name__):
            print(benchmark.__name__, file=sys.stderr)
            results += benchmark(arguments.rounds)
    report(results)


def peak_memory() -> float:
    """MiB of this process. Linux only, because `getrusage` would include the parent's memory at the fork."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def machine() -> str:
    """The processor and the versions of Python and torch."""
    import torch  # here, so that it does not count in a process that measures its peak_memory

    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.partition(": ")[2] for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        processor = names[0] if names else processor
    return f"{os.cpu_count()} cores of {processor}, Python {platform.python_version()}, torch {torch.__version__}"
