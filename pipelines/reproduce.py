"""The graph of dvc.yaml as a Prefect flow: `python -m pipelines.reproduce`, with a Prefect server or without one."""

import sys

from prefect import flow  # after pipelines.flow, which sees to it that Prefect is quiet
from prefect.client.schemas.objects import State
from prefect.states import Failed

from pipelines.flow import TaskFailedError, alone_here, bring_up_to_date, run_flow
from refit.params import load_params
from refit.runtime.command import run_command
from refit.runtime.errors import UserError


# A run that fails returns a Failed state instead of raising: then the log and the UI show the stage's error and nothing
# else.
@flow(name="reproduce", persist_result=False)
async def reproduce() -> State[None] | None:
    """Bring every stage of dvc.yaml up to date, independent stages side by side, and show the summary as an artifact.

    Runs in the repository's root, one flow at a time, and first repairs DVC's own files that a killed run left broken.
    Fails with the error of the stage that failed; the stages that depend on it do not start.
    """
    try:
        limits = load_params().pipelines
        with alone_here() as graph:
            await bring_up_to_date(graph, limits)
    except (UserError, TaskFailedError) as error:
        return Failed(message=str(error))
    return None


if __name__ == "__main__":
    run_command(lambda: sys.exit(run_flow(reproduce)))
