"""The flow itself: `python -m pipelines.reproduce` in a toy repository."""

import fcntl
import os
import signal

import pytest
import yaml

from tests.flows.conftest import free_port
from tests.flows.toy import Server, Toy, error_of, gone
from tests.processes import PATIENCE, alive, answers, eventually


def _diamond(toy: Toy, **does: str) -> None:
    toy.stage("first", does=does.get("first", ""))
    toy.stage("left", after=("first",), does=does.get("left", ""))
    toy.stage("right", after=("first",), does=does.get("right", ""))
    toy.stage("last", after=("left", "right"), does=does.get("last", ""))


def test_without_a_server_stages_run_in_graph_order_and_in_parallel(toy: Toy) -> None:
    meets = "wait_for(lambda: Path('log/{}.began').exists())"
    _diamond(toy, left=meets.format("right"), right=meets.format("left"))
    done = toy.flow()
    assert done.returncode == 0, done.stdout
    at = {name: int(toy.note(name)) for stage in ("first", "left", "right", "last")
          for name in (f"{stage}.began", f"{stage}.ended")}  # fmt: skip
    assert at["first.ended"] < min(at["left.began"], at["right.began"])
    assert max(at["left.ended"], at["right.ended"]) < at["last.began"]
    lock = yaml.safe_load((toy.root / "dvc.lock").read_text())
    assert set(lock["stages"]) == {"first", "left", "right", "last"}
    assert "accuracy 0.5" in done.stdout


def test_a_failing_stage_fails_the_flow_with_its_own_error_and_later_stages_do_not_start(
    toy_with_server: Toy, server: Server
) -> None:
    toy = toy_with_server
    lasts = "wait_for(lambda: Path('log/left.failed').exists()); time.sleep(1)"
    fails = "Path('log/left.failed').touch(); raise RuntimeError('loss is nan')"
    _diamond(toy, left=fails, right=lasts)
    done = toy.flow()
    assert done.returncode == 1
    message = "stage 'left' failed: RuntimeError: loss is nan (exit code 1)"
    assert error_of(done) == f"error: {message}"
    assert toy.note("right.ended"), "the parallel stage was already running and must finish"
    assert not toy.note("last.began")
    (run,) = server.post("/flow_runs/filter", {"sort": "START_TIME_DESC", "limit": 1})
    assert (run["state"]["type"], run["state"]["message"]) == ("FAILED", message)


def test_a_user_error_is_not_retried_and_any_other_failure_is(toy_with_server: Toy) -> None:
    toy = toy_with_server
    toy.set_params(stage_retries=1)
    toy.stage("flaky", does="Path('log/flaky.tries').read_text() == 'x' and sys.exit(1)")
    toy.stage("wrong", does="print('error: data.source is unknown', file=sys.stderr); sys.exit(2)")
    done = toy.flow()
    assert error_of(done) == "error: stage 'wrong' failed: data.source is unknown (exit code 2)"
    assert toy.note("wrong.tries") == "x"
    assert toy.note("flaky.tries") == "xx"
    assert toy.note("flaky.ended")


def test_the_time_limit_ends_a_stage_and_all_its_children(toy_with_server: Toy) -> None:
    toy = toy_with_server
    toy.set_params(stage_time_limit=0.25)
    notes_pids = "Path('log/endless.pids').write_text(f'{os.getpid()} {child.pid}')"
    toy.stage("endless", does=f"child = subprocess.Popen(['sleep', '600']); {notes_pids}; child.wait()")
    done = toy.flow()
    assert done.returncode == 1
    assert error_of(done) == ("error: stage 'endless' took longer than pipelines.stage_time_limit = 0.25 minutes")
    assert gone(toy.note("endless.pids"))


def test_wrong_params_fail_the_flow_with_a_one_line_error_before_any_stage(toy: Toy) -> None:
    _diamond(toy)
    toy.set_params(stage_time_limits=3)
    done = toy.flow()
    assert done.returncode == 2
    (line,) = done.stdout.splitlines()
    assert line.startswith("error: params.yaml: pipelines.stage_time_limits is not a known key")
    assert not toy.note("first.began")


def test_a_second_flow_in_the_same_workspace_fails_and_names_the_first(toy_with_server: Toy) -> None:
    toy = toy_with_server
    toy.stage("only")
    (toy.root / ".dvc/tmp").mkdir()
    with (toy.root / ".dvc/tmp/refit-flow.lock").open("w") as held:
        held.write(str(os.getpid()))
        held.flush()
        fcntl.flock(held, fcntl.LOCK_EX)
        done = toy.flow()
    assert done.returncode == 1
    assert error_of(done) == (
        f"error: process {os.getpid()} runs another flow in this workspace; wait for it, or end it: kill {os.getpid()}"
    )
    assert not toy.note("only.began")


def test_dvc_files_left_broken_by_a_killed_run_are_repaired_first(toy_with_server: Toy) -> None:
    """test_doctor.py shows that DVC refuses either file."""
    toy = toy_with_server
    toy.stage("only")
    (toy.root / ".dvc/tmp").mkdir()
    for file in (".dvc/tmp/rwlock", "dvc.lock"):
        (toy.root / file).write_text("")
    done = toy.flow()
    assert done.returncode == 0, done.stdout
    assert "removed .dvc/tmp/rwlock: DVC's record of locks was cut short" in done.stdout
    assert "removed dvc.lock: was cut short" in done.stdout
    assert toy.note("only.began")


@pytest.mark.parametrize(("by", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_to_a_flow_ends_its_stage(toy_with_server: Toy, by: signal.Signals, exit_code: int) -> None:
    toy = toy_with_server
    toy.stage("endless", does="Path('log/endless.pid').write_text(str(os.getpid())); time.sleep(600)")
    with toy.starting("python", "-m", "pipelines.reproduce") as flow:
        pid = eventually(lambda: toy.note("endless.pid"), "the stage runs")
        flow.send_signal(by)
        assert flow.wait(60) == exit_code
    assert gone(pid)


def test_ctrl_c_in_a_terminal_ends_a_flow_without_a_server_at_once(toy: Toy) -> None:
    """A terminal sends the signal to the whole process group, therefore also to Prefect's temporary server."""
    toy.stage("endless", does="Path('log/endless.pid').write_text(str(os.getpid())); time.sleep(600)")
    with toy.starting("python", "-m", "pipelines.reproduce") as flow:
        pid = eventually(lambda: toy.note("endless.pid"), "the stage runs")
        os.killpg(flow.pid, signal.SIGINT)
        assert flow.wait(60) == 130
    assert gone(pid)
    assert "connection attempts failed" not in (toy.root / "background.log").read_text()


def test_if_a_flow_is_killed_its_stage_ends_and_the_workspace_is_unlocked(toy_with_server: Toy) -> None:
    toy = toy_with_server
    toy.stage(
        "only", does="Path('log/only.pid').write_text(str(os.getpid())); Path('hold').exists() and time.sleep(600)"
    )
    (toy.root / "hold").touch()
    with toy.starting("python", "-m", "pipelines.reproduce") as flow:
        pid = eventually(lambda: toy.note("only.pid"), "the stage runs")
        flow.kill()
        flow.wait()
        assert gone(pid)
    (toy.root / "hold").unlink()
    done = toy.flow()
    assert done.returncode == 0, done.stdout


def test_the_stages_finish_after_the_server_dies_and_the_flow_fails_with_a_one_line_error(
    toy: Toy, server: Server
) -> None:
    """The next flow reports to another server."""
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

    toy.env |= {"PREFECT_API_URL": server.url, "PREFECT_API_AUTH_STRING": server.auth}
    again = toy.flow()
    assert again.returncode == 0, again.stdout
    assert (toy.note("one.tries"), toy.note("two.tries")) == ("x", "x")
