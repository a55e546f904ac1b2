"""What the flows share: one flow at a time in a folder, DVC's stages and other commands as tasks, and starting a flow.

stage_process.py runs a command; here it gets its time limit, retries and logs.
"""

import asyncio
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
from refit.reports.summary import as_markdown, as_text, read_facts, read_steps
from refit.runtime.environment import QUIET
from refit.runtime.errors import UserError, print_error
from refit.runtime.locks import only_process

os.environ.update(QUIET | os.environ)  # before Prefect is imported, which reads them then

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
    """The graph of dvc.yaml, while no other flow runs in this workspace. DVC's own files that a killed run left broken
    are repaired first.

    Raises UserError if another flow runs here, or there is no graph. A killed flow holds no lock.
    """
    for line in mend_records(Path.cwd()):
        get_run_logger().info(line)
    graph = read_graph()
    with only_process(LOCK, "runs another flow in this workspace"):
        yield graph


async def bring_up_to_date(graph: Graph, limits: PipelinesParams) -> None:
    """Run each stage as soon as its upstream stages are done; the summary is logged at the end, and is an artifact.

    Raises TaskFailedError with the error of each stage that failed; the stages that depend on it do not start.
    """
    for source in read_sources():
        if source.edited and not source.imported:  # tracked by `dvc add` and edited: `dvc repro` commits it as well
            await run_step(limits, f"commit {source.path}", "dvc", "--wait-for-lock", "commit", "--force", source.file)
    if failures := await _run_stages(graph, limits):
        raise TaskFailedError("; ".join(failures))
    facts = await asyncio.to_thread(read_facts)  # it may wait for MLflow
    get_run_logger().info(as_text(facts, read_steps()))
    await acreate_markdown_artifact(as_markdown(facts), key=SUMMARY_KEY)


async def _run_stages(graph: Graph, limits: PipelinesParams) -> list[str]:
    async def run(stage: str) -> State[None] | None:
        upstream = [await running[name] for name in graph[stage]]
        if not all(state is not None and state.is_completed() for state in upstream):
            return None
        return await state_of(_task_with(limits, stage)(stage, wait_for=upstream, return_state=True))

    running = {stage: asyncio.create_task(run(stage)) for stage in graph}
    try:
        await asyncio.gather(*running.values())
    finally:  # if one of them was cancelled, none is left running
        for one in running.values():
            one.cancel()
        await asyncio.gather(*running.values(), return_exceptions=True)

    states = {stage: one.result() for stage, one in running.items()}
    faults = [_fault(f"stage {stage!r}", state, limits) for stage, state in states.items() if state is not None]
    return [fault for fault in faults if fault]


def state_of(run: object) -> Coroutine[Any, Any, State[None]]:
    """Correct Prefect's type hints, which say that the state of an async flow or task needs no await."""
    return cast("Coroutine[Any, Any, State[None]]", run)


def _is_worth_a_retry(_task: Task[..., object], _run: TaskRun, state: State[object]) -> bool:
    return state.name != "UserError"


async def run_step(limits: PipelinesParams, name: str, *command: str) -> None:
    """Run a command that is not a stage, with the limits of a stage. Raises TaskFailedError."""
    state = await state_of(_task_with(limits, name)(name, command, return_state=True))
    if fault := _fault(name, state, limits):
        raise TaskFailedError(fault)


def _task_with(limits: PipelinesParams, name: str) -> Callable[..., object]:
    return _task.with_options(
        name=name, task_run_name=name, timeout_seconds=limits.stage_time_limit * 60, retries=limits.stage_retries
    )


def _fault(what: str, state: State[None], limits: PipelinesParams) -> str | None:
    """Why it did not complete; None if it did."""
    if state.name == "TimedOut":
        return f"{what} took longer than pipelines.stage_time_limit = {limits.stage_time_limit:g} minutes"
    return None if state.is_completed() else state.message or f"{what} ended as {state.name}"


# Not .submit()ted but awaited: Prefect's task runner lets time limits fire late and cancellation wait for the stage.
@task(cache_policy=NO_CACHE, persist_result=False, retry_condition_fn=_is_worth_a_retry)
async def _task(name: str, command: Sequence[str] = ()) -> State[None] | None:
    """Run the command, or the stage of that name if there is no command."""
    log = get_run_logger().info
    try:
        await (run_command(name, command, log) if command else run_stage(name, log))
    except CommandFailedError as error:
        return Failed(name="UserError" if error.exit_code == USER_ERROR else "Failed", message=str(error))
    return None


@contextmanager
def _prefect_server() -> Iterator[None]:
    """The configured server; or a temporary one, like Prefect's own, that Ctrl-C in a terminal does not reach: a flow
    whose server is gone tries for minutes to report its end."""
    if PREFECT_API_URL.value():
        yield
        return
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # the server's process inherits it
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
    except UserError as error:  # before Prefect starts anything
        print_error(error)
        return USER_ERROR
    try:
        with _prefect_server():
            state = asyncio.run(state_of(flow(return_state=True)))
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except TerminationSignal:
        return 128 + signal.SIGTERM
    except httpx.TransportError as error:  # after Prefect itself has tried for minutes
        print(f"error: Prefect's API could not be reached ({error}); the stages that ended are done: run it again",
              file=sys.stderr)  # fmt: skip
        return 1
    if state.is_completed():
        return 0
    print(f"error: {state.message}", file=sys.stderr)
    return 1
