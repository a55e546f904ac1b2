"""Prefect's server dies in the middle of a flow."""

import os
import shutil
import signal

from tests.flows.conftest import free_port
from tests.flows.toy import Toy
from tests.processes import PATIENCE, alive, answers, eventually


def test_the_stages_finish_after_the_server_dies_and_the_flow_fails_with_a_one_line_error(toy: Toy) -> None:
    shutil.rmtree(toy.root / ".prefect")  # `make server` creates all of it
    toy.stage("one", does="wait_for(lambda: not Path('hold').exists())")
    toy.stage("two", after=("one",))
    (toy.root / "hold").touch()
    port = free_port()
    url = f"http://127.0.0.1:{port}/api"
    toy.env["PREFECT_SERVER_API_PORT"] = str(port)
    with toy.making("server") as make:
        eventually(lambda: answers(f"{url}/health"), "a server answers")
        toy.env |= {
            "PREFECT_API_URL": url,
            "PREFECT_API_AUTH_STRING": (toy.root / ".prefect/auth").read_text().strip(),
            "PREFECT_CLIENT_MAX_RETRIES": "1",  # the default retries for two minutes
        }
        with toy.starting("python", "-m", "pipelines.reproduce") as flow:
            eventually(lambda: toy.note("one.began"), "the stage runs")
            os.killpg(make.pid, signal.SIGKILL)
            eventually(lambda: not answers(f"{url}/health"), "the server is gone")
            assert alive(flow.pid)
            (toy.root / "hold").unlink()
            assert flow.wait(timeout=PATIENCE) == 1
    assert toy.note("two.ended")
    told = (
        "error: Prefect's API could not be reached (All connection attempts failed); the stages that ended are done: "
        "run it again"
    )
    assert told in (toy.root / "background.log").read_text().splitlines()

    del toy.env["PREFECT_API_URL"], toy.env["PREFECT_API_AUTH_STRING"]
    again = toy.flow()
    assert again.returncode == 0, again.stdout
    assert (toy.note("one.tries"), toy.note("two.tries")) == ("x", "x")
