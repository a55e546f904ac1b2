"""New images → every stage of dvc.yaml → a new champion, where it is good enough: `python -m pipelines.retrain`.

The flow for a schedule. It ends as Promoted, Kept (the champion stays) or Unchanged (the champion is this very model).
"""

import os
import subprocess
import sys
from pathlib import Path

from prefect import flow  # after pipelines.flow, which sees to it that Prefect is quiet
from prefect.artifacts import acreate_markdown_artifact
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from pipelines.dvc_graph import read_imports
from pipelines.flow import TaskFailedError, alone_here, bring_up_to_date, run_flow, run_step
from refit.command import take_no_arguments
from refit.files import read_json
from refit.params import PipelinesParams, load_params

PROMOTION = Path("data/promotion")
PROMOTION_KEY = "refit-promotion"


@flow(name="retrain", persist_result=False)
async def retrain() -> State[None]:
    """Fetch what DVC imports, bring every stage up to date, promote the model or not, and publish a promoted one.

    Runs in the repository's root, alone there, and first mends DVC's own files that a killed run left broken.
    Fails with the own error of what failed; nothing after it starts.
    """
    try:
        params = load_params()
        limits, how = params.pipelines, params.pipelines.publish
        if "mlflow" not in params.tracking.loggers:
            raise ValueError("params.yaml: tracking.loggers has no mlflow, which keeps the champion; add it")
        with alone_here() as graph:
            check_publishable(how)
            for imported in read_imports():
                await run_step(limits, f"update {imported}", "dvc", "--wait-for-lock", "update", imported)
            await bring_up_to_date(graph, limits)
            await run_step(limits, "promote", sys.executable, "-m", "refit.promote")
            verdict = read_json(PROMOTION / "verdict.json", "python -m refit.promote")
            await acreate_markdown_artifact((PROMOTION / "promotion.md").read_text(), key=PROMOTION_KEY)
            if verdict["outcome"] != "kept":  # where it is unchanged, an earlier run may have failed to
                await publish(limits, f"Model {verdict['model']}\n\n{verdict['why']}")
    except (ValueError, TaskFailedError) as error:
        return Failed(message=str(error))
    return Completed(name=verdict["outcome"].capitalize(), message=verdict["why"])


def check_publishable(how: str) -> None:
    """Raises ValueError where what pipelines.publish asks for cannot be done, before hours of training."""
    if how == "none":
        return
    if not _succeeds("git", "rev-parse", "--verify", "HEAD"):
        raise ValueError(f"pipelines.publish = {how} needs a git repository with a commit; make one, or set it to none")
    if others := [file for file, known in _uncommitted() if known and not _is_of_dvc(file)]:
        raise ValueError(
            f"pipelines.publish = {how}: {', '.join(others)} is not committed, and so no commit could make the model "
            "again; commit it, or set pipelines.publish to none"
        )
    if how == "push" and not _succeeds("git", "rev-parse", "--symbolic-full-name", "@{push}"):
        raise ValueError(f"pipelines.publish = {how} needs a branch to push to: git push --set-upstream origin BRANCH")
    if how == "push" and not _succeeds(sys.executable, "-m", "dvc", "remote", "default"):
        raise ValueError(f"pipelines.publish = {how} needs a remote for the data: dvc remote add --default NAME URL")


async def publish(limits: PipelinesParams, message: str) -> None:
    """Commit what DVC wrote of the model and of the images it came from, and push that."""
    if limits.publish == "none":
        return
    if files := [file for file, _ in _uncommitted() if _is_of_dvc(file)]:
        await run_step(limits, "add", "git", "add", "--", *files)
        await run_step(limits, "commit", "git", "commit", "--message", message, "--", *files)
    if limits.publish == "push":
        await run_step(limits, "push data", "dvc", "--wait-for-lock", "push")
        await run_step(limits, "push", "git", "push")


def _uncommitted() -> list[tuple[str, bool]]:
    """The files that differ from the last commit's, and whether git knows them."""
    command = ["git", "status", "--porcelain", "-z", "--no-renames", "--untracked-files=all"]
    entries = os.fsdecode(subprocess.run(command, capture_output=True, check=True).stdout).split("\0")
    return [(entry[3:], not entry.startswith("??")) for entry in entries if entry]


def _succeeds(*command: str) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _is_of_dvc(file: str) -> bool:
    return file == "dvc.lock" or file.endswith(".dvc")


if __name__ == "__main__":
    take_no_arguments()
    sys.exit(run_flow(retrain))
