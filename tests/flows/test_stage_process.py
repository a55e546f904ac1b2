"""The process launcher, with real processes and without Prefect."""

import asyncio
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from pipelines import stage_process
from pipelines.stage_process import CommandFailedError, run_process, run_stage
from tests.flows.toy import PROJECT, Toy, gone
from tests.processes import PATIENCE, eventually


def _run(*command: str) -> tuple[int, list[str]]:
    lines: list[str] = []
    return asyncio.run(run_process(command, lines.append)), lines


def _python(code: str) -> tuple[int, list[str]]:
    return _run("python", "-c", textwrap.dedent(code))


def _cancelled(code: str, once: Path) -> list[str]:
    """Run Python code, cancel it as soon as the file `once` exists, and return its lines."""
    lines: list[str] = []

    async def main() -> None:
        running = asyncio.create_task(run_process(["python", "-c", textwrap.dedent(code)], lines.append))
        while not once.exists():
            await asyncio.sleep(0.05)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    asyncio.run(main())
    return lines


def test_stdout_and_stderr_arrive_line_by_line_in_the_order_written() -> None:
    code, lines = _python("""
        import sys
        for number in range(3):
            print("out", number)
            print("err", number, file=sys.stderr)
        sys.exit(7)
    """)
    assert code == 7
    assert lines == ["out 0", "err 0", "out 1", "err 1", "out 2", "err 2"]


def test_a_line_arrives_while_the_process_still_runs(tmp_path: Path) -> None:
    heard = tmp_path / "heard"

    def hear(line: str) -> None:
        heard.write_text(line)

    waits = f"import pathlib, time\nprint('now')\nwhile not pathlib.Path({str(heard)!r}).exists(): time.sleep(0.05)"
    assert asyncio.run(asyncio.wait_for(run_process(["python", "-c", waits], hear), PATIENCE)) == 0


def test_a_line_overwritten_by_a_progress_bar_arrives_once_in_its_last_form() -> None:
    assert _python(r"print('10 %\r50 %\r100 %\r\nwindows line\r')")[1] == ["100 %", "windows line"]


def test_an_endless_line_and_undecodable_bytes_are_passed_on() -> None:
    _, lines = _python(r"import sys; sys.stdout.buffer.write(b'x' * 1_000_000 + b'\xff\xc3\xa9')")
    assert "".join(lines) == "x" * 1_000_000 + "\ufffdé"


def test_this_python_s_environment_is_first_on_the_path_and_telemetry_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.delenv("DO_NOT_TRACK", raising=False)
    _, lines = _python("import os, shutil, sys; print(sys.prefix, shutil.which('dvc'), os.environ['DO_NOT_TRACK'])")
    assert lines == [f"{sys.prefix} {Path(sys.executable).parent / 'dvc'} 1"]


def test_ctrl_c_reaches_a_command_whose_parent_ignores_it() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        _, lines = _python("import signal; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)")
    finally:
        signal.signal(signal.SIGINT, before)
    assert lines == ["True"]


def test_a_cancelled_command_can_save_and_print_before_it_ends(tmp_path: Path) -> None:
    ready, saved = tmp_path / "ready", tmp_path / "saved"
    lines = _cancelled(
        f"""
        import pathlib, time
        try:
            pathlib.Path({str(ready)!r}).touch()
            time.sleep(600)
        except KeyboardInterrupt:
            print("saving")
            time.sleep(0.5)
            pathlib.Path({str(saved)!r}).touch()
            print("saved")
        """,
        once=ready,
    )
    assert saved.exists()
    assert lines == ["saving", "saved"]


def test_a_cancelled_command_that_ignores_ctrl_c_is_killed_with_its_children(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage_process, "GRACE", 0.5)
    pids = tmp_path / "pids"
    _cancelled(
        f"""
        import os, pathlib, signal, subprocess, time
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        child = subprocess.Popen(["sleep", "600"])
        part = pathlib.Path({str(tmp_path / "part")!r})
        part.write_text(f"{{os.getpid()}} {{child.pid}}")
        part.rename({str(pids)!r})
        time.sleep(600)
        """,
        once=pids,
    )
    assert gone(pids.read_text())


def test_a_child_left_running_does_not_delay_the_end_and_is_killed() -> None:
    code, lines = _run("sh", "-c", "sleep 600 & echo $!")
    assert code == 0
    assert gone(lines[0])


def test_if_the_launcher_is_killed_the_command_ends_too(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    code = f"""
        import asyncio
        from pipelines.stage_process import run_process
        asyncio.run(run_process(["sh", "-c", "echo $$ > {note}.part; mv {note}.part {note}; exec sleep 600"], print))
    """
    launcher = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], cwd=PROJECT)
    try:
        pid = eventually(lambda: note.exists() and note.read_text().strip(), "the command runs")
    finally:
        launcher.send_signal(signal.SIGKILL)
        launcher.wait()
    assert gone(pid)


def test_an_event_loop_that_cancels_all_tasks_leaves_no_process_running(tmp_path: Path) -> None:
    """What an unhandled SIGTERM does to a flow: an exception leaves the event loop, then every task is cancelled."""
    note = tmp_path / "pid"
    code = f"""
        import asyncio, signal
        from pipelines.stage_process import run_process

        class Terminated(BaseException):
            pass

        def terminate(*_):
            raise Terminated

        async def main():
            command = ["sh", "-c", "echo $$ > {note}.part; mv {note}.part {note}; sleep 600; sleep 600"]
            await asyncio.gather(run_process(command, print), asyncio.sleep(600))

        signal.signal(signal.SIGTERM, terminate)
        asyncio.run(main())
    """
    launcher = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], cwd=PROJECT, stderr=subprocess.DEVNULL)
    pid = eventually(lambda: note.exists() and note.read_text().strip(), "the command runs")
    launcher.send_signal(signal.SIGTERM)
    assert launcher.wait(8) != 0
    assert gone(pid)


def test_a_stage_s_output_omits_dvc_s_advice(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    toy.stage("only", does="print('To enable it, run: x')")
    toy.use_git()
    assert "git add dvc.lock" in toy.run("dvc", "repro").stdout, "otherwise the test proves nothing"
    toy.stage("only", does="print('To enable it, run: x')  # edited")
    monkeypatch.chdir(toy.root)
    lines: list[str] = []
    asyncio.run(run_stage("only", lines.append))
    assert lines == [
        "Running stage 'only':", "> exec python only.py", "To enable it, run: x", "Updating lock file 'dvc.lock'",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("does", "exit_code", "message"),
    [
        (
            "print('error: data.root = gone: expected a folder', file=sys.stderr); print('bye'); sys.exit(2)",
            2,
            "stage 'only' failed: data.root = gone: expected a folder (exit code 2)",
        ),
        ("raise RuntimeError('out of memory')", 1, "stage 'only' failed: RuntimeError: out of memory (exit code 1)"),
        ("print('goodbye'); sys.exit(3)", 3, "stage 'only' failed: goodbye (exit code 3)"),
        ("os.kill(os.getpid(), signal.SIGKILL)", -9, "stage 'only' failed: it printed nothing (exit code -9)"),
        (
            "os._exit(0)",
            255,
            "stage 'only' failed: failed to reproduce 'only': output 'out/only' does not exist (exit code 255)",
        ),
    ],
    ids=["user error", "exception", "exit code", "signal", "no output"],
)
def test_a_failed_stage_is_reported_with_its_own_error_and_exit_code(
    toy: Toy, monkeypatch: pytest.MonkeyPatch, does: str, exit_code: int, message: str
) -> None:
    toy.stage("only", does=does)
    monkeypatch.chdir(toy.root)
    with pytest.raises(CommandFailedError) as failed:
        asyncio.run(run_stage("only", print))
    assert str(failed.value) == message
    assert failed.value.exit_code == exit_code
