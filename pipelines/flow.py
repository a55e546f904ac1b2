"""What the flows share: one at a time in a folder, DVC's stages and other commands as tasks, and how a flow is started.

What runs a command is a plain function in stage_process.py; here it gets its time limit, retries and logs.
"""

import asyncio
import fcntl
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from pipelines.dvc_graph import Graph, read_graph, read_sources
from pipelines.stage_process import USER_ERROR, CommandFailedError, run_command, run_stage
from pipelines.tools.doctor import mend_records
from refit.params import PipelinesParams, load_params
from refit.reports.summary import as_markdown, as_text, read_facts
from refit.runtime.environment import QUIET
from refit.runtime.errors import UserError, print_error

os.environ.update(QUIET | os.environ)  # here, since Prefect looks while it is imported

import httpx
from prefect import Task, get_run_logger, task
from prefect.artifacts import acreate_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State, TaskRun
from prefect.exceptions import TerminationSignal
from prefect.settings import PREFECT_API_URL, PREFECT_SERVER_EPHEMERAL_ENABLED, temporary_settings
from prefect.states import Failed

SUMMARY_KEY = "refit-summary"
LOCK = Path(".dvc/tmp/refit-flow.lock")


class TaskFailedError(Exception):
    """A command of the flow failed: its message is the command's own error."""


@contextmanager
def alone_here() -> Iterator[Graph]:
    """The graph of dvc.yaml, in a workspace where no other flow is at work; what a killed run left broken of DVC's own
    files is mended first.

    Raises UserError where another one is at work, or there is no graph; a killed flow holds no lock.
    """
    for line in mend_records(Path.cwd()):
        get_run_logger().info(line)
    graph = read_graph()
    with LOCK.open("a+", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise UserError(
                f"another flow, process {lock.read()}, is at work in this workspace; wait for it or end it"
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield graph


async def bring_up_to_date(graph: Graph, limits: PipelinesParams) -> None:
    """Run each stage as soon as its upstream stages are done; the summary ends the log, and is an artifact.

    Raises TaskFailedError with the own error of each stage that failed; what depends on it does not start.
    """
    for source in read_sources():
        if source.edited and not source.imported:  # what `dvc add` knows, edited: `dvc repro` keeps it anew as well
            await run_step(limits, f"keep {source.path}", "dvc", "--wait-for-lock", "commit", "--force", source.file)
    if failures := await _run_stages(graph, limits):
        raise TaskFailedError("; ".join(failures))
    facts = await asyncio.to_thread(read_facts)  # it may wait for MLflow
    get_run_logger().info(as_text(facts))
    await acreate_markdown_artifact(as_markdown(facts), key=SUMMARY_KEY)


async def _run_stages(graph: Graph, limits: PipelinesParams) -> list[str]:
    async def run(stage: str) -> State[None] | None:
        upstream = [await running[name] for name in graph[stage]]
        if not all(state is not None and state.is_completed() for state in upstream):
            return None
        return await state_of(_within(limits, stage)(stage, wait_for=upstream, return_state=True))

    running = {stage: asyncio.create_task(run(stage)) for stage in graph}
    try:
        await asyncio.gather(*running.values())
    finally:  # nothing is left running where one of them was broken off
        for one in running.values():
            one.cancel()
        await asyncio.gather(*running.values(), return_exceptions=True)

    states = {stage: one.result() for stage, one in running.items()}
    faults = [_fault(f"stage {stage!r}", state, limits) for stage, state in states.items() if state is not None]
    return [fault for fault in faults if fault]


def state_of(run: object) -> Coroutine[Any, Any, State[None]]:
    """Prefect's type hints take the state of an async flow or task for awaited already; it is not."""
    return cast("Coroutine[Any, Any, State[None]]", run)


def _worth_another_try(_task: Task[..., object], _run: TaskRun, state: State[object]) -> bool:
    return state.name != "UserError"


async def run_step(limits: PipelinesParams, name: str, *command: str) -> None:
    """Run a command that is no stage, within a stage's limits. Raises TaskFailedError."""
    state = await state_of(_within(limits, name)(name, command, return_state=True))
    if fault := _fault(name, state, limits):
        raise TaskFailedError(fault)


def _within(limits: PipelinesParams, name: str) -> Callable[..., object]:
    return _task.with_options(
        name=name, task_run_name=name, timeout_seconds=limits.stage_time_limit * 60, retries=limits.stage_retries
    )


def _fault(what: str, state: State[None], limits: PipelinesParams) -> str | None:
    """Why it did not complete; None where it did."""
    if state.name == "TimedOut":
        return f"{what} took longer than pipelines.stage_time_limit = {limits.stage_time_limit:g} minutes"
    return None if state.is_completed() else state.message or f"{what} ended as {state.name}"


# Not .submit()ted but awaited: Prefect's task runner lets time limits fire late and cancellation wait for the stage.
@task(cache_policy=NO_CACHE, persist_result=False, retry_condition_fn=_worth_another_try)
async def _task(name: str, command: Sequence[str] = ()) -> State[None] | None:
    """Run the command, or the stage of that name where there is none."""
    log = get_run_logger().info
    try:
        await (run_command(name, command, log) if command else run_stage(name, log))
    except CommandFailedError as error:
        return Failed(name="UserError" if error.exit_code == USER_ERROR else "Failed", message=str(error))
    return None


@contextmanager
def _some_server() -> Iterator[None]:
    """The server that is set; or a temporary one, as Prefect's own, but one that Ctrl-C in a terminal does not reach:
    a flow that cannot tell its server of its end tries for minutes."""
    if PREFECT_API_URL.value():
        yield
        return
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # which the server's process inherits
    try:
        with temporary_settings({PREFECT_SERVER_EPHEMERAL_ENABLED: True}):
            url = get_client(sync_client=True).api_url  # it starts the server
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    with temporary_settings({PREFECT_API_URL: str(url).rstrip("/")}):
        yield


def run_flow(flow: Callable[..., object]) -> int:
    """Run a flow as this process; returns its exit code."""
    try:
        load_params()
    except UserError as error:  # told before Prefect starts anything
        print_error(error)
        return USER_ERROR
    try:
        with _some_server():
            state = asyncio.run(state_of(flow(return_state=True)))
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except TerminationSignal:
        return 128 + signal.SIGTERM
    except httpx.TransportError as error:  # after Prefect's own tries, of some minutes
        print(f"error: Prefect's API went away ({error}); the stages that ended are done: run it again",
              file=sys.stderr)  # fmt: skip
        return 1
    if state.is_completed():
        return 0
    print(f"error: {state.message}", file=sys.stderr)
    return 1
