"""A fit that was killed goes on where it was, to the same bits.

Its state lies in `data/state/<fingerprint>/`: outside DVC's outputs, which DVC removes before it runs a stage, and
under a name that follows from everything the weights follow from. A state of anything else is never taken up.
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
from lightning_utilities.core.apply_func import apply_to_collection
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.plugins.io import TorchCheckpointIO
from torch import Tensor

from refit.artifacts.files import write_bytes, write_json
from refit.artifacts.paths import STATES, repository_root
from refit.params.dotted import flatten
from refit.runtime.errors import UserError
from refit.runtime.locks import only_process
from refit.runtime.parent import PARENT_ENDED, survive_parent
from refit.training.collectives import Collectives

INPUTS = "inputs.json"
KEPT = 2  # states; the older one is for the day that the newer cannot be read
COST_SHARE = 0.02  # of the time of a fit, at most, for the states at the ends of its epochs
FIRST_GUESS = 0.1  # seconds that a state takes, before one was saved
SIGNALS = (signal.SIGTERM, signal.SIGINT, PARENT_ENDED)

_PATIENCE = 10.0  # seconds that a killed process may take to be gone
_LEADERS_END = 60.0  # seconds that the leader of a fit may take to end after a fault


@contextmanager
def fit_state(
    inputs: Mapping[str, Any], every: float, params: Mapping[str, Any], leads: bool = True
) -> Iterator["FitState"]:
    """The state of the fit that follows from `inputs`, which are JSON; removed at the end of the block if that is well.

    `every` is in seconds; `params`, for people, go into each state. Of a fit's processes one `leads`, and holds the
    state; the others go on from it with that one. Raises UserError where another process is at this very fit.
    """
    content = json.dumps(inputs, sort_keys=True).encode()
    states = repository_root() / STATES
    folder = states / hashlib.sha256(content).hexdigest()[:16]
    if not leads:
        try:
            yield FitState(folder, _newest_sound(folder, tell=False), every, params)
        except ValueError:
            time.sleep(_LEADERS_END)  # the leader tells the same fault, and this process dies with it
            raise
        return
    work = f"trains this very fit (its state is in {folder})"
    with only_process(states / f"{folder.name}.lock", work, _PATIENCE):
        path = _newest_sound(folder)
        if path is None:
            with suppress(OSError, ValueError):  # another process may end that fit meanwhile, or have left half a file
                _tell_of_others(states, folder, inputs)
            write_json(folder / INPUTS, inputs)
        state = FitState(folder, path, every, params)
        try:
            yield state
        finally:
            state.files.close()  # before another may have the folder
        shutil.rmtree(folder)


def _newest_sound(folder: Path, tell: bool = True) -> Path | None:
    for path in sorted(folder.glob("step-*.ckpt"), reverse=True):
        fault = _fault_of(path)
        if fault is None:
            return path
        if tell:
            print(f"warning: {path.relative_to(repository_root())} is passed over: {fault}", file=sys.stderr)
    return None


def _fault_of(path: Path) -> str | None:
    """What is wrong with a state; None where it is sound. Nothing in it is run."""
    digest = _read_text(_digest_file(path))
    if digest is None:
        return "it has no sha256 beside it"
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != digest:
        return "it does not match the sha256 beside it"
    try:
        torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        return f"it holds no state: {str(error).splitlines()[0]}"
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
    differs.sort(key=lambda key: (not key.startswith("params."), key))  # what was chosen, before what follows from it
    shown = ", ".join(differs[:4]) + (f" and {len(differs) - 4} more" if len(differs) > 4 else "")
    print(f"the state in {newest.parent.relative_to(repository_root())} is of another fit, and left there: {shown}")


class FitState(Checkpoint):
    """Saves a fit, at the end of a step in which the weights changed, so that it can go on from there.

    A state is saved every so many seconds, and in the first step of each epoch unless that would cost too much. It is
    copied between two steps, and written on a thread. SIGTERM and SIGINT save it, and then do what they did before;
    a second one does that at once. The end of the `dvc` that runs the fit does as SIGTERM.

    A step after which there is a validation is passed over: Lightning would go on from there without it.

    The processes of a fit on several devices save together, as Lightning's checkpoints are made, and end together: they
    ask one another after each step.
    """

    def __init__(self, folder: Path, path: Path | None, every: float, params: Mapping[str, Any]) -> None:
        """`path` is the state to go on from, in `folder`; `every` is in seconds; `params` are plain values."""
        self.folder = folder
        self.path = path
        self.every = every
        self.params = dict(params)
        self.files = StateFiles()
        self._random: list[dict[str, Any]] | None = None
        """Of each of the fit's processes, where there is a state to go on from."""
        self._new_epoch = False
        self._asked: signal.Signals | None = None

    @property
    def step(self) -> int:
        """Optimizer steps that were done in the state to go on from; 0 where there is none."""
        return int(self.path.stem.removeprefix("step-")) if self.path else 0

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Before the Trainer puts its own in place, which would tell the other processes in its own way.
        self._before = {number: signal.getsignal(number) for number in SIGNALS}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._collectives = Collectives(trainer)
        if len(set(self._collectives.gather(trainer.global_step))) > 1:
            raise UserError(f"the processes of this fit found different states; {STATES} must be one folder for all")
        if self._random is not None:
            # Lightning's own call came before it read the state: to count its steps, a schedule had the loader set up.
            trainer.fit_loop._load_combined_loader_states()
            _set_random(self._random[trainer.global_rank])
            if trainer.is_global_zero:
                print(
                    f"going on from step {trainer.global_step}, in epoch {trainer.current_epoch + 1} "
                    f"of {trainer.max_epochs}",
                    flush=True,
                )
        self._saved = time.monotonic()
        self._saves = any(_may_save(trainer, done) for done in range(1, int(trainer.num_training_batches)))
        for number in self._before:  # the Trainer puts back what it found
            signal.signal(number, self._ask)
        if self._collectives.rank == 0:
            survive_parent(True)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._new_epoch = trainer.current_epoch > 0

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any,
                           batch_idx: int) -> None:  # fmt: skip
        if not _may_save(trainer, batch_idx + 1):
            return
        # The time is the first one's, who writes.
        asked, due = self._collectives.maximum(self._asked or 0, self._collectives.rank == 0 and self._is_due())
        if asked or due:
            self._save(trainer)
        if asked:
            self.files.finish()
            self._obey(asked)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Else Lightning would keep the metrics of the epoch that was taken up from a schedule that goes by them.
        trainer.fit_loop.restarting = False
        if not self._saves:
            self._obey_if_asked()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.files.finish()
        survive_parent(False)  # before the last look at what was asked, so that no end goes unheard
        self._obey_if_asked(at_end=True)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        # In place of what a system of the user's own may have saved there, which need not be plain values: such a state
        # could not be loaded without unpickling.
        checkpoint[pl.LightningModule.CHECKPOINT_HYPER_PARAMS_KEY] = self.params

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
        # Who ends `dvc` may well signal its stage too, before or after.
        if number == PARENT_ENDED and self._asked is not None:
            return
        if self._asked not in (None, PARENT_ENDED):
            self._obey(number)
        self._asked = signal.Signals(number)
        if self._collectives.rank == 0:
            why = "whoever ran this fit has ended" if number == PARENT_ENDED else self._asked.name
            when = "step, whose state is kept" if self._saves else "epoch; with one step an epoch no state can be kept"
            with suppress(OSError):  # the terminal is closed
                print(f"{why}: ending after this {when}", file=sys.stderr, flush=True)

    def _obey_if_asked(self, at_end: bool = False) -> None:
        (asked,) = self._collectives.maximum(self._asked or 0)
        if asked and at_end and self._collectives.rank == 0:
            with suppress(OSError):
                print(f"asked in the fit's last steps, of which no state can be kept: it will {self._from_where()}",
                      file=sys.stderr, flush=True)  # fmt: skip
        if asked:
            self._obey(asked)

    def _from_where(self) -> str:
        newest = _newest_sound(self.folder, tell=False)
        return f"go on from {newest.stem}" if newest else "begin anew"

    def _obey(self, number: int) -> None:
        if self._collectives.rank > 0:
            sys.exit(0)  # what became of the fit, its first process tells; an error here would have that one killed
        if number == PARENT_ENDED:
            number = signal.SIGTERM
        signal.signal(number, self._before[signal.Signals(number)])
        signal.raise_signal(number)


def _may_save(trainer: pl.Trainer, done: int) -> bool:
    """Whether a fit can go on after so many batches of an epoch: between two optimizer steps, with no validation and no
    epoch's end to come in between."""
    return (
        done % trainer.accumulate_grad_batches == 0
        and done < trainer.num_training_batches
        and done % trainer.val_check_batch != 0  # type: ignore[operator]
    )


class StateFiles(TorchCheckpointIO):
    """Lightning's checkpoints as files that are whole or not there, the newest few, each with its sha256 beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds = FIRST_GUESS
        """What the last one took, copying and writing together."""
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="state")
        self._writing: Future[None] | None = None

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        """Copy a checkpoint, and write the copy on a thread. Raises UserError where the last one was not written."""
        self.finish()
        began = time.perf_counter()
        copied = apply_to_collection(checkpoint, Tensor, lambda tensor: tensor.detach().to("cpu", copy=True))
        self._writing = self._thread.submit(self._write, copied, Path(path), time.perf_counter() - began)

    def busy(self) -> bool:
        return self._writing is not None and not self._writing.done()

    def finish(self) -> None:
        """Wait for what is being written. Raises UserError where it could not be."""
        writing, self._writing = self._writing, None
        if writing is None:
            return
        try:
            writing.result()
        except OSError as error:
            raise UserError(
                f"the state of the fit could not be written to {error.filename or STATES}: {error.strerror}; mend that "
                "and run it again: it goes on from the last state that was"
            ) from None

    def close(self) -> None:
        """Wait for what is being written, whatever comes of it."""
        self._thread.shutdown()

    def _write(self, checkpoint: dict[str, Any], path: Path, seconds: float) -> None:
        began = time.perf_counter()
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        content = buffer.getbuffer()
        digest = hashlib.sha256(content).hexdigest().encode()
        write_bytes(path, content)
        write_bytes(_digest_file(path), digest)  # it counts from here on
        states = sorted(path.parent.glob("step-*.ckpt"))
        kept = [state for state in states if state <= path][-KEPT:]  # later ones were passed over: they are not sound
        for old in (state for state in states if state not in kept):
            old.unlink()
            _digest_file(old).unlink(missing_ok=True)
        self.seconds = seconds + time.perf_counter() - began


def _random_state() -> dict[str, Any]:
    """Of every generator that a step may draw from, as tensors, numbers and text: nothing that must be unpickled."""
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
