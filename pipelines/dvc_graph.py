"""The one reader of the graph in dvc.yaml, and of what DVC imports."""

from collections.abc import Iterator
from contextlib import contextmanager

from dvc.exceptions import DvcException
from dvc.repo import Repo
from dvc.stage import PipelineStage

Graph = dict[str, list[str]]
"""Each stage, with the stages that must be done before it."""


def read_graph() -> Graph:
    """The stages of the root's dvc.yaml, in the file's order.

    Raises ValueError where there is no repository here or dvc.yaml is wrong.
    """
    with _repository() as repo:
        index = repo.index
        ours = [stage for stage in index.stages if isinstance(stage, PipelineStage) and stage.relpath == "dvc.yaml"]
        # In DVC's graph a stage's successors are what it depends on.
        return {stage.name: sorted(up.name for up in index.graph.successors(stage) if up in ours) for stage in ours}


def read_imports() -> list[str]:
    """The .dvc files of data that lies elsewhere, as `dvc import-url` and `dvc import` write them. Raises as above."""
    with _repository() as repo:
        return sorted(stage.relpath for stage in repo.index.stages if stage.is_import)


@contextmanager
def _repository() -> Iterator[Repo]:
    try:
        with Repo(".") as repo:
            yield repo
    except DvcException as error:
        raise ValueError(f"the graph of dvc.yaml cannot be read: {error}") from error
