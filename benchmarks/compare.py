"""Interleaved rounds of rivals, and what is told of them."""

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
    """One line of the table: the median over the rounds, and their range."""

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


def interleave(rivals: Mapping[str, Callable[[], float]], rounds: int, warm_up: int = 1) -> Rounds:
    """Each rival's measurements, one a round: what slows the machine for a while slows them all.

    The first `warm_up` rounds are not counted.
    """
    measured: Rounds = {name: [] for name in rivals}
    for number in range(-warm_up, rounds):
        for name, measure in rivals.items():
            value = measure()
            if number >= 0:
                measured[name].append(value)
            note = "warm-up" if number < 0 else f"round {number + 1} of {rounds}"
            print(f"  {note}: {name} {value:,.4g}", file=sys.stderr, flush=True)
    return measured


def compare(name: str, ours: list[float], rival: list[float], target: float, better: Literal["higher", "lower"],
            combine: Callable[[float, float], float] = lambda a, b: a / b) -> Result:  # fmt: skip
    """The ratio of each round, or what else `combine` makes of ours and the rival's."""
    each = [combine(a, b) for a, b in zip(ours, rival, strict=True)]
    return Result(name, statistics.median(each), min(each), max(each), target, better, len(each))


def report(results: list[Result]) -> None:
    """Print the table, and keep it with those of the other benchmarks in results.json."""
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
    """Run them all, or one of them by its name, and report."""
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
    """MiB of this process. Linux only: `getrusage` counts what the parent held when it started this one."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def machine() -> str:
    """The processor, and what runs on it."""
    import torch  # not where peak_memory is asked

    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.partition(": ")[2] for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        processor = names[0] if names else processor
    return f"{os.cpu_count()} cores of {processor}, Python {platform.python_version()}, torch {torch.__version__}"
