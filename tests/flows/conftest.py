"""A Prefect server, worker and deployment for the tests of a file, created by the Makefile's own targets."""

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.flows.toy import Server, Toy
from tests.processes import answers, eventually


@pytest.fixture
def toy(tmp_path: Path, prefect_home: Path) -> Toy:
    return Toy(tmp_path, prefect_home)


@pytest.fixture(scope="module")
def deployed_toy(tmp_path_factory: pytest.TempPathFactory, prefect_home: Path) -> Toy:
    """The folder of the server, its worker and the scheduled runs. `slow` runs as long as the file `hold` exists."""
    toy = Toy(tmp_path_factory.mktemp("deployed"), prefect_home)
    toy.stage("first", always=True)
    toy.stage(
        "slow",
        after=("first",),
        always=True,
        does="""
child = subprocess.Popen(["sleep", "600"])
Path("log/slow.pids").write_text(f"{os.getpid()} {child.pid}")
while Path("hold").exists():
    time.sleep(0.05)
child.kill()
child.wait()
""",
    )
    (toy.root / "outcome").write_text("promoted")
    toy.env |= {
        "PREFECT_SERVER_API_PORT": str(free_port()),
        "PREFECT_WORKER_QUERY_SECONDS": "1",  # the default of 10 s is too long for tests
    }
    return toy


@pytest.fixture(scope="module")  # idle, it would still take time from the tests of other files
def server(deployed_toy: Toy) -> Iterator[Server]:
    """`make server`, on a free port."""
    url = f"http://127.0.0.1:{deployed_toy.env['PREFECT_SERVER_API_PORT']}/api"
    with deployed_toy.making("server"):
        eventually(lambda: answers(f"{url}/health"), f"a server answers at {url}")
        client = Server(url, (deployed_toy.root / ".prefect/auth").read_text().strip())
        yield client
        client.close()


@pytest.fixture(scope="module")
def deployment(deployed_toy: Toy, server: Server) -> Iterator[dict[str, Any]]:
    """`make worker` and `make deploy`; returns the deployment as the server describes it."""
    with deployed_toy.making("worker"):
        deployed_toy.make("deploy")
        yield server.get("/deployments/name/retrain/nightly")


@pytest.fixture
def toy_with_server(toy: Toy, server: Server) -> Toy:
    """A toy whose flows report to the server."""
    toy.env |= {"PREFECT_API_URL": server.url, "PREFECT_API_AUTH_STRING": server.auth}
    return toy


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
