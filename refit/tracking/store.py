"""MLflow's store: where it is, how to reach it, and what to say when it fails."""

import json
import os
import re
import sqlite3
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, NamedTuple

from refit.artifacts.paths import repository_root
from refit.runtime.environment import QUIET
from refit.runtime.errors import UserError
from refit.runtime.locks import FOREVER, only_process

if TYPE_CHECKING:  # importing mlflow takes seconds: only who calls these functions pays
    from mlflow import MlflowClient
    from mlflow.entities import Run

EXPERIMENT = "refit"
LOCAL_UI = "http://127.0.0.1:5000"  # where `make mlflow` shows the local store
TRAINING_VIEW = "?workflowType=machine_learning"
"""Ends the URL of a page: without it, MLflow 3 opens its UI for GenAI, until the user has switched once."""

_KIND = ("mlflow.experimentKind", "custom_model_development")
"""A tag of an experiment: how MLflow's UI shows it. Other kinds are GenAI's."""
_COLUMNS = {
    "metrics.`test/accuracy`": 110,
    "tags.`best_val_accuracy`": 130,
    "tags.`best_val_loss`": 110,
    "tags.`best_epoch`": 90,
    "tags.`changed_params`": 260,
    "attributes.`Dataset`": 240,
}
"""Of the table of runs, in pixels."""
_VIEW = (
    "mlflow.sharedViewState.refit",
    json.dumps({
        "selectedColumns": list(_COLUMNS),
        "columnOrder": ["attributes.`Run Name`", *_COLUMNS, "runDateAndNestInfo", "duration"],
        "columnWidths": _COLUMNS,
    }),
)  # fmt: skip
"""A tag of an experiment: what MLflow's UI shows at the URL that `make mlflow` prints."""
_SYSTEM_METRICS = ("epoch_seconds", "images_per_second", "memory_gib")
_DETAILS = ("test_accuracy_low", "test_accuracy_high", "test_loss", "test_brier", "accuracy_beside_champion")

DEBUG_TAG = "debug"
"""Of a run that the debug section shortened."""
MODEL_TAG = "model_sha256"
"""Of a run, its logged model and a registered version of it."""

_LOCAL_STORE = "mlflow.db"
_LOCAL_ARTIFACTS = "mlruns"
_PASSWORD = re.compile(r"//[^/@\s]*@")


class ModelStore(NamedTuple):
    """MLflow, for a command that needs it."""

    uri: str
    client: "MlflowClient"
    experiment_id: str

    @property
    def shown_uri(self) -> str:
        """Without a password."""
        return hide_password(self.uri)

    def find_run(self, model_sha256: str) -> "Run | None":
        """The finished run of this model."""
        return find_finished_run(self.client, self.experiment_id, model_sha256)


@contextmanager
def open_store() -> Iterator[ModelStore]:
    """Raises UserError, of one line, if MLflow cannot be reached or refuses what the block asks of it."""
    uri = tracking_uri()
    try:
        yield ModelStore(uri, *connect(uri))
    except failures() as error:
        raise UserError(f"MLflow at {hide_password(uri)}: {root_cause(error)}") from None


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, else mlflow.db in the repository's root: the main one also in DVC's temporary workspaces."""
    return os.environ.get("MLFLOW_TRACKING_URI") or _local_uri()


def local_store_is_missing(uri: str) -> bool:
    """Whether `uri` is the local store, and nothing has made it yet."""
    return uri == _local_uri() and not (repository_root() / _LOCAL_STORE).is_file()


def connect(uri: str) -> "tuple[MlflowClient, str]":
    """A client that has reached its store, and the id of the experiment, which is created if it is new."""
    os.environ.update(QUIET | os.environ)  # MLflow reads them when it is imported
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    if local_store_is_missing(uri):
        _make_local_store()
    _probe_sqlite(uri)
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
    try:
        client = MlflowClient(uri, registry_uri=uri)
        experiment = client.get_experiment_by_name(name)
    except (ValueError, ImportError) as error:  # not a URI; a database whose driver is not installed
        raise ConnectionError(f"MLFLOW_TRACKING_URI cannot be used: {error}") from error
    if experiment is None:
        artifacts = (repository_root() / _LOCAL_ARTIFACTS).as_uri() if uri == _local_uri() else None
        try:
            # With its tags, which two first runs at once could not both set.
            return client, client.create_experiment(name, artifacts, dict((_KIND, _VIEW)))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":  # another run has just created it
                raise
        experiment = client.get_experiment_by_name(name)
        assert experiment is not None, name
    return client, experiment.experiment_id


def set_up_experiment(client: "MlflowClient", experiment_id: str) -> None:
    """Have MLflow's UI show the experiment as one that trains models, unless somebody has chosen its kind already, with
    the columns that matter."""
    tags = client.get_experiment(experiment_id).tags
    if _KIND[0] not in tags:
        client.set_experiment_tag(experiment_id, *_KIND)
    if tags.get(_VIEW[0]) != _VIEW[1]:
        client.set_experiment_tag(experiment_id, *_VIEW)


def metric_name(name: str) -> str | None:
    """A metric's name in MLflow, whose UI has a section of charts for each prefix: the system's apart from the curves,
    and a test's, which are bars, apart from both. None: it becomes a tag, so that few bars are before the curves."""
    if name in _DETAILS:
        return None
    if name in _SYSTEM_METRICS:
        return f"system/{name}"
    return f"test/{name.removeprefix('test_')}" if name.startswith("test_") else name


def tag_value(metric: float) -> str:
    return f"{metric:.6g}"


def find_finished_run(client: "MlflowClient", experiment_id: str, model_sha256: str) -> "Run | None":
    """The finished run of this model, the first one of several."""
    filters = f"tags.{MODEL_TAG} = '{model_sha256}' and attributes.status = 'FINISHED'"
    runs = client.search_runs([experiment_id], filters, max_results=1, order_by=["attributes.start_time ASC"])
    return runs[0] if runs else None


def find_head_alone(client: "MlflowClient", experiment_id: str, data_sha256: str) -> "Run | None":
    """The newest finished and tested run on this data set, other than a debug run, in which the head was trained
    alone."""
    filters = (
        f"attributes.status = 'FINISHED' and metrics.`test/accuracy` >= 0 and tags.data_sha256 = '{data_sha256}' and "
        "params.`fit.train` = 'head'"
    )
    runs = client.search_runs([experiment_id], filters, max_results=20, order_by=["attributes.start_time DESC"])
    return next((run for run in runs if DEBUG_TAG not in run.data.tags), None)


def run_page(uri: str, run: "Run") -> str:
    """The URL of a run's page: on the server, or where `make mlflow` shows the local store."""
    site = _PASSWORD.sub("//", uri).rstrip("/") if uri.startswith("http") else LOCAL_UI
    return f"{site}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}{TRAINING_VIEW}"


def failures() -> tuple[type[Exception], ...]:
    """The exceptions of a failing store: MLflow's own (which wrap requests' and most of SQLAlchemy's), SQLAlchemy's
    while the store is opened, and the file system's for artifacts."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    return MlflowException, SQLAlchemyError, sqlite3.Error, OSError


def warn_of_failure(uri: str, error: BaseException, consequence: str) -> None:
    print(f"warning: MLflow at {hide_password(uri)} failed ({root_cause(error)}): {consequence}",
          file=sys.stderr, flush=True)  # fmt: skip


def root_cause(error: BaseException) -> str:
    """The first line of the innermost exception: `Connection refused`, where MLflow's own text is a paragraph."""
    while inner := error.__cause__ or error.__context__:
        error = inner
    lines = str(error).splitlines() or [""]
    return hide_password(f"{type(error).__name__}: {lines[0][:200]}")


def hide_password(text: str) -> str:
    return _PASSWORD.sub("//***@", text)


def now() -> int:
    """Milliseconds since 1970, as MLflow counts time."""
    return int(time.time() * 1000)


def _local_uri() -> str:
    return f"sqlite:///{repository_root() / _LOCAL_STORE}"


def _make_local_store() -> None:
    """Build the local store in a temporary folder, one process at a time, and move it into place when it is complete.

    MLflow takes seconds to build its tables. If it is killed meanwhile, or two processes do it at once, the store never
    opens again.
    """
    from mlflow import MlflowClient

    folder, store = repository_root() / _LOCAL_ARTIFACTS, repository_root() / _LOCAL_STORE
    with only_process(folder / "new_store.lock", "makes MLflow's local store", FOREVER):
        if not store.is_file():
            with TemporaryDirectory(dir=folder) as aside:
                MlflowClient(f"sqlite:///{aside}/{store.name}").search_experiments(max_results=1)
                Path(aside, store.name).replace(store)


def _probe_sqlite(uri: str) -> None:
    """MLflow tries for 100 s to open an SQLite file that cannot be opened; SQLite itself fails at once."""
    if not uri.startswith("sqlite:"):
        return
    from sqlalchemy.engine import make_url

    database = make_url(uri).database
    if database and Path(database).parent.is_dir():
        connection = sqlite3.connect(database)
        try:
            connection.execute("PRAGMA schema_version")
        finally:
            connection.close()
