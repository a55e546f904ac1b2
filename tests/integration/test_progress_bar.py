"""The output of a fit in a terminal and in a log."""

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from refit.training.callbacks import TerminalBar
from tests.fixtures import Fit, watched_by

PROJECT = Path(__file__).resolve().parents[2]


def environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS")}
    return {**kept, "PYTHONPATH": str(PROJECT), "TERM": "xterm-256color"}


RUN = """
import fcntl, struct, sys, termios
from refit.artifacts.checked import stage_params
from stages import fit

for columns in map(int, sys.argv[1:]):  # one process, because its imports take seconds
    fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    print(f"{columns} columns")
    fit.main(stage_params("fit"))
"""


def in_terminals(*columns: int) -> list[str]:
    """The output of a fit in terminals of 40 lines, without the escape sequences for colours and the cursor."""
    ours, its = pty.openpty()
    command = [sys.executable, "-c", RUN, *map(str, columns)]
    process = subprocess.Popen(command, env=environment(), stdin=its, stdout=its, stderr=its)
    os.close(its)
    shown = b""
    try:
        while part := os.read(ours, 65536):
            shown += part
    except OSError:  # the command has closed the terminal
        pass
    assert process.wait() == 0, shown.decode()
    os.close(ours)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    return re.split(r"^\d+ columns\r?$", text, flags=re.MULTILINE)[1:]


def test_a_terminal_shows_the_epoch_the_metrics_and_the_time_left_in_its_width_but_no_version(fitted: Fit) -> None:
    fitted(tracking__loggers=["csv", "tensorboard"], fit__max_epochs=3)  # also writes params.yaml
    wide, narrow, narrowest = in_terminals(160, 100, 50)
    lines = [line for line in re.split(r"[\r\n]+", wide) if line.startswith("Epoch ")]
    assert {line.split()[1] for line in lines} == {"1/3", "2/3", "3/3"}
    last = re.fullmatch(
        r"Epoch 3/3 .* 18/18 0:00:00 left train_loss: \d\.\d+ train_accuracy: \d\.\d+ "
        r"val_loss: \d\.\d+ val_accuracy: \d\.\d+", lines[-1].strip()
    )  # fmt: skip
    assert last, lines[-1]
    assert any(re.search(r"Epoch 1/3 .*\d:\d\d:\d\d left", line) for line in lines)
    assert "v_num" not in wide
    for text, metrics in ((narrow, "train_loss val_loss val_accuracy"), (narrowest, "")):
        lines = re.split(r"[\r\n]+", text)
        last_line = [line for line in lines if line.startswith("Epoch 3/3")][-1]
        assert re.findall(r"\w+(?=: \d\.\d{3})", last_line) == metrics.split()
        assert not [line for line in lines if line.startswith(" ") and line.strip()]


def test_a_log_gets_one_line_per_epoch_and_no_progress_bar(fitted: Fit, capfd: pytest.CaptureFixture[str]) -> None:
    fitted(tracking__loggers=[], fit__max_epochs=3)
    said = capfd.readouterr()
    epochs = [line for line in said.out.splitlines() if line.startswith("epoch ")]
    assert [line.split()[1] for line in epochs] == ["1/3", "2/3", "3/3"]
    assert all(re.search(r"val_loss \d\.\d{4}  val_accuracy \d\.\d{4}$", line) for line in epochs)
    assert len(said.out.splitlines()) == 6
    assert re.fullmatch(r"about \d.* an epoch, \d.* for 3 epochs", said.out.splitlines()[1])
    assert "\x1b" not in said.out + said.err


def test_the_time_left_is_that_of_the_whole_fit(fitted: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock is patched so that each step takes two seconds."""
    now, left = [0.0], []

    class Clock(Callback):
        def on_train_batch_start(self, *_: object) -> None:
            now[0] += 2

        def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            (bar,) = [callback for callback in trainer.callbacks if isinstance(callback, TerminalBar)]  # type: ignore[attr-defined]
            left.append(bar.seconds_left)

    monkeypatch.setattr("refit.training.callbacks.time.monotonic", lambda: now[0])
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    with watched_by(Clock()):
        fitted(tracking__loggers=[], fit__max_epochs=4)
    assert left == pytest.approx([2 * 18 * 3, 2 * 18 * 2, 2 * 18, 0])
