"""New images → every stage of dvc.yaml → a new champion, if it is good enough: `python -m pipelines.retrain`.

The flow for a schedule. It ends as Promoted, Kept (the champion stays) or Unchanged (the champion is the same model).
"""

import os
import subprocess
import sys

from prefect import flow  # after pipelines.flow, which sees to it that Prefect is quiet
from prefect.artifacts import acreate_markdown_artifact
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from pipelines.dvc_graph import read_sources
from pipelines.flow import TaskFailedError, alone_here, bring_up_to_date, run_flow, run_step
from pipelines.tools.data_diff import changes_since
from refit.artifacts.files import read_json
from refit.artifacts.paths import PROMOTION
from refit.params import PipelinesParams, load_params
from refit.runtime.command import run_command
from refit.runtime.errors import UserError

PROMOTION_KEY = "refit-promotion"
DATA_KEY = "refit-data"


@flow(name="retrain", persist_result=False)
async def retrain() -> State[None]:
    """Fetch what DVC imports, bring every stage up to date, promote the model or not, and publish a promoted one.

    Runs in the repository's root, one flow at a time, and first repairs DVC's own files that a killed run left broken.
    Fails with the error of the step that failed; nothing after it starts.
    """
    try:
        params = load_params()
        limits, how = params.pipelines, params.pipelines.publish
        if "mlflow" not in params.tracking.loggers:
            raise UserError("params.yaml: tracking.loggers has no mlflow, which stores the champion; add it")
        with alone_here() as graph:
            check_publishable(how)
            if how == "push" and _output("git", "rev-list", "@{push}..HEAD"):  # an earlier run failed to push
                await push(limits)
            for file in imports_to_update():
                await run_step(limits, f"update {file}", sys.executable, "-m", "pipelines.tools.update", file)
            await bring_up_to_date(graph, limits)
            if changes := changes_since("HEAD"):
                await acreate_markdown_artifact(changes, key=DATA_KEY)
            await run_step(limits, "promote", sys.executable, "-m", "refit.commands.promote")
            verdict = read_json(PROMOTION / "verdict.json", "python -m refit.commands.promote")
            await acreate_markdown_artifact((PROMOTION / "promotion.md").read_text(), key=PROMOTION_KEY)
            if verdict["outcome"] != "kept":  # also if unchanged: an earlier run may have failed to publish it
                await publish(limits, f"Model {verdict['model']}\n\n{verdict['why']}")
    except (UserError, TaskFailedError) as error:
        return Failed(message=str(error))
    return Completed(name=verdict["outcome"].capitalize(), message=verdict["why"])


def imports_to_update() -> list[str]:
    """The .dvc files of imported data. Raises UserError if an update would lose some of it."""
    imports = [source for source in read_sources() if source.imported]
    for source in imports:
        if source.edited:
            raise UserError(
                f"{source.path} differs from {source.file}, and an update would undo the changes; make them where it "
                f"is imported from, and undo them here: dvc checkout --force {source.file}"
            )
        if not source.available:
            raise UserError(f"{source.file}: its source is missing or empty")
    return [source.file for source in imports]


def check_publishable(how: str) -> None:
    """Raises UserError, before hours of training, if what pipelines.publish asks for is impossible."""
    if how != "none":
        check_committable(how)
    if how == "push":
        for needed, command in {
            "a branch to push to: git push --set-upstream origin BRANCH": "git rev-parse --symbolic-full-name @{push}",
            "a remote for the data: dvc remote add --default NAME URL": f"{sys.executable} -m dvc remote default",
            "git to be able to push; to see the error: git push --dry-run": "git push --dry-run",
        }.items():
            if not _succeeds(*command.split()):
                raise UserError(f"pipelines.publish = {how} needs {needed}")


def check_committable(how: str) -> None:
    """Raises UserError if nothing can be committed, or the commit could not reproduce the model."""
    for needed, command in {
        "a git repository with a commit; make one, or set it to none": "git rev-parse --verify HEAD",
        "a branch to commit to: git switch BRANCH": "git symbolic-ref --quiet HEAD",
        "to know who commits: git config user.name NAME, and user.email": "git var GIT_COMMITTER_IDENT",
    }.items():
        if not _succeeds(*command.split()):
            raise UserError(f"pipelines.publish = {how} needs {needed}")
    code = ("refit/", "stages/")  # also files that git does not track yet
    others = [file for file, tracked in _uncommitted() if not _is_of_dvc(file) and (tracked or file.startswith(code))]
    if others:
        raise UserError(
            f"pipelines.publish = {how}: {', '.join(others)} is not committed, so no commit could reproduce the "
            "model; commit it, or set pipelines.publish to none"
        )


async def publish(limits: PipelinesParams, message: str) -> None:
    """Commit what DVC wrote about the model and its images, and push that."""
    if limits.publish == "none":
        return
    check_committable(limits.publish)  # once more, as training took time
    if files := [file for file, _ in _uncommitted() if _is_of_dvc(file)]:
        await run_step(limits, "add", "git", "add", "--all", "--", *files)
        await run_step(limits, "commit", "git", "commit", "--message", message, "--", *files)
    if limits.publish == "push":
        await push(limits)


async def push(limits: PipelinesParams) -> None:
    await run_step(limits, "push data", "dvc", "--wait-for-lock", "push")
    await run_step(limits, "push", "git", "push")


def _uncommitted() -> list[tuple[str, bool]]:
    """The files below this folder that differ from the last commit, and whether git tracks them."""
    status = _output("git", "status", "--porcelain", "-z", "--no-renames", "--untracked-files=all", "--", ".")
    here = _output("git", "rev-parse", "--show-prefix").strip()  # git names them from its own root
    return [(entry[3:].removeprefix(here), not entry.startswith("??")) for entry in status.split("\0") if entry]


def _output(*command: str) -> str:
    return os.fsdecode(subprocess.run(command, capture_output=True, check=True).stdout)


def _succeeds(*command: str) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _is_of_dvc(file: str) -> bool:
    return file == "dvc.lock" or file.endswith(".dvc")


if __name__ == "__main__":
    run_command(lambda: sys.exit(run_flow(retrain)))
