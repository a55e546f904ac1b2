"""The graph in dvc.yaml and the data that .dvc files name, read through DVC."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from dvc.exceptions import DvcException
from dvc.repo import Repo
from dvc.stage import PipelineStage, Stage

from refit.runtime.errors import UserError

Graph = dict[str, list[str]]
"""Each stage, with the stages that have to end before it."""


def read_graph() -> Graph:
    """The stages of the root's dvc.yaml, in the file's order.

    Raises UserError if there is no repository here or dvc.yaml is wrong.
    """
    with _repository() as repo:
        index = repo.index
        ours = [stage for stage in index.stages if isinstance(stage, PipelineStage) and stage.relpath == "dvc.yaml"]
        # In DVC's graph the successors of a stage are its dependencies.
        return {stage.name: sorted(up.name for up in index.graph.successors(stage) if up in ours) for stage in ours}


class Source(NamedTuple):
    """Data that a .dvc file tracks."""

    file: str
    path: str
    """Its path in this workspace."""
    imported: bool
    """By `dvc import-url` or `dvc import`."""
    available: bool
    """False if it is imported from a file or folder of this machine that is missing or empty."""
    edited: bool
    """Whether it differs here from what the .dvc file says."""


def read_sources() -> list[Source]:
    """The data of all .dvc files, sorted by their names. Raises as read_graph."""
    with _repository() as repo:
        return sorted(_source(stage) for stage in repo.index.stages if stage.is_data_source)


def _source(stage: Stage) -> Source:
    (out,) = stage.outs
    local = [dep for dep in stage.deps if dep.protocol == "local" and not stage.is_repo_import]
    available = all(dep.exists and (not dep.isdir() or any(Path(dep.fs_path).iterdir())) for dep in local)
    return Source(stage.relpath, str(out), stage.is_import, available, out.exists and out.changed_checksum())


@contextmanager
def _repository() -> Iterator[Repo]:
    try:
        with Repo(".") as repo:
            yield repo
    except DvcException as error:
        raise UserError(f"the graph of dvc.yaml cannot be read: {error}") from error
