"""Saved states of a fit: a fit that was killed resumes, and ends with the same bits.

A state is in `data/state/<fingerprint>/`, which is outside DVC's outputs, because DVC removes those before it runs a
stage. The fingerprint covers everything that determines the weights, so a fit never resumes from the state of another.
"""

import hashlib
import io
import json
import os
import pickle
import random
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from lightning_utilities import apply_to_collection
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.plugins.io import TorchCheckpointIO
from torch import Tensor

from refit.artifacts.files import write_bytes, write_json
from refit.artifacts.paths import STATES, repository_root
from refit.batches.datamodule import TrainLoader
from refit.params.dotted import flatten
from refit.runtime.errors import UserError
from refit.runtime.locks import only_process
from refit.runtime.parent import PARENT_ENDED, survive_parent
from refit.training.collectives import Collectives

INPUTS = "inputs.json"
KEPT = 2  # states; the older one is the fallback if the newer one is unreadable
COST_SHARE = 0.02  # maximum share of a fit's time for the states at the beginning of its epochs
FIRST_GUESS = 0.1  # assumed seconds for the first state
SIGNALS = (signal.SIGTERM, signal.SIGINT, PARENT_ENDED)

_PATIENCE = 10.0  # seconds that a killed process may take to be gone
_LEADERS_END = 60.0  # seconds that the leader of a distributed fit may take to end after an error


@contextmanager
def fit_state(
    inputs: Mapping[str, Any], every: float, params: Mapping[str, Any], leads: bool = True
) -> Iterator["FitState"]:
    """The state of the fit with these `inputs`, which are JSON values. Removed when the block ends without an error.

    `every` is the number of seconds between two states. `params` are written into each state for people to read. Of the
    processes of a distributed fit, the one that `leads` locks the state, and the others resume from it too. Raises
    UserError if another process runs the same fit.
    """
    content = json.dumps(inputs, sort_keys=True).encode()
    states = repository_root() / STATES
    folder = states / hashlib.sha256(content).hexdigest()[:16]
    if not leads:
        try:
            yield FitState(folder, _newest_sound(folder, tell=False), every, params)
        except ValueError:
            time.sleep(_LEADERS_END)  # the leader reports the same error, and this process ends with it
            raise
        return
    work = f"trains this very fit (its state is in {folder})"
    with only_process(states / f"{folder.name}.lock", work, _PATIENCE):
        path = _newest_sound(folder)
        if path is None:
            with suppress(OSError, ValueError):  # that fit may end at this moment, or have left half a file
                _tell_of_others(states, folder, inputs)
            write_json(folder / INPUTS, inputs)
        state = FitState(folder, path, every, params)
        try:
            yield state
        finally:
            state.files.close()  # before the lock is released
        shutil.rmtree(folder)


def _newest_sound(folder: Path, tell: bool = True) -> Path | None:
    for path in sorted(folder.glob("step-*.ckpt"), reverse=True):
        fault = _fault_of(path)
        if fault is None:
            return path
        if tell:
            print(f"warning: {path.relative_to(repository_root())} is skipped: {fault}", file=sys.stderr)
    return None


def _fault_of(path: Path) -> str | None:
    """Why a state is unusable; None if it is sound. Runs no code from the file."""
    digest = _read_text(_digest_file(path))
    if digest is None:
        return "its .sha256 file is missing"
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != digest:
        return "it does not match its .sha256 file"
    try:
        torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        return f"it is not a state: {str(error).splitlines()[0]}"
    return None


def _digest_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _read_text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None


def _tell_of_others(states: Path, own: Path, inputs: Mapping[str, Any]) -> None:
    others = [file for file in states.glob(f"*/{INPUTS}") if file.parent != own and any(file.parent.glob("*.ckpt"))]
    if not others:
        return
    newest = max(others, key=lambda file: file.stat().st_mtime)
    theirs, ours = flatten(json.loads(newest.read_bytes())), flatten(inputs)
    differs = [key for key in ours | theirs if ours.get(key) != theirs.get(key)]
    differs.sort(key=lambda key: (not key.startswith("params."), key))  # the user's choices first
    shown = ", ".join(differs[:4]) + (f" and {len(differs) - 4} more" if len(differs) > 4 else "")
    where = newest.parent.relative_to(repository_root())
    print(f"the state in {where} is of another fit, which differs in {shown}; it stays there")


class FitState(Checkpoint):
    """Saves states of a fit at the ends of optimizer steps, and resumes from one.

    It saves a state every `every` seconds, and after the first step of each epoch unless that would cost too much. A
    state is copied between two steps and written by a thread. SIGTERM and SIGINT save a state and then have their usual
    effect; a second signal has it at once. The end of the `dvc` that runs the fit counts as SIGTERM.

    No state is saved at a step that is followed by a validation: Lightning would resume after the validation.

    The processes of a distributed fit save together and end together. They communicate after each step.
    """

    def __init__(self, folder: Path, path: Path | None, every: float, params: Mapping[str, Any]) -> None:
        """`path` is the state in `folder` to resume from; `every` is in seconds; `params` are plain values."""
        self.folder = folder
        self.path = path
        self.every = every
        self.params = dict(params)
        self.files = StateFiles()
        self._random: list[dict[str, Any]] | None = None
        """Random states of each process of the fit; None if there is no state to resume from."""
        self._loader: dict[str, int] = {}
        self._new_epoch = False
        self._asked: signal.Signals | None = None

    @property
    def step(self) -> int:
        """Number of optimizer steps in the state to resume from; 0 if there is none."""
        return int(self.path.stem.removeprefix("step-")) if self.path else 0

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Before the Trainer installs its own handlers, which would notify the other processes in another way.
        self._before = {number: signal.getsignal(number) for number in SIGNALS}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._collectives = Collectives(trainer)
        if len(set(self._collectives.gather(trainer.global_step))) > 1:
            raise UserError(f"the processes of this fit found different states; {STATES} must be a shared folder")
        if self._random is not None:
            # Lightning does this too, but before it reads the state if a schedule has asked for the number of steps.
            assert isinstance(trainer.train_dataloader, TrainLoader)
            trainer.train_dataloader.load_state_dict(self._loader)
            _set_random(self._random[trainer.global_rank])
            if trainer.is_global_zero:
                print(
                    f"resuming from step {trainer.global_step}, in epoch {trainer.current_epoch + 1} "
                    f"of {trainer.max_epochs}",
                    flush=True,
                )
        self._saved = time.monotonic()
        self._saves = any(_may_save(trainer, done) for done in range(1, int(trainer.num_training_batches)))
        for number in self._before:  # the Trainer restores the handlers that it replaced
            signal.signal(number, self._ask)
        if self._collectives.rank == 0:
            survive_parent(True)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._new_epoch = trainer.current_epoch > 0

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any,
                           batch_idx: int) -> None:  # fmt: skip
        if not _may_save(trainer, batch_idx + 1):
            return
        # The leader's clock counts, because the leader writes.
        asked, due = self._collectives.maximum(self._asked or 0, self._collectives.rank == 0 and self._is_due())
        if asked or due:
            self._save(trainer)
        if asked:
            self.files.finish()
            self._obey(asked)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Otherwise Lightning would not update a plateau schedule in the epoch that was resumed.
        trainer.fit_loop.restarting = False
        if not self._saves:
            self._obey_if_asked()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.files.finish()
        survive_parent(False)  # before the last check, so that no signal is missed
        self._obey_if_asked(at_end=True)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        # A user's own system may have saved objects here. Loading such a state would need unpickling.
        checkpoint[pl.LightningModule.CHECKPOINT_HYPER_PARAMS_KEY] = self.params
        assert isinstance(trainer.train_dataloader, TrainLoader)
        checkpoint["train_loader"] = trainer.train_dataloader.state_dict()

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._loader = checkpoint["train_loader"]

    def state_dict(self) -> dict[str, Any]:
        return {"random": self._collectives.gather(_random_state())}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._random = state_dict["random"]

    def _is_due(self) -> bool:
        if self.files.busy():
            return False
        waited = time.monotonic() - self._saved
        return waited >= self.every or (self._new_epoch and waited * COST_SHARE >= self.files.seconds)

    def _save(self, trainer: pl.Trainer) -> None:
        trainer.save_checkpoint(self.folder / f"step-{trainer.global_step:09}.ckpt", weights_only=False)
        self._saved, self._new_epoch = time.monotonic(), False

    def _ask(self, number: int, _frame: object) -> None:
        # Whoever ends `dvc` may also signal its stage, before or after.
        if number == PARENT_ENDED and self._asked is not None:
            return
        if self._asked not in (None, PARENT_ENDED):
            self._obey(number)
        self._asked = signal.Signals(number)
        if self._collectives.rank == 0:
            why = "the process that ran this fit has ended" if number == PARENT_ENDED else self._asked.name
            when = "step and saving its state" if self._saves else "epoch; it has one step, so no state can be saved"
            with suppress(OSError):  # the terminal may be closed
                print(f"{why}: ending after this {when}", file=sys.stderr, flush=True)

    def _obey_if_asked(self, at_end: bool = False) -> None:
        (asked,) = self._collectives.maximum(self._asked or 0)
        if asked and at_end and self._collectives.rank == 0:
            with suppress(OSError):
                print(f"the last steps of a fit cannot be saved: the next run will {self._from_where()}",
                      file=sys.stderr, flush=True)  # fmt: skip
        if asked:
            self._obey(asked)

    def _from_where(self) -> str:
        newest = _newest_sound(self.folder, tell=False)
        return f"resume from {newest.stem}" if newest else "start over"

    def _obey(self, number: int) -> None:
        if self._collectives.rank > 0:
            sys.exit(0)  # the leader reports how the fit ended; an exit code other than 0 would have it killed
        if number == PARENT_ENDED:
            number = signal.SIGTERM
        signal.signal(number, self._before[signal.Signals(number)])
        signal.raise_signal(number)


def _may_save(trainer: pl.Trainer, done: int) -> bool:
    """Whether a fit can resume after `done` batches of an epoch.

    That is after an optimizer step which neither a validation nor the end of the epoch follows.
    """
    return (
        done % trainer.accumulate_grad_batches == 0
        and done < trainer.num_training_batches
        and done % trainer.val_check_batch != 0  # type: ignore[operator]
    )


class StateFiles(TorchCheckpointIO):
    """Writes checkpoints atomically, each with a .sha256 file, and keeps the newest KEPT."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds = FIRST_GUESS
        """Time to copy and write the last state."""
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="state")
        self._writing: Future[None] | None = None

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        """Copy a checkpoint and write the copy on a thread. Raises UserError if the previous one was not written."""
        self.finish()
        began = time.perf_counter()
        copied = apply_to_collection(checkpoint, Tensor, lambda tensor: tensor.detach().to("cpu", copy=True))
        self._writing = self._thread.submit(self._write, copied, Path(path), time.perf_counter() - began)

    def busy(self) -> bool:
        return self._writing is not None and not self._writing.done()

    def finish(self) -> None:
        """Wait until the state is written. Raises UserError if that failed."""
        writing, self._writing = self._writing, None
        if writing is None:
            return
        try:
            writing.result()
        except OSError as error:
            raise UserError(
                f"the state of the fit could not be written to {error.filename or STATES}: {error.strerror}; solve "
                "this and run it again: it resumes from the last state that was written"
            ) from None

    def close(self) -> None:
        """Wait until the state is written, or failed to be."""
        self._thread.shutdown()

    def _write(self, checkpoint: dict[str, Any], path: Path, seconds: float) -> None:
        began = time.perf_counter()
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        content = buffer.getbuffer()
        digest = hashlib.sha256(content).hexdigest().encode()
        write_bytes(path, content)
        write_bytes(_digest_file(path), digest)  # from here on the state is valid
        states = sorted(path.parent.glob("step-*.ckpt"))
        kept = [state for state in states if state <= path][-KEPT:]  # later ones were found unsound and skipped
        for old in (state for state in states if state not in kept):
            old.unlink()
            _digest_file(old).unlink(missing_ok=True)
        self.seconds = seconds + time.perf_counter() - began


def _random_state() -> dict[str, Any]:
    """State of every random generator that a step may use, as tensors, numbers and text, which need no unpickling."""
    numpy: Any = np.random.get_state(legacy=True)
    name, keys, *rest = numpy
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": (name, torch.from_numpy(keys.astype(np.int64)), *rest),
        "python": random.getstate(),
    }


def _set_random(state: Mapping[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    random.setstate(state["python"])
