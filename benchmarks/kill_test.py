"""Kill `dvc repro` on the digits repeatedly until it finishes: is dvc.lock the same as without kills?

python -m benchmarks.kill_test [--rounds 50] [--seed 0] [--kills 12] [--set KEY=VALUE ...]

SIGKILL is sent to `dvc` itself, to the process of a stage, or to the warm process that stages are forked from, at a
random moment or while a state is being written. In every second round, the first kill hits `dvc` itself in the middle
of the run: after 2 to 18 seconds if a whole run takes 20. After --kills kills, a round can finish. Each round starts
without outputs, cache or states. Like `make repro`, each run starts with the repair. Rounds in which the repair found a
truncated file of DVC are counted: plain `dvc repro` would have failed in them.
--set changes params.yaml, for instance fit.averaging=ema or trainer.devices=2.
"""

import argparse
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping
from difflib import unified_diff
from glob import glob
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import psutil
import yaml

from benchmarks.compare import Result, report
from benchmarks.pipeline import ENVIRONMENT, clone_here

WRITING = "data/state/*/.step-*.partial"
MADE = ("data/prepared", "data/tuning", "data/model", "data/evaluation", "data/predictions", "data/state", ".dvc/cache")


class Round(NamedTuple):
    """What happened until `dvc repro` succeeded."""

    kills: list[str]
    """The process and stage of each kill."""
    healed: list[str]
    """DVC's own files that were truncated and then repaired before the next run."""


def kill_test(rounds: int, seed: int, most: int, choices: Mapping[str, str]) -> tuple[Result, Counter[str]]:
    """The share of rounds with the same dvc.lock as without kills; and the kills, counted by process and stage."""
    chance = random.Random(seed)
    killed: Counter[str] = Counter()
    with clone_here() as project:
        change(project / "params.yaml", {"fit.save_state_every": "0.1", **choices})
        lock = project / "dvc.lock"
        expected, seconds = undisturbed(project)
        same = healed = 0
        for number in range(1, rounds + 1):
            done = Round([], [])
            while not done.kills:  # repeat a round that finished before its first kill
                clear(project)
                done = disturbed(project, seconds, chance, most, in_the_middle=number % 2 == 1)
            killed.update(done.kills)
            healed += bool(done.healed)
            is_same = lock.read_bytes() == expected
            same += is_same
            repaired = f", repaired {' and '.join(done.healed)}" if done.healed else ""
            verdict = "the same" if is_same else "DIFFERS"
            print(f"round {number}: {len(done.kills)} kills{repaired}, dvc.lock {verdict}", flush=True)
            if not is_same:
                undisturbed_lines, lines = expected.decode().splitlines(), lock.read_text().splitlines()
                difference = unified_diff(undisturbed_lines, lines, "undisturbed", "this round's", lineterm="")
                print(*done.kills, *difference, sep="\n", flush=True)
    print(
        f"{healed} of {rounds} rounds: a kill cut one of DVC's own files short, and plain dvc repro would have failed"
    )
    share = same / rounds
    beside = "".join(f", {key} = {value}" for key, value in choices.items())
    name = f"killed until it ends{beside}: rounds with the same dvc.lock"
    return Result(name, share, share, share, 1.0, "higher", rounds), killed


def change(params: Path, choices: Mapping[str, str]) -> None:
    values = yaml.safe_load(params.read_text(encoding="utf-8"))
    for name, value in choices.items():
        section, key = name.split(".")
        values.setdefault(section, {})[key] = yaml.safe_load(value)
    params.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")


def undisturbed(project: Path) -> tuple[bytes, float]:
    clear(project)
    began = time.monotonic()
    subprocess.run(["dvc", "repro"], cwd=project, env=ENVIRONMENT, check=True, stdout=subprocess.DEVNULL)
    return (project / "dvc.lock").read_bytes(), time.monotonic() - began


def clear(project: Path) -> None:
    for name in MADE:
        shutil.rmtree(project / name, ignore_errors=True)
    for name in ("dvc.lock", "data/prepared_report.json", "data/prepared_report.html", "data/prepared_left_out.csv"):
        (project / name).unlink(missing_ok=True)


def disturbed(project: Path, seconds: float, chance: random.Random, most: int, *, in_the_middle: bool) -> Round:
    """Run the repair and `dvc repro` until it succeeds, with up to `most` kills.

    in_the_middle: whether the first kill hits `dvc` at a tenth to nine tenths of the `seconds` of an undisturbed run.
    """
    done = Round([], [])
    while True:
        done.healed.extend(heal(project))
        with TemporaryDirectory() as folder, (Path(folder) / "output").open("w+") as output:
            dvc = psutil.Popen(["dvc", "repro"], cwd=project, env=ENVIRONMENT, stdout=output, stderr=subprocess.STDOUT)
            victim = None
            if in_the_middle and not done.kills:
                victim = dvc_itself(dvc, chance.uniform(0.1 * seconds, 0.9 * seconds))
            elif len(done.kills) < most:
                victim = wait_for_moment(dvc, project, seconds, chance)
            if victim:
                process, what = victim
                stage = (re.findall(r"Running stage '(\w+)'", Path(output.name).read_text()) or ["none"])[-1]
                process.send_signal(signal.SIGKILL)
                done.kills.append(f"{what} in {stage}")
            code = dvc.wait()
            if code == 0:
                return done
            if victim is None:
                sys.exit(f"dvc repro exited {code} though nothing was killed:\n{Path(output.name).read_text()}")


def heal(project: Path) -> list[str]:
    """Run the repair with which `make repro` starts; returns DVC's own files that were truncated."""
    doctor = [sys.executable, "-m", "pipelines.tools.doctor", "--records"]
    output = subprocess.run(doctor, cwd=project, env=ENVIRONMENT, check=True, capture_output=True, text=True).stdout
    return re.findall(r"^(?:removed|restored) +(\S+): .*was cut short", output, re.MULTILINE)


def dvc_itself(dvc: psutil.Popen, seconds: float) -> tuple[psutil.Process, str] | None:
    """Wait; `dvc` as the process to kill, or None if it ended first."""
    try:
        dvc.wait(seconds)
    except psutil.TimeoutExpired:
        return dvc, "dvc, in the middle,"
    return None


def wait_for_moment(
    dvc: psutil.Popen, project: Path, seconds: float, chance: random.Random
) -> tuple[psutil.Process, str] | None:
    """The process to kill now, and its description; None if dvc ended first."""
    seen = being_written(project)  # left by the previous kill
    moment = time.monotonic() + chance.uniform(0.3, seconds)
    states = chance.randrange(8) if chance.random() < 0.5 else None  # number of states to be written before the kill
    while dvc.poll() is None:
        new = being_written(project) - seen
        seen |= new
        writing = states is not None and bool(new) and len(seen) > states
        if writing or time.monotonic() > moment:
            try:
                family = [dvc, *dvc.children(recursive=True)]
                warm = [process for process in psutil.process_iter() if is_warm(process, project)]
                victims = [(process, "dvc" if process is dvc else "a stage's process") for process in family]
                victims += [(process, "the warm process or its child") for process in warm]
                process, what = chance.choice(victims)
                return process, f"{what}, a state being written," if writing else what
            except psutil.NoSuchProcess:
                continue
        time.sleep(0.001)
    return None


def being_written(project: Path) -> set[str]:
    return set(glob(str(project / WRITING)))  # noqa: PTH207, Path.glob fails if a folder vanishes meanwhile


def is_warm(process: psutil.Process, project: Path) -> bool:
    try:
        return "refit.runtime.warm" in process.cmdline() and Path(process.cwd()) == project
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return False


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kills", type=int, default=12)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    arguments = parser.parse_args()
    choices = dict(choice.split("=", 1) for choice in arguments.set)
    result, killed = kill_test(arguments.rounds, arguments.seed, arguments.kills, choices)
    for what, times in sorted(killed.items()):
        print(f"{times:4} {what}")
    report([result])
    sys.exit(0 if result.ratio == 1 else 1)
