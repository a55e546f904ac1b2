"""`make doctor`: find what killed runs have left here, and repair it if nothing runs that might still need it.

It also says what is wrong in params.yaml. With --records, as `make repro` calls it first, it only repairs DVC's own
files, and prints nothing if they are in order.
"""

import hashlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import yaml
from dvc.rwlock import SCHEMA
from dvc.schema import COMPILED_LOCKFILE_SCHEMA
from voluptuous import Invalid

from refit.artifacts.paths import DIVERGED, OUTBOX, STATES
from refit.runtime.command import command_parser, run_command

UPDATE = Path(".dvc/tmp/refit-update")
"""Exists while an import is updated; its file `import` names the .dvc file."""
PATIENCE = 10.0  # seconds for a stage to end whose dvc was killed: fit saves its state first
_WORKERS = ("stages.", "pipelines.", "refit.")  # what Python runs as a module


def main(*, records: bool) -> None:
    """Exits 0 if all is well or was repaired, and 1 if a person has to decide. Raises UserError if params.yaml is
    wrong."""
    root = Path.cwd()
    if not (root / ".dvc").is_dir():
        sys.exit("error: no .dvc is here; run from the repository's root")
    if records:
        print("".join(f"{line}\n" for line in mend_records(root)), end="")
        return
    at_work = processes(root)
    for pid, command in at_work.items():
        print(f"at work  process {pid}: {command}")
    for path, what in [*broken_records(root, set(at_work)), *half_written(root)]:
        print(f"{'left' if at_work else mend(path):8} {path.relative_to(root)}: {what}")
    for folder in sorted(path.parent for path in (root / STATES).glob("*/inputs.json")):
        print(f"state    {folder.relative_to(root)}: {describe(folder)}")
    if is_half_merged(root / "dvc.lock"):
        sys.exit("error: dvc.lock holds both sides of a merge; to have this branch's: git checkout HEAD -- dvc.lock")
    from refit.params import PARAMS_FILE, load_params  # not needed to repair the records, which has to be fast

    if (root / PARAMS_FILE).is_file():
        load_params()
    print("all else is well")


def mend_records(root: Path) -> list[str]:
    """Repair DVC's own files after a `dvc` was killed, if nothing runs in this folder; returns a line for each."""
    deadline = time.monotonic() + PATIENCE
    while broken := list(broken_records(root, set(at_work := processes(root)))):
        if not at_work:
            return [f"{mend(path)} {path.relative_to(root)}: {what}" for path, what in broken]
        if time.monotonic() > deadline:
            left = [f"left {path.relative_to(root)}: {what}" for path, what in broken]
            return [*left, *(f"at work: process {pid}: {command}" for pid, command in at_work.items())]
        time.sleep(0.1)
    return []


def mend(path: Path) -> str:
    """Remove the file or folder; or restore `dvc.lock` from the last commit, or an import from DVC's cache. Returns
    what it did."""
    if path.name == UPDATE.name:
        root, imported = path.parents[2], (path / "import").read_text(encoding="utf-8")
        restore = [sys.executable, "-m", "dvc", "checkout", "--force", imported]
        if subprocess.run(restore, cwd=root, capture_output=True, check=False).returncode != 0:
            return "left"
        shutil.rmtree(path)
        return "restored"
    if path.name == "dvc.lock":
        restore = ["git", "restore", "--source=HEAD", "--worktree", path.name]
        if subprocess.run(restore, cwd=path.parent, capture_output=True, check=False).returncode == 0:
            return "restored"
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    return "removed"


def processes(root: Path) -> dict[int, str]:
    """The process id and command of each dvc, stage and flow in this folder, or in an experiment's folder below it."""
    ours = {psutil.Process().pid, *(parent.pid for parent in psutil.Process().parents())}
    found = {}
    for process in psutil.process_iter():
        try:
            command, folder = process.cmdline(), process.cwd()
        except psutil.Error:  # another user's, or it has just ended
            continue
        is_worker = any(Path(word).name == "dvc" or word.startswith(_WORKERS) for word in command[:4])
        if process.pid not in ours and is_worker and Path(folder).is_relative_to(root):
            found[process.pid] = " ".join(command)
    return found


def broken_records(root: Path, at_work: set[int]) -> Iterator[tuple[Path, str]]:
    """Files that stop every `dvc` command; DVC writes neither in one go. Its other locks end with their process."""
    path = root / ".dvc/tmp/rwlock"  # who reads and writes what
    if path.is_file():
        try:
            record = SCHEMA(json.loads(path.read_bytes()))
        except (ValueError, Invalid):
            yield path, "DVC's record of locks was cut short; every dvc command fails at it"
        else:
            readers = [info["pid"] for infos in record["read"].values() for info in infos]
            holders = {*readers, *(info["pid"] for info in record["write"].values())}
            if holders and not holders & at_work:
                yield path, f"locks of process {', '.join(map(str, sorted(holders)))}, which is no dvc at work here"
    path = root / UPDATE
    if (path / "import").is_file():
        yield path, "an import's update was cut short; its data are again as its .dvc file says"
    path = root / "dvc.lock"
    if path.is_file() and not is_half_merged(path):
        try:
            COMPILED_LOCKFILE_SCHEMA(yaml.safe_load(path.read_text(encoding="utf-8")))
        except (yaml.YAMLError, UnicodeDecodeError, Invalid):
            yield path, "was cut short; what has run since the last commit is in DVC's cache of runs"


def is_half_merged(lock: Path) -> bool:
    """Whether it has git's conflict markers; only a person can choose between the two sides."""
    return lock.is_file() and any(line.startswith(b"<<<<<<< ") for line in lock.read_bytes().splitlines())


def half_written(root: Path) -> Iterator[tuple[Path, str]]:
    """Unfinished files and folders: of outputs, of states, and of a new MLflow store."""
    stages = yaml.safe_load((root / "dvc.yaml").read_text(encoding="utf-8"))["stages"].values()
    outs = [out for stage in stages for kind in ("outs", "metrics") for out in stage.get(kind, [])]
    folders = {(root / (next(iter(out)) if isinstance(out, dict) else out)).parent for out in outs}
    for folder in sorted(folders | set((root / STATES).glob("*/")) | set((root / OUTBOX).glob("*/"))):
        yield from ((path, "half-written") for path in sorted(folder.glob(".*.partial")))
    yield from ((path.parent, "a half-made MLflow store") for path in sorted((root / "mlruns").glob("tmp*/mlflow.db")))


def describe(folder: Path) -> str:
    """The newest state of a fit and whether it is intact, and whether the fit stopped on a non-finite loss."""
    states = sorted(folder.glob("step-*.ckpt"))
    size = sum(path.stat().st_size for path in states) / 1e6
    diverged = f"Its loss was not finite: {DIVERGED} in it says where. " if (folder / DIVERGED).is_file() else ""
    if not states:
        return f"a fit that began and saved no state. {diverged}Not wanted: rm -r {folder}*"
    digest = states[-1].with_name(f"{states[-1].name}.sha256")
    is_whole = digest.is_file() and digest.read_text() == hashlib.sha256(states[-1].read_bytes()).hexdigest()
    verdict = "intact" if is_whole else "not intact, and will be skipped"
    count = "1 state" if len(states) == 1 else f"{len(states)} states"
    return f"{count}, {size:.1f} MB; {states[-1].name} is {verdict}. {diverged}Not wanted: rm -r {folder}*"


if __name__ == "__main__":
    parser = command_parser()
    parser.add_argument("--records", action="store_true", help="only repair DVC's own files; silent if all is well")
    run_command(main, parser)
