"""Send the outbox, which holds what could not be logged while MLflow was unreachable: `make sync`."""

import shutil
import sys

from refit.artifacts.model import model_name
from refit.artifacts.paths import OUTBOX, repository_root
from refit.runtime.command import run_command
from refit.runtime.errors import UserError
from refit.runtime.locks import only_process
from refit.tracking.model_runs import send_saved_test
from refit.tracking.outbox import IMAGES, MODEL, models_in_outbox, outbox_part, read_metrics, saved_files

LOCK = OUTBOX / "sync.lock"


def main() -> None:
    """Prints the reason and exits 1 if MLflow still cannot be reached or a saved model cannot be read. What was not
    sent stays in the outbox."""
    if not models_in_outbox():
        print("the outbox is empty: MLflow has everything")
        return
    with only_process(repository_root() / LOCK, "sends the outbox to MLflow"):
        unreadable = 0
        for sha256 in models_in_outbox():
            try:
                if not (_send_fit(sha256) and _send_test(sha256)):
                    sys.exit(1)
            except UserError as error:  # such as a system whose code was removed; the other models can still be sent
                print(f"error: model {model_name(sha256)} stays in the outbox: {error}", file=sys.stderr)
                unreadable += 1
                continue
            shutil.rmtree(outbox_part(sha256, "fit").parent)
            print(f"sent the run of model {model_name(sha256)} to MLflow")
        if unreadable:
            sys.exit(1)


def _send_fit(sha256: str) -> bool:
    folder = outbox_part(sha256, "fit")
    if not folder.is_dir():
        return True
    import numpy as np  # these imports take seconds, and an empty outbox needs none
    import torch

    from refit.inference.predictor import read_model
    from refit.tracking.runs import TrackedRun

    read_model(folder / MODEL)  # it raises UserError before MLflow gets a run without a model
    run = TrackedRun.from_outbox(folder)
    run.log_files(*saved_files(folder))
    run.finish(folder / MODEL, torch.from_numpy(np.load(folder / IMAGES)))
    return not run.store_failed


def _send_test(sha256: str) -> bool:
    folder = outbox_part(sha256, "test")
    return not folder.is_dir() or send_saved_test(sha256, read_metrics(folder), saved_files(folder))


if __name__ == "__main__":
    run_command(main)
