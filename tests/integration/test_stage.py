"""A stage's process: its messages when it fails, and its exit code. Each test runs a real process."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.fixtures import Values
from tests.processes import PATIENCE, alive, eventually

ROOT = Path(__file__).resolve().parents[2]
_TOY = """
import gc
import json
import os
import sys
import time
from pathlib import Path

CASE = os.environ["CASE"]
COLLECTS_WHILE_IMPORTING = gc.isenabled()
if CASE == "slow imports":  # like those of Lightning
    Path("importing").touch()
    time.sleep(2)

from refit.params import load_params
from refit.runtime.errors import UserError
from refit.runtime.stage import run_stage


def main(params):
    CASES[CASE](params)


def user_error(params):
    raise UserError("the first line\\nthe second line")


def library_fault(params):
    json.loads("{")


def no_deterministic_way(params):
    import torch

    torch.use_deterministic_algorithms(True)
    torch.nn.functional.max_unpool2d(torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1, dtype=torch.int64), 2)


def builtin_fault(params):
    int("not a number")


def full_disk(params):
    with Path("/dev/full").open("w") as file:
        file.write("no room for this")


def sleep(params):
    Path("began").touch()
    time.sleep(600)


def train(params):
    trainer_of(params).fit(*system_and_batches())
    Path("ended").touch()


def predict(params):
    trainer_of(params).predict(*system_and_batches())
    Path("ended").touch()


def trainer_of(params):
    from refit.training.trainer import make_trainer

    return make_trainer(params.trainer, max_epochs=1)


def system_and_batches():
    import pytorch_lightning as pl
    import torch

    class System(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(1, 1)

        def training_step(self, batch, batch_idx):
            Path("began").touch()
            time.sleep(0.05)
            return self.layer(batch).sum()

        predict_step = training_step

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    return System(), torch.utils.data.DataLoader(torch.ones(80, 1))


CASES = {
    "done": lambda params: print("done"),
    "garbage collection": lambda params: print(COLLECTS_WHILE_IMPORTING, gc.isenabled()),
    "user error": user_error,
    "library fault": library_fault,
    "builtin fault": builtin_fault,
    "no deterministic way": no_deterministic_way,
    "full disk": full_disk,
    "invariant": lambda params: (_ for _ in ()).throw(AssertionError("broken")),
    "another section": lambda params: params.data,
    "own code": lambda params: sys.exit(7),
    "sleep": sleep,
    "slow imports": sleep,
    "train": train,
    "predict": predict,
}

if __name__ == "__main__":
    run_stage(lambda: main(load_params().only("seed", "trainer")))
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This project with a toy as its only stage."""
    project = tmp_path_factory.mktemp("project")
    shutil.copytree(ROOT / "refit", project / "refit", ignore=shutil.ignore_patterns("__pycache__"))
    (project / "stages").mkdir()
    shutil.copy(ROOT / "stages/__init__.py", project / "stages")
    (project / "stages/toy.py").write_text(_TOY)
    return project


Start = Callable[[str], "subprocess.Popen[str]"]


@pytest.fixture
def start(project: Path, workspace: Path, values: Values) -> Start:
    """Start the toy in `workspace`."""
    (workspace / "params.yaml").write_text(yaml.safe_dump(values({})))

    def started(case: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-m", "stages.toy"], cwd=workspace, text=True,
            env=environment(project, case), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            preexec_fn=ignore_ctrl_c,
        )  # fmt: skip

    return started


def environment(project: Path, case: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(project), "CASE": case}


def ignore_ctrl_c() -> None:
    """As a shell does for its background processes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def ended(process: "subprocess.Popen[str]") -> tuple[int, str, str]:
    """Exit code, stdout, stderr."""
    try:
        out, err = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    return process.returncode, out, err


def test_a_finished_stage_exits_0(start: Start) -> None:
    assert ended(start("done")) == (0, "done\n", "")


def test_garbage_collection_is_off_only_while_a_stage_imports(start: Start) -> None:
    assert ended(start("garbage collection")) == (0, "False True\n", "")


def test_a_user_error_is_printed_without_a_traceback_and_exits_2(start: Start) -> None:
    assert ended(start("user error")) == (2, "", "error: the first line\nerror: the second line\n")


def test_a_nondeterministic_operation_fails_with_a_one_line_user_error(start: Start) -> None:
    code, _, err = ended(start("no deterministic way"))
    assert err.startswith("error: trainer.deterministic = true, and the network's max_unpool")
    assert err.count("\n") == 1
    assert code == 2


def test_a_full_disk_gives_a_one_line_error(start: Start) -> None:
    line = "error: No space left on device; fix that and run it again\n"
    assert ended(start("full disk")) == (2, "", line)


@pytest.mark.parametrize(
    ("case", "error"),
    [
        ("library fault", "json.decoder.JSONDecodeError: "),
        ("builtin fault", "ValueError: invalid literal for int()"),
        ("invariant", "AssertionError: broken"),
        ("another section", "AttributeError: "),
    ],
)
def test_an_error_of_refit_or_a_library_keeps_its_traceback_and_exits_1(case: str, error: str, start: Start) -> None:
    code, _, err = ended(start(case))
    assert "Traceback (most recent call last)" in err
    assert error in err.splitlines()[-1] + err.splitlines()[-2]
    assert code == 1


def test_a_stage_s_own_exit_code_is_kept(start: Start) -> None:
    assert ended(start("own code"))[0] == 7


@pytest.mark.parametrize("case", ["train", "predict"])
def test_sigterm_in_the_middle_of_lightning_exits_143_at_once(case: str, start: Start, workspace: Path) -> None:
    """Without our handler Lightning would exit with 0, and DVC would accept incomplete outputs."""
    process = start(case)
    eventually((workspace / "began").exists, "the stage began", every=0.02)
    process.terminate()
    code, _, err = ended(process)
    assert not (workspace / "ended").exists()
    assert code == 128 + signal.SIGTERM, err


@pytest.mark.parametrize("case", ["sleep", "train"])  # Lightning handles it in one place for both
def test_ctrl_c_exits_130_with_a_message(case: str, start: Start, workspace: Path) -> None:
    process = start(case)
    eventually((workspace / "began").exists, "the stage began", every=0.02)
    process.send_signal(signal.SIGINT)
    code, _, err = ended(process)
    assert not (workspace / "ended").exists()
    assert code == 128 + signal.SIGINT, err
    assert "interrupted" in err.splitlines()


_PARENT = """
import subprocess, sys
child = subprocess.Popen(sys.argv[1:])
print(child.pid, flush=True)
child.wait()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux signals a process when its parent dies")
@pytest.mark.parametrize(("case", "moment"), [("sleep", "began"), ("slow imports", "importing")])
def test_a_stage_ends_if_its_parent_is_killed(
    case: str, moment: str, start: Start, project: Path, workspace: Path
) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", _PARENT, sys.executable, "-m", "stages.toy"], cwd=workspace, text=True,
        env=environment(project, case), stdout=subprocess.PIPE,
    )  # fmt: skip
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    try:
        eventually((workspace / moment).exists, f"the stage is {moment}", every=0.02)
        assert alive(child)
        parent.kill()
        eventually(lambda: not alive(child), "the stage is gone")
    finally:
        parent.kill()
        if alive(child):
            os.kill(child, signal.SIGKILL)
        parent.communicate()


_INIT = """
sleep 0.2
DVC_STAGE=toy "$0" -m stages.toy
echo $?
"""


def test_a_stage_does_not_start_if_its_dvc_was_killed_before(start: Start, project: Path, workspace: Path) -> None:
    """Its parent is then the first process, here a shell."""
    done = in_container(["sh", "-c", _INIT, sys.executable], project, workspace)
    assert (done.stdout, done.stderr) == ("1\n", "error: the dvc that started this stage was killed\n")


_PROCESS_1 = """
import os, subprocess, sys
assert os.getpid() == 1
sys.exit(subprocess.run(sys.argv[1:], process_group=0).returncode)  # as a shell with job control does
"""


def test_a_container_s_first_process_can_start_a_stage(start: Start, project: Path, workspace: Path) -> None:
    """For example the shell of `docker run -it IMAGE bash`."""
    command = [sys.executable, "-c", _PROCESS_1, sys.executable, "-m", "stages.toy"]
    done = in_container(command, project, workspace)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


def in_container(command: list[str], project: Path, workspace: Path) -> "subprocess.CompletedProcess[str]":
    container = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc"]
    if shutil.which("unshare") is None or subprocess.run([*container, "true"], capture_output=True).returncode:
        pytest.skip("needs Linux's namespaces")
    return subprocess.run(
        [*container, *command], cwd=workspace, env=environment(project, "done"),
        capture_output=True, text=True,
    )  # fmt: skip
