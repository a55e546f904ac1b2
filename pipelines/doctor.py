"""`make doctor`: what runs that were cut off have left here; removed where nothing runs that might still need it."""

import hashlib
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import yaml
from dvc.rwlock import SCHEMA
from voluptuous import Invalid

STATES = "data/state"  # of fits; as refit/training/resume.py, which takes seconds to import, has it
_WORKERS = ("stages.", "pipelines.", "refit.")  # what Python runs as a module


def main() -> None:
    """Exits 0 where all is well or was mended, and 1 where a person has to decide."""
    root = Path.cwd()
    if not (root / ".dvc").is_dir():
        sys.exit("error: no .dvc is here; run from the repository's root")
    at_work = processes(root)
    for pid, command in at_work.items():
        print(f"at work  process {pid}: {command}")
    for path, what in [*locks(root, set(at_work)), *half_written(root)]:
        if not at_work:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        print(f"{'left' if at_work else 'removed':8} {path.relative_to(root)}: {what}")
    for folder in sorted(path.parent for path in (root / STATES).glob("*/inputs.json")):
        print(f"state    {folder.relative_to(root)}: {describe(folder)}")
    if fault := fault_of_lock(root / "dvc.lock"):
        sys.exit(f"error: dvc.lock {fault}; to have the last commit's: git checkout HEAD -- dvc.lock")
    print("all else is well")


def remove_broken_locks(root: Path) -> list[str]:
    """Remove DVC's locks of killed runs, if nothing is at work in this folder; a line for each that was removed."""
    if processes(root):
        return []
    removed = []
    for path, what in locks(root, set()):
        path.unlink()
        removed.append(f"removed {path.relative_to(root)}: {what}")
    return removed


def processes(root: Path) -> dict[int, str]:
    """The process id and command of each dvc, stage and flow in this folder, or in an experiment's below it."""
    ours = {psutil.Process().pid, *(parent.pid for parent in psutil.Process().parents())}
    found = {}
    for process in psutil.process_iter():
        try:
            command, folder = process.cmdline(), process.cwd()
        except psutil.Error:  # another user's, or gone meanwhile
            continue
        is_worker = any(Path(word).name == "dvc" or word.startswith(_WORKERS) for word in command[:4])
        if process.pid not in ours and is_worker and Path(folder).is_relative_to(root):
            found[process.pid] = " ".join(command)
    return found


def locks(root: Path, at_work: set[int]) -> Iterator[tuple[Path, str]]:
    """DVC's record of who reads and writes what. Its other locks are the kernel's, and end with their process."""
    path = root / ".dvc/tmp/rwlock"
    try:
        record = SCHEMA(json.loads(path.read_bytes()))
    except FileNotFoundError:
        return
    except (ValueError, Invalid):
        yield path, "DVC's record of locks was cut short; every dvc command fails at it"
        return
    readers = [info["pid"] for infos in record["read"].values() for info in infos]
    holders = {*readers, *(info["pid"] for info in record["write"].values())}
    if holders and not holders & at_work:
        yield path, f"locks of process {', '.join(map(str, sorted(holders)))}, which is no dvc at work here"


def half_written(root: Path) -> Iterator[tuple[Path, str]]:
    """Files and folders that were to take the place of an output, of a state, or of MLflow's new store."""
    stages = yaml.safe_load((root / "dvc.yaml").read_text(encoding="utf-8"))["stages"].values()
    outs = [out for stage in stages for kind in ("outs", "metrics") for out in stage.get(kind, [])]
    folders = {(root / (next(iter(out)) if isinstance(out, dict) else out)).parent for out in outs}
    for folder in sorted(folders | set((root / STATES).glob("*/"))):
        yield from ((path, "half-written") for path in sorted(folder.glob(".*.partial")))
    yield from ((path.parent, "a half-made MLflow store") for path in sorted((root / "mlruns").glob("tmp*/mlflow.db")))


def describe(folder: Path) -> str:
    """The newest state of a fit, and whether it is as it was written."""
    states = sorted(folder.glob("step-*.ckpt"))
    size = sum(path.stat().st_size for path in states) / 1e6
    if not states:
        return "a fit that began and saved no state"
    digest = states[-1].with_name(f"{states[-1].name}.sha256")
    is_whole = digest.is_file() and digest.read_text() == hashlib.sha256(states[-1].read_bytes()).hexdigest()
    verdict = "whole" if is_whole else "not whole, and will be passed over"
    return f"{len(states)} states, {size:.1f} MB; {states[-1].name} is {verdict}. Not wanted: rm -r {folder}"


def fault_of_lock(path: Path) -> str | None:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        return f"is not valid YAML: {' '.join(str(error).split())}"
    return None if isinstance(content, dict) and "stages" in content else "holds no stages"


if __name__ == "__main__":
    main()
