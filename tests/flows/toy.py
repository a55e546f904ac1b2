"""A toy DVC repository with this project's flows, and helpers that query processes and a Prefect server."""

import base64
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import yaml

from refit.runtime.environment import QUIET
from tests.processes import alive, eventually

PROJECT = Path(__file__).resolve().parents[2]

_STAGE = """
import ctypes, os, signal, subprocess, sys, time
from pathlib import Path

ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # ends with its parent, like every stage of the project

def wait_for(condition):
    deadline = time.monotonic() + 240
    while not condition():
        if time.monotonic() > deadline:
            sys.exit("waited in vain")
        time.sleep(0.05)

with open("log/{name}.tries", "a") as tries:
    tries.write("x")
Path("log/{name}.began").write_text(str(time.monotonic_ns()))
{does}
Path("out/{name}").write_text("done")
Path("log/{name}.ended").write_text(str(time.monotonic_ns()))
"""

# The toy's own summary: the project's summary reads the outputs of the project's stages.
_SUMMARY = """
def read_facts():
    return [("accuracy", "0.5")]

def read_steps():
    return []

def as_text(facts, steps) -> str:
    return "\\n".join(f"{name} {value}" for name, value in facts)

def as_markdown(facts) -> str:
    return "\\n".join(f"| {name} | {value} |" for name, value in facts)
"""

# The toy's own promotion: the outcome is the content of the file `outcome`; without that file it fails.
_PROMOTE = """
import json, sys
from pathlib import Path

if not Path("outcome").exists():
    sys.exit("error: MLflow is away")
outcome, folder = Path("outcome").read_text(), Path("data/promotion")
folder.mkdir(parents=True, exist_ok=True)
why = f"models:/refit/2 was {outcome}"
(folder / "verdict.json").write_text(json.dumps({"outcome": outcome, "why": why, "model": "0123456789ab"}))
(folder / "promotion.md").write_text(why)
"""

_MADE = ("/.venv", "/pipelines", "/.prefect", "/log", "/data", "/out", "/outcome", "__pycache__", "")


class Toy:
    """A small project in `root`: its stages are scripts, run by the project's own flow, Makefile and settings."""

    def __init__(self, root: Path, prefect_home: Path) -> None:
        """`prefect_home` is copied."""
        self.root = root
        shutil.copytree(prefect_home, root / ".prefect")
        self.env = {**os.environ, **QUIET, "PREFECT_HOME": str(root / ".prefect")}
        for name in ("PREFECT_API_URL", "PREFECT_API_AUTH_STRING"):
            self.env.pop(name, None)
        self._stages: dict[str, dict[str, Any]] = {}
        for folder in ("log", "out"):
            (root / folder).mkdir()
        for name in ("params.yaml", "prefect.yaml", "prefect.toml", "Makefile"):
            shutil.copy(PROJECT / name, root / name)
        shutil.copytree(PROJECT / "refit", root / "refit", ignore=shutil.ignore_patterns("__pycache__"))
        (root / "refit/reports/summary.py").write_text(_SUMMARY)
        (root / "refit/commands/promote.py").write_text(_PROMOTE)
        (root / "pipelines").symlink_to(PROJECT / "pipelines")
        (root / ".venv").symlink_to(sys.prefix)
        (root / ".dvc").mkdir()  # as in a fresh clone, but without git
        (root / ".dvc/config").write_text("[core]\n    analytics = false\n    no_scm = true\n")

    def stage(self, name: str, *, after: tuple[str, ...] = (), does: str = "", always: bool = False) -> None:
        """Add a stage: a script that records each try, its begin and its end, and runs `does` in between."""
        (self.root / f"{name}.py").write_text(_STAGE.format(name=name, does=does))
        deps = [f"{name}.py", *(f"out/{up}" for up in after)]
        stage = {"cmd": f"exec python {name}.py", "deps": deps, "outs": [f"out/{name}"]}
        self._stages[name] = {**stage, "always_changed": True} if always else stage
        (self.root / "dvc.yaml").write_text(yaml.safe_dump({"stages": self._stages}, sort_keys=False))

    def set_params(self, **pipelines: float | str) -> None:
        params = yaml.safe_load((self.root / "params.yaml").read_text())
        params["pipelines"].update(pipelines)
        (self.root / "params.yaml").write_text(yaml.safe_dump(params))

    def note(self, name: str) -> str:
        """What a stage wrote to log/NAME; empty if the file does not exist (yet)."""
        path = self.root / "log" / name
        return path.read_text() if path.exists() else ""

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command of this environment in the toy's folder; stdout also contains its stderr."""
        done = subprocess.run(
            [self._program(command[0]), *command[1:]],
            cwd=self.root,
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert not check or done.returncode == 0, done.stdout
        return done

    def flow(self, name: str = "reproduce") -> subprocess.CompletedProcess[str]:
        return self.run("python", "-m", f"pipelines.{name}", check=False)

    def use_git(self) -> None:
        """Make a git repository whose one commit holds all present files, except those that runs create."""
        (self.root / ".dvc/config").write_text("[core]\n    analytics = false\n")
        (self.root / ".gitignore").write_text("\n".join(_MADE))
        (self.root / ".dvc/.gitignore").write_text("/config.local\n/tmp\n/cache\n")
        self.run("git", "init", "--quiet", "--initial-branch", "main")
        for key, value in {"user.name": "Toy", "user.email": "toy@example.com"}.items():
            self.run("git", "config", key, value)
        self.run("git", "add", "--all")
        self.run("git", "commit", "--quiet", "--message", "toy")

    def make(self, *targets: str) -> str:
        """Run `make TARGETS`; returns what it prints."""
        return self.run(*_make(*targets)).stdout

    @contextmanager
    def making(self, target: str) -> Iterator[subprocess.Popen[bytes]]:
        """`make TARGET` in the background; its output goes to TARGET.log. Terminated on exit, with all its children."""
        with self.starting(*_make(target), log=f"{target}.log") as process:
            yield process

    @contextmanager
    def starting(self, *command: str, log: str = "background.log") -> Iterator[subprocess.Popen[bytes]]:
        """A command in the background, with its output in a file. Terminated on exit, with its whole process group."""
        with (self.root / log).open("w") as output:
            process = subprocess.Popen(
                [self._program(command[0]), *command[1:]],
                cwd=self.root,
                env=self.env,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(15)
            with suppress(ProcessLookupError):  # a worker under a shell that ignores SIGINT ignores SIGTERM
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def _program(self, name: str) -> str:
        path = shutil.which(name, path=f"{Path(sys.prefix) / 'bin'}{os.pathsep}{os.environ['PATH']}")
        assert path, name
        return path


class Server:
    """A client of the Prefect server's API."""

    def __init__(self, url: str, auth: str) -> None:
        self.url, self.auth = url, auth
        token = base64.b64encode(auth.encode()).decode()
        self._http = httpx.Client(base_url=url, headers={"Authorization": f"Basic {token}"}, timeout=30)
        csrf = self.get("/csrf-token?client=tests")
        self._http.headers.update({"Prefect-Csrf-Client": "tests", "Prefect-Csrf-Token": csrf["token"]})

    def get(self, path: str) -> Any:
        return self._http.get(self.url + path).raise_for_status().json()

    def post(self, path: str, body: dict[str, Any]) -> Any:
        return self._http.post(self.url + path, json=body).raise_for_status().json()

    def close(self) -> None:
        self._http.close()


def error_of(done: subprocess.CompletedProcess[str]) -> str:
    """The one line with the command's error; Prefect may print more after it."""
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("error: ")]
    return line


def gone(pids: str, seconds: float = 30) -> bool:
    """Wait until these processes, separated by blanks, have ended; fails if one still runs."""
    assert pids.split()
    eventually(lambda: not any(alive(pid) for pid in pids.split()), f"processes {pids} are gone", seconds)
    return True


def _make(*targets: str) -> tuple[str, ...]:
    # The toy uses this environment, and has no files to build one from.
    return ("make", "--old-file=.venv/ready", *targets)
