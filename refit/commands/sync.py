"""Send MLflow what it missed while it could not be reached: `python -m refit.commands.sync`."""

import fcntl
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from refit.artifacts.files import repository_root
from refit.artifacts.model import model_name
from refit.runtime.command import run_command, take_no_arguments
from refit.runtime.errors import UserError
from refit.tracking.outbox import IMAGES, MODEL, UNSENT, kept_files, kept_metrics, unsent, unsent_part
from refit.tracking.runs import TrackedRun, send_kept_test


def main() -> None:
    """Exits 1, after a line that says why, where MLflow still cannot be reached, or a kept model cannot be read: what
    is not sent goes on waiting."""
    if not unsent():
        print("MLflow misses nothing")
        return
    with _alone():
        unreadable = 0
        for sha256 in unsent():
            try:
                if not (_send_fit(sha256) and _send_test(sha256)):
                    sys.exit(1)
            except UserError as error:  # its system may be gone, which is no reason for the others to wait
                print(f"error: model {model_name(sha256)} still waits: {error}", file=sys.stderr)
                unreadable += 1
                continue
            shutil.rmtree(unsent_part(sha256, "fit").parent)
            print(f"MLflow has the run of model {model_name(sha256)}")
        if unreadable:
            sys.exit(1)


def _send_fit(sha256: str) -> bool:
    folder = unsent_part(sha256, "fit")
    if not folder.is_dir():
        return True
    run = TrackedRun.kept(folder)
    run.log_files(*kept_files(folder))
    run.finish(folder / MODEL, torch.from_numpy(np.load(folder / IMAGES)))
    return not run.lost


def _send_test(sha256: str) -> bool:
    folder = unsent_part(sha256, "test")
    return not folder.is_dir() or send_kept_test(sha256, kept_metrics(folder), kept_files(folder))


@contextmanager
def _alone() -> Iterator[None]:
    lock = os.open(repository_root() / UNSENT, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise UserError("another process is at this already; wait for it") from None
    finally:
        os.close(lock)


if __name__ == "__main__":
    take_no_arguments()
    run_command(lambda _: main())
