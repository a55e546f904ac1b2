"""One warm process for the stages of a run: torch and Lightning are imported once, not once per stage.

The first stage that a `dvc repro` (or a flow) starts leaves a server behind, which imports the libraries of the later
stages while `check` and `prepare` run. The process of a later stage asks the server to fork a child, which takes over
its standard streams, environment and module. The process itself then only passes signals on, and ends as the child
ends. The server imports no project code, so each stage runs what is on disk. It ends with the process that runs the
stages.

Linux only. Elsewhere, without DVC, or with REFIT_WARM=0 in the environment, each stage is an ordinary process.
"""

import gc
import hashlib
import importlib
import json
import os
import re
import runpy
import selectors
import signal
import socket
import struct
import subprocess
import sys
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from select import select
from typing import NoReturn

from refit.runtime.command import command_parser, run_command
from refit.runtime.environment import QUIET
from refit.runtime.parent import PARENT_ENDED, die_with_parent, survive_parent
from refit.runtime.program import run_and_exit

OWNER = "REFIT_WARM_OWNER"  # the process id of a flow, which starts one `dvc` per stage
SWITCH = "REFIT_WARM"

_COLD = ("check", "prepare")  # these need no torch, and end before it is imported
_FIRST = ("torch", "pytorch_lightning", "torchmetrics.classification", "torchvision", "safetensors.torch")
_LATER = (
    "mlflow",
    "mlflow.pytorch",
    "mlflow.store.tracking.sqlalchemy_store",
    "sklearn.metrics",
    "sklearn.neighbors",
    "sklearn.decomposition",
    "matplotlib.figure",
    "matplotlib.style",
    "pyarrow.parquet",
    "jinja2",
)
_TIMM = ("timm", "timm.optim")
_NAMES_TIMM = re.compile(r"^ +(network: timm:|name: muon\b)", re.MULTILINE)
_PROJECT = ("refit", "stages")
_NUMBER = struct.Struct("i")
_PATIENCE = 5.0  # seconds that a client may take to send its request


def run_warm() -> None:
    """Hand this stage to the warm server and never return; or return, if this process has to run the stage itself."""
    stage = os.environ.get("DVC_STAGE")
    if stage is None or os.environ.get(SWITCH) == "0" or sys.platform != "linux":
        return
    owner = int(os.environ.get(OWNER) or os.getppid())
    try:
        server = _reach_server(owner, wanted=stage not in _COLD)
    except OSError as error:
        print(f"warning: no warm process for the stages: {error}; {SWITCH}=0 turns this off", file=sys.stderr)
        return
    if server is not None:
        _hand_over(server, sys.orig_argv[sys.orig_argv.index("-m") + 1], stage)


def _reach_server(owner: int, wanted: bool) -> socket.socket | None:
    """A connection to the server of `owner`'s stages, which is started if there is none; None if it is not `wanted`."""
    address = _address(owner)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with listener, suppress(OSError):  # the address is in use: another stage started the server
        listener.bind(address)
        listener.listen()
        _start_server(listener, owner)
    if not wanted:
        return None
    server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    server.connect(address)
    return server if _is_ours(server) else None


def _address(owner: int) -> bytes:
    """An abstract socket, which leaves no file. Stages with different environments use different servers."""
    inherited = {
        "owner": [owner, Path(f"/proc/{owner}/stat").read_text().rpartition(")")[2].split()[19]],  # its start time
        "processes": str(Path("/proc/self/ns/pid").readlink()),
        "folder": str(Path.cwd()),
        "python": [sys.executable, *sys.orig_argv[1 : sys.orig_argv.index("-m")]],
        "environment": sorted((name, value) for name, value in os.environ.items() if name != "DVC_STAGE"),
    }
    return b"\0refit-" + hashlib.sha256(json.dumps(inherited).encode()).hexdigest().encode()


def _start_server(listener: socket.socket, owner: int) -> None:
    owner_fd = os.pidfd_open(owner)
    subprocess.Popen(
        [sys.executable, "-m", "refit.runtime.warm", str(listener.fileno()), str(owner_fd)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=(listener.fileno(), owner_fd),
        start_new_session=True,  # a flow ends the process group of each stage; the server has to outlive it
    )
    os.close(owner_fd)


def _is_ours(connection: socket.socket) -> bool:
    """Whether the other end belongs to the same user: any user can reach an abstract address."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _pid, user, _group = struct.unpack("3i", credentials)
    return bool(user == os.getuid())


def _hand_over(server: socket.socket, module: str, stage: str) -> None:
    """Let a child of the server run the stage, and end as it ends. Returns if the server could not start one."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        socket.send_fds(server, [json.dumps([module, stage]).encode()], [0, 1, 2])
        began = server.recv(_NUMBER.size)
    except OSError:
        return
    if not began:
        return
    (child,) = _NUMBER.unpack(began)
    signal.signal(signal.SIGINT, lambda *_: _kill_group(child, signal.SIGINT))  # as a terminal's Ctrl-C
    signal.signal(signal.SIGTERM, lambda *_: _kill(child, signal.SIGTERM))
    signal.signal(signal.SIGTSTP, lambda *_: _stop_with(child))
    # If `dvc` is killed, this process stays: else the server would see it end, and kill a fit that can save its state.
    signal.signal(PARENT_ENDED, lambda *_: _kill(child, PARENT_ENDED))
    survive_parent(True)
    parent = os.getppid()
    ended = server.recv(_NUMBER.size)
    if not ended:
        if os.getppid() == parent:  # else the server ended with the parent
            print("error: the warm process of the stages was killed", file=sys.stderr, flush=True)
        os._exit(1)
    (code,) = _NUMBER.unpack(ended)
    if code < 0:  # a signal ended the child: the same signal ends this process
        with suppress(OSError):  # SIGKILL has no handler
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


def _kill(process: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(process, number)


def _kill_group(leader: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(leader, number)


def _stop_with(child: int) -> None:
    """Ctrl-Z stops the child and this process; when this process continues, so does the child."""
    _kill_group(child, signal.SIGSTOP)
    os.kill(os.getpid(), signal.SIGSTOP)
    _kill_group(child, signal.SIGCONT)


class _Server:
    """Forks a child for each stage that asks. It has a single thread, so that it can fork safely."""

    def __init__(self, listener: socket.socket, owner_fd: int) -> None:
        self.listener = listener
        self.owner_fd = owner_fd
        self.events = selectors.DefaultSelector()
        self.clients: dict[int, socket.socket] = {}
        """Keys: the process ids of the children."""

    def serve(self) -> NoReturn:
        os.environ.update(QUIET | os.environ)
        os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # the other way to find GPUs rules out a fork
        self._import(_FIRST)
        later = deque([*_timm_if_named(), *_LATER])
        self.events.register(self.listener, selectors.EVENT_READ, self._accept)
        self.events.register(self.owner_fd, selectors.EVENT_READ, self._owner_ended)
        while True:
            for key, _ in self.events.select(timeout=0 if later else None):
                key.data()
            if later:  # while the first stage runs
                self._import([later.popleft()])

    def _import(self, modules: Iterable[str]) -> None:
        # This takes seconds, in which the owner may end.
        signal.signal(signal.SIGALRM, lambda *_: self._owner_ended() if select([self.owner_fd], [], [], 0)[0] else None)
        signal.setitimer(signal.ITIMER_REAL, 0.1, 0.1)
        gc.disable()  # there is no garbage yet, and collecting takes a fifth of the time
        for module in modules:
            importlib.import_module(module)
        gc.freeze()  # a child's collections then do not write to these pages, which stay shared
        gc.enable()
        signal.setitimer(signal.ITIMER_REAL, 0)

    def _owner_ended(self) -> NoReturn:
        os._exit(0)  # its children are killed, or sent PARENT_ENDED

    def _accept(self) -> None:
        client, _ = self.listener.accept()
        if not _is_ours(client):
            client.close()
            return
        client.settimeout(_PATIENCE)  # a silent client must not block the others
        try:
            request, streams, *_ = socket.recv_fds(client, 4096, 3)
        except OSError:
            request, streams = b"", []
        client.settimeout(None)
        if not (request and len(streams) == 3):
            for stream in streams:
                os.close(stream)
            client.close()
            return
        module, stage = json.loads(request)
        server = os.getpid()
        child = os.fork()
        if child == 0:
            self._leave_to_child(client)
            _run_stage(module, stage, streams, server)
        with suppress(ProcessLookupError):  # it has already ended
            os.setpgid(child, child)
        for stream in streams:
            os.close(stream)
        self.clients[child] = client
        child_fd = os.pidfd_open(child)
        self.events.register(client, selectors.EVENT_READ, lambda: self._client_ended(child))
        self.events.register(child_fd, selectors.EVENT_READ, lambda: self._child_ended(child, child_fd))
        with suppress(OSError):  # the client has ended, which is the next event
            client.send(_NUMBER.pack(child))

    def _leave_to_child(self, client: socket.socket) -> None:
        self.events.close()
        self.listener.close()
        for other in (client, *self.clients.values()):
            other.close()

    def _client_ended(self, child: int) -> None:
        if child in self.clients:  # else the child has ended too
            self.events.unregister(self.clients[child])
            _kill_group(child, signal.SIGKILL)

    def _child_ended(self, child: int, child_fd: int) -> None:
        _kill_group(child, signal.SIGKILL)  # what it left running
        _, status = os.waitpid(child, 0)
        self.events.unregister(child_fd)
        os.close(child_fd)
        client = self.clients.pop(child)
        with suppress(KeyError):
            self.events.unregister(client)
        with client, suppress(OSError):
            client.send(_NUMBER.pack(os.waitstatus_to_exitcode(status)))


def _timm_if_named() -> Iterable[str]:
    """timm, which takes each stage a second to import, if params.yaml names one of its networks or its Muon."""
    with suppress(OSError, UnicodeDecodeError):
        return _TIMM if _NAMES_TIMM.search(Path("params.yaml").read_text(encoding="utf-8")) else ()
    return ()


def _run_stage(module: str, stage: str, streams: list[int], server: int) -> NoReturn:
    """Do in a forked child what `python -m MODULE` does."""
    os.setpgid(0, 0)  # the server does so too; either may be first
    die_with_parent()
    if os.getppid() != server:
        os._exit(1)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.environ["DVC_STAGE"] = stage
    sys.argv = [module]
    sys.stdout.reconfigure(line_buffering=os.isatty(1))  # type: ignore[union-attr]
    for name in [name for name in sys.modules if name.partition(".")[0] in _PROJECT]:
        del sys.modules[name]
    run_and_exit(lambda: runpy.run_module(module, run_name="__main__", alter_sys=True))


if __name__ == "__main__":
    parser = command_parser()
    parser.add_argument("listener", type=int, help="the file descriptor of the listening socket")
    parser.add_argument("owner", type=int, help="the file descriptor of the process that runs the stages")
    run_command(lambda listener, owner: _Server(socket.socket(fileno=listener), owner).serve(), parser)
