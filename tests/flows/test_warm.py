"""The warm process of the stages: a real `dvc repro`, real signals, and no process left running.

The toy's folder contains empty modules with the names of torch and the others, so that warming up takes no time.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from dvc.utils.hydra import apply_overrides

from refit.runtime import warm
from refit.runtime.environment import QUIET
from refit.runtime.parent import _is_orphan
from tests.flows.toy import PROJECT, Toy, gone
from tests.processes import PATIENCE, alive, eventually

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the warm process needs sockets and signals of Linux")

_STAGE = """
import json, os, signal, subprocess, sys, time
from pathlib import Path

torch_is_here = "torch" in sys.modules
about = dict(pid=os.getpid(), parent=os.getppid(), stage=os.environ["DVC_STAGE"], argv=sys.argv, name=__name__,
             warm=torch_is_here, command=Path("/proc/self/cmdline").read_text().split("\\0"))
Path("log/{name}.json").write_text(json.dumps(about))
print("{name} says hello")
print("{name} complains", file=sys.stderr)
{does}
Path("out/{name}").write_text("done")
"""
_HOLD = "Path('log/held').write_text(str(os.getpid())); time.sleep(600)"


class WarmToy(Toy):
    """A toy whose stages are modules of the project's own `stages` package."""

    def __init__(self, root: Path, prefect_home: Path) -> None:
        super().__init__(root, prefect_home)
        (root / "stages").mkdir()
        shutil.copy(PROJECT / "stages/__init__.py", root / "stages")
        for library in {*warm._FIRST, *warm._LATER} - {"jinja2"}:  # Prefect needs the real one
            *packages, module = library.split(".")
            folder = root
            for package in packages or [module]:
                folder = folder / package
                folder.mkdir(exist_ok=True)
                (folder / "__init__.py").touch()
            (folder / f"{module}.py").touch()

    def stage(self, name: str, *, after: tuple[str, ...] = (), does: str = "", always: bool = False) -> None:
        super().stage(name, after=after, always=always)
        (self.root / f"{name}.py").unlink()
        (self.root / f"stages/{name}.py").write_text(_STAGE.format(name=name, does=does))
        graph = yaml.safe_load((self.root / "dvc.yaml").read_text())
        for stage, entry in graph["stages"].items():
            entry |= {"cmd": f"exec python -m stages.{stage}", "deps": [*entry["deps"][1:], f"stages/{stage}.py"]}
        (self.root / "dvc.yaml").write_text(yaml.safe_dump(graph, sort_keys=False))

    def repro(self, **environment: str) -> "subprocess.CompletedProcess[str]":
        self.env |= environment
        return self.run("dvc", "repro", check=False)

    def about(self, name: str) -> dict[str, object]:
        return dict(json.loads(self.note(f"{name}.json")))


@pytest.fixture
def toy(tmp_path: Path, prefect_home: Path) -> WarmToy:
    return WarmToy(tmp_path, prefect_home)


def pid(value: object) -> str:
    return str(value)


def test_stages_are_children_of_one_process_that_ends_with_dvc(toy: WarmToy) -> None:
    toy.stage("one")
    toy.stage("two", after=("one",))
    done = toy.repro()
    assert done.returncode == 0, done.stdout
    one, two = toy.about("one"), toy.about("two")
    assert one["parent"] == two["parent"]
    assert "refit.runtime.warm" in str(one["command"])
    assert gone(pid(one["parent"]))
    assert [one[key] for key in ("stage", "name", "warm")] == ["one", "__main__", True]
    assert two["stage"] == "two"
    assert str(two["argv"]).endswith("stages/two.py']")
    for line in ("one says hello", "one complains", "two says hello", "two complains"):
        assert line in done.stdout.splitlines()


@pytest.mark.parametrize("stage", ["check", "prepare"])
def test_a_stage_without_torch_does_not_wait_for_it_but_starts_its_import_for_the_next(
    toy: WarmToy, stage: str
) -> None:
    toy.stage(stage)
    toy.stage("two", after=(stage,))
    assert toy.repro().returncode == 0
    assert toy.about(stage)["warm"] is False
    assert f"stages.{stage}" in str(toy.about(stage)["command"])
    assert toy.about("two")["warm"] is True


def test_refit_warm_0_turns_the_warm_process_off(toy: WarmToy) -> None:
    toy.stage("one")
    assert toy.repro(REFIT_WARM="0").returncode == 0
    assert toy.about("one")["warm"] is False
    assert "stages.one" in str(toy.about("one")["command"])


def test_without_dvc_a_stage_does_not_use_the_warm_process(toy: WarmToy) -> None:
    toy.stage("one")
    done = toy.run("env", "-u", "DVC_STAGE", sys.executable, "-m", "stages.one", check=False)
    assert "KeyError: 'DVC_STAGE'" in done.stdout  # raised by the toy, not in a child of the server
    assert not list((toy.root / "log").iterdir())


def test_each_stage_runs_the_code_that_is_on_disk_when_it_starts(toy: WarmToy) -> None:
    (toy.root / "refit/answer.py").write_text("ANSWER = 1")
    says = "from refit.answer import ANSWER; print('{} answers', ANSWER)"
    toy.stage("one", does=says.format("one") + "; Path('refit/answer.py').write_text('ANSWER = 2222')")
    toy.stage("two", after=("one",), does=says.format("two"))
    lines = toy.repro().stdout.splitlines()
    assert "one answers 1" in lines
    assert "two answers 2222" in lines


@pytest.mark.parametrize(
    ("does", "exit_code", "says"),
    [
        ("sys.exit(7)", 7, ""),
        ("sys.exit('the reason')", 1, "the reason"),
        ("raise RuntimeError('out of memory')", 1, "RuntimeError: out of memory"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", -11, ""),
    ],
)
def test_a_stage_fails_as_it_would_without_the_warm_process(toy: WarmToy, does: str, exit_code: int, says: str) -> None:
    toy.stage("one", does=does)
    for switch in ("1", "0"):
        done = toy.repro(REFIT_WARM=switch)
        assert done.returncode == 255
        assert f"failed to run: exec python -m stages.one, exited with {exit_code}" in done.stdout
        assert says in done.stdout
        assert toy.about("one")["warm"] is (switch == "1")


def test_a_library_that_cannot_be_imported_fails_only_the_stage_that_imports_it(toy: WarmToy) -> None:
    (toy.root / "torch/__init__.py").write_text("raise ImportError('no CUDA')")
    toy.stage("one")
    toy.stage("two", after=("one",), does="import torch")
    done = toy.repro()
    assert toy.about("one")["warm"] is False
    assert "ImportError: no CUDA" in done.stdout
    assert done.returncode == 255


@pytest.mark.parametrize("whose", ["dvc", "the process that dvc started", "the server"])
def test_the_stage_ends_whichever_process_is_killed(toy: WarmToy, whose: str) -> None:
    toy.stage("one", does=f"subprocess.Popen(['sleep', '600']); {_HOLD}")
    with toy.starting("dvc", "repro") as dvc:
        stage = eventually(lambda: toy.note("held"), "the stage runs")
        server = pid(toy.about("one")["parent"])
        children = Path(f"/proc/{stage}/task/{stage}/children").read_text().split()
        (handed_over,) = Path(f"/proc/{dvc.pid}/task/{dvc.pid}/children").read_text().split()
        assert len(children) == 1
        assert all(map(alive, [stage, server, handed_over, *children]))
        victim = {"dvc": dvc.pid, "the process that dvc started": int(handed_over), "the server": int(server)}[whose]
        os.kill(victim, signal.SIGKILL)
        assert gone(f"{stage} {handed_over}")
        if whose == "the process that dvc started":
            assert gone(" ".join(children))
        dvc.wait(timeout=PATIENCE)
        assert gone(server)
        for child in children:
            if alive(child):
                os.kill(int(child), signal.SIGKILL)
    assert not (toy.root / "out/one").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_reaches_the_stage_which_can_still_save_its_state(toy: WarmToy, number: signal.Signals) -> None:
    saves = "signal.signal({0}, lambda *_: (Path('log/saved').touch(), sys.exit(128 + {0}))); {1}"
    toy.stage("one", does=saves.format(int(number), _HOLD))
    with toy.starting("dvc", "repro") as dvc:
        stage = eventually(lambda: toy.note("held"), "the stage runs")
        (handed_over,) = Path(f"/proc/{dvc.pid}/task/{dvc.pid}/children").read_text().split()
        os.kill(int(handed_over), number)
        assert dvc.wait(timeout=PATIENCE) == 255
        assert gone(stage)
    assert (toy.root / "log/saved").exists()
    assert f"exited with {128 + number}" in (toy.root / "background.log").read_text()


def test_a_stopped_stage_continues_after_sigcont(toy: WarmToy) -> None:
    toy.stage("one", does="Path('log/held').write_text('x')\nfor _ in range(20): time.sleep(0.1)")
    with toy.starting("dvc", "repro") as dvc:
        eventually(lambda: toy.note("held"), "the stage runs")
        (handed_over,) = Path(f"/proc/{dvc.pid}/task/{dvc.pid}/children").read_text().split()
        stage = pid(toy.about("one")["pid"])
        os.kill(int(handed_over), signal.SIGTSTP)
        eventually(lambda: state(stage) == state(handed_over) == "T", "both have stopped")
        os.kill(int(handed_over), signal.SIGCONT)
        assert dvc.wait(timeout=PATIENCE) == 0


@pytest.mark.parametrize(
    ("model", "name", "named"),
    [("cnn", "adamw", False), ("timm:vit_tiny_patch16_224", "adamw", True), ("cnn", "muon", True)],
)
def test_timm_is_imported_beforehand_only_if_params_yaml_names_it(
    model: str, name: str, named: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert not warm._timm_if_named()
    (tmp_path / "params.yaml").write_text((PROJECT / "params.yaml").read_text())
    apply_overrides(tmp_path / "params.yaml", [f"model.network={model}", f"optimizer.name={name}"])
    assert bool(warm._timm_if_named()) == named


def test_the_preloaded_libraries_start_no_thread_use_no_gpu_and_are_all_that_the_stages_import() -> None:
    """Otherwise a fork of the process that imported them would not be safe, or would save no time."""
    code = """
import importlib, sys, threading
from refit.runtime import warm
import torch

def refuse(*_):
    raise AssertionError("a GPU was looked for in a way that bars a fork")

torch._C._cuda_getDeviceCount = torch._C._cuda_init = refuse
for library in (*warm._FIRST, *warm._TIMM, *warm._LATER):
    importlib.import_module(library)
assert threading.active_count() == 1, threading.enumerate()
before = set(sys.modules)
for stage in ("scale_batch", "find_lr", "features", "fit", "test", "predict"):
    importlib.import_module(f"stages.{stage}")
imported = {name.partition(".")[0] for name in set(sys.modules) - before} - sys.stdlib_module_names
print(imported - {"refit", "stages", "filelock"})  # filelock takes milliseconds
"""
    environment = {**os.environ, **QUIET, "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, env=environment, capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stdout + done.stderr


def state(process: str) -> str:
    return Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2][0]


def test_the_stages_of_a_flow_share_one_warm_process_that_ends_with_the_flow(toy: WarmToy) -> None:
    toy.stage("one")
    toy.stage("left", after=("one",))
    toy.stage("right", after=("one",))
    done = toy.flow()
    assert done.returncode == 0, done.stdout
    servers = {pid(toy.about(name)["parent"]) for name in ("one", "left", "right")}
    assert len(servers) == 1
    assert gone(servers.pop())


def test_a_silent_client_does_not_block_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warm, "_PATIENCE", 0.1)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(b"\0refit-test-" + os.urandom(8).hex().encode())
    listener.listen()
    with listener, socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as silent:
        silent.connect(listener.getsockname())
        warm._Server(listener, owner_fd=-1)._accept()  # without the time limit it would wait here for ever
        assert silent.recv(1) == b""  # the server closed the connection


@pytest.mark.parametrize(
    ("name", "is_orphan"), [("/usr/lib/systemd/systemd", True), ("sleep", False), ("dvc", False), (None, True)]
)
def test_a_process_that_adopts_orphans_is_not_mistaken_for_dvc(name: str | None, is_orphan: bool) -> None:
    """None: the parent has ended."""
    parent = subprocess.Popen(["bash", "-c", 'exec -a "$0" sleep 60', name or "gone"])
    try:
        if name is None:
            parent.kill()
            parent.wait()
        else:
            command_line = Path(f"/proc/{parent.pid}/cmdline")
            eventually(lambda: command_line.read_bytes().startswith(name.encode()), "it goes by its name")
        assert _is_orphan(parent.pid) is is_orphan
    finally:
        parent.kill()
        parent.wait()
