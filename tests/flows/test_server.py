"""From nothing to a scheduled run: `make server`, `make worker`, `make deploy`, with a real server and worker."""

from datetime import datetime
from typing import Any

import httpx

from tests.flows.toy import Server, Toy, gone
from tests.processes import alive, eventually

_FINAL = {"COMPLETED", "FAILED", "CANCELLED", "CRASHED"}


def _run(toy: Toy, server: Server, *when: str) -> str:
    """Start a run of the deployment; returns the flow run's id."""
    toy.env |= {"PREFECT_API_URL": server.url, "PREFECT_API_AUTH_STRING": server.auth}
    done = toy.run("prefect", "deployment", "run", "retrain/nightly", *when)
    return next(line.split()[-1] for line in done.stdout.splitlines() if "UUID" in line)


def _state(server: Server, run: str) -> dict[str, Any]:
    state: dict[str, Any] = server.get(f"/flow_runs/{run}")["state"]
    return state


def _final(server: Server, run: str) -> str:
    """The final state of the run."""
    eventually(lambda: _state(server, run)["type"] in _FINAL, f"flow run {run} ends")
    return str(_state(server, run)["name"])


def _of(run: str) -> dict[str, Any]:
    return {"flow_runs": {"id": {"any_": [run]}}}


def test_a_scheduled_run_completes_and_shows_its_tasks_logs_and_summary(
    deployed_toy: Toy, server: Server, deployment: dict[str, Any]
) -> None:
    run = _run(deployed_toy, server, "--start-in", "3 seconds")
    assert _final(server, run) == "Promoted"

    tasks = eventually(lambda: _completed(server, run, 3), "all tasks are shown as completed")
    assert [task["name"] for task in tasks] == ["first", "promote", "slow"]
    shown = {artifact["key"]: artifact["data"].strip() for artifact in server.post("/artifacts/filter", _of(run))}
    assert shown["refit-summary"] == "| accuracy | 0.5 |"
    assert "promoted" in shown["refit-promotion"]
    logs = eventually(lambda: _logs(server, run, "Running stage 'slow':"), "the stage's lines are in the logs")
    assert "> exec python slow.py" in logs
    assert not list((deployed_toy.root / ".prefect").glob("storage/*")), "results must not be stored"


def _completed(server: Server, run: str, count: int) -> list[dict[str, Any]]:
    tasks = server.post("/task_runs/filter", {**_of(run), "sort": "NAME_ASC"})
    done = [task for task in tasks if task["state"]["type"] == "COMPLETED"]
    return sorted(done, key=lambda task: str(task["name"])) if len(done) == count else []


def _logs(server: Server, run: str, expected: str) -> list[str]:
    lines = [log["message"] for log in server.post("/logs/filter", {"logs": {"flow_run_id": {"any_": [run]}}})]
    return lines if expected in lines else []


def test_the_command_printed_by_make_deploy_starts_a_run(
    deployed_toy: Toy, server: Server, deployment: dict[str, Any]
) -> None:
    for name in ("PREFECT_API_URL", "PREFECT_API_AUTH_STRING"):  # another test may have set them
        deployed_toy.env.pop(name, None)
    make, *command = deployed_toy.make("deploy").rpartition("to start retrain/nightly now: ")[2].split()
    assert make == "make"
    said = deployed_toy.make(*command)
    run = next(line.split()[-1] for line in said.splitlines() if "UUID" in line)
    assert server.get(f"/flow_runs/{run}")["deployment_id"] == deployment["id"]
    assert _final(server, run) in ("Promoted", "Completed")


def test_the_schedule_in_prefect_yaml_creates_nightly_runs(server: Server, deployment: dict[str, Any]) -> None:
    (schedule,) = deployment["schedules"]
    assert schedule["active"]
    assert schedule["schedule"]["timezone"] == "UTC"
    body = {
        "deployments": {"id": {"any_": [deployment["id"]]}},
        "flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}},
    }
    runs = eventually(lambda: server.post("/flow_runs/filter", body), "runs are scheduled")
    starts = {datetime.fromisoformat(run["expected_start_time"]).strftime("%H:%M") for run in runs}
    assert starts == {"03:00"}


def test_cancelling_a_run_ends_its_stage_and_other_runs_wait_until_then(
    deployed_toy: Toy, server: Server, deployment: dict[str, Any]
) -> None:
    toy = deployed_toy
    hold, pids = toy.root / "hold", toy.root / "log/slow.pids"
    hold.touch()
    pids.unlink(missing_ok=True)
    run = _run(toy, server)
    eventually(lambda: len(toy.note("slow.pids").split()) == 2, "the stage is in the middle of its work")
    tries = toy.note("first.tries")

    second = _run(toy, server)
    waiting = lambda: _state(server, second)["name"] == "AwaitingConcurrencySlot"  # noqa: E731
    eventually(waiting, "the second run waits for the first")
    assert toy.note("first.tries") == tries
    toy.run("prefect", "flow-run", "delete", second)

    processes = toy.note("slow.pids")
    assert all(alive(pid) for pid in processes.split())
    toy.run("prefect", "flow-run", "cancel", run)
    assert gone(processes)
    assert _final(server, run) == "Cancelled"
    hold.unlink()


def test_the_server_rejects_requests_without_the_password_and_from_other_web_pages(
    deployed_toy: Toy, server: Server
) -> None:
    page = httpx.get(f"{server.url}/health", headers={"Origin": "http://evil.example"})
    assert "access-control-allow-origin" not in page.headers
    basic = httpx.BasicAuth(*server.auth.split(":"))
    assert httpx.post(f"{server.url}/flows/count", auth=basic).status_code == 403, "no CSRF token"
    assert (deployed_toy.root / ".prefect/auth").stat().st_mode & 0o077 == 0
    assert httpx.get(f"{server.url}/admin/version", auth=basic).status_code == 200
    assert httpx.get(f"{server.url}/admin/version", auth=httpx.BasicAuth("refit", "wrong")).status_code == 401
