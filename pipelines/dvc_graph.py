"""The one reader of the graph in dvc.yaml, and of what DVC imports."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from dvc.exceptions import DvcException
from dvc.repo import Repo
from dvc.stage import PipelineStage, Stage

from refit.runtime.errors import UserError

Graph = dict[str, list[str]]
"""Each stage, with the stages that must be done before it."""


def read_graph() -> Graph:
    """The stages of the root's dvc.yaml, in the file's order.

    Raises UserError where there is no repository here or dvc.yaml is wrong.
    """
    with _repository() as repo:
        index = repo.index
        ours = [stage for stage in index.stages if isinstance(stage, PipelineStage) and stage.relpath == "dvc.yaml"]
        # In DVC's graph a stage's successors are what it depends on.
        return {stage.name: sorted(up.name for up in index.graph.successors(stage) if up in ours) for stage in ours}


class Source(NamedTuple):
    """Data that a .dvc file stands for."""

    file: str
    path: str
    """Where the data lies here."""
    imported: bool
    """From elsewhere, by `dvc import-url` or `dvc import`."""
    at_hand: bool
    """What it is imported from, where that is a file or folder of this machine; else taken for so."""
    edited: bool
    """It is here, and not as the .dvc file has it."""


def read_sources() -> list[Source]:
    """What the .dvc files stand for, sorted by them. Raises as above."""
    with _repository() as repo:
        return sorted(_source(stage) for stage in repo.index.stages if stage.is_data_source)


def _source(stage: Stage) -> Source:
    (out,) = stage.outs
    local = [dep for dep in stage.deps if dep.protocol == "local" and not stage.is_repo_import]
    at_hand = all(dep.exists and (not dep.isdir() or any(Path(dep.fs_path).iterdir())) for dep in local)
    return Source(stage.relpath, str(out), stage.is_import, at_hand, out.exists and out.changed_checksum())


@contextmanager
def _repository() -> Iterator[Repo]:
    try:
        with Repo(".") as repo:
            yield repo
    except DvcException as error:
        raise UserError(f"the graph of dvc.yaml cannot be read: {error}") from error
