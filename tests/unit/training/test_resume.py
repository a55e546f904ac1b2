"""The files with a fit's state."""

import os
import tempfile
from pathlib import Path

import pytest

from refit.runtime.errors import UserError
from refit.training import resume
from refit.training.resume import fit_state


def step_of(path: Path) -> int:
    return int(path.stem.removeprefix("step-"))


def test_new_states_replace_later_damaged_ones(tmp_path: Path) -> None:
    files = resume.StateFiles()
    for step in (600, 800, 900):
        files.save_checkpoint({"step": step}, tmp_path / f"step-{step:09}.ckpt")
        files.finish()
        if step > 600:
            (tmp_path / f"step-{step:09}.ckpt.sha256").unlink()
    for step in (650, 700):
        files.save_checkpoint({"step": step}, tmp_path / f"step-{step:09}.ckpt")
        files.finish()
    files.close()
    assert sorted(step_of(path) for path in tmp_path.glob("*.ckpt")) == [650, 700]
    assert sorted(path.name for path in tmp_path.glob("*.sha256")) == [
        f"step-{step:09}.ckpt.sha256" for step in (650, 700)
    ]


@pytest.mark.skipif(os.getuid() != 0, reason="only root can change its user")
def test_a_folder_without_write_permission_fails_the_fit_with_a_one_line_error(workspace: Path) -> None:
    Path("data/state").mkdir()
    for folder in Path.cwd().parents:
        if folder.is_relative_to(Path(tempfile.gettempdir())):
            folder.chmod(folder.stat().st_mode | 0o755)
    os.seteuid(65534)
    try:
        with pytest.raises(UserError, match=r"data/state/\w+\.lock cannot be opened: Permission denied"):  # noqa: SIM117
            with fit_state({}, 1.0, {}):
                pass
    finally:
        os.seteuid(0)
