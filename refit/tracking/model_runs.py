"""The finished MLflow run of a model: finding it, and adding the results of a test to it."""

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from refit.artifacts.model import model_name
from refit.tracking.outbox import SYNC, outbox_part, save_test
from refit.tracking.store import (
    connect,
    failures,
    find_finished_run,
    find_head_alone,
    hide_password,
    local_store_is_missing,
    metric_name,
    now,
    run_page,
    tag_value,
    tracking_uri,
    warn_of_failure,
)

if TYPE_CHECKING:  # importing mlflow takes seconds
    from mlflow import MlflowClient
    from mlflow.entities import Run


class RunLink(NamedTuple):
    """A finished run."""

    run_id: str
    name: str
    url: str
    """Its page: on the server, or where `make mlflow` shows the local store."""


def find_run(model_sha256: str) -> RunLink | None:
    """The finished run of this model; None if there is none, or, after a warning, if MLflow cannot be reached."""
    run = _look_up(
        lambda client, experiment: find_finished_run(client, experiment, model_sha256),
        "this model's run cannot be looked up",
    )
    return RunLink(run.info.run_id, run.info.run_name, run_page(tracking_uri(), run)) if run else None


def accuracy_of_head_alone(data_sha256: str) -> float | None:
    """The test accuracy of the newest model of this data set of which the head was trained alone; None as in
    find_run."""
    run = _look_up(
        lambda client, experiment: find_head_alone(client, experiment, data_sha256),
        "the head alone cannot be looked up",
    )
    return float(run.data.metrics["test/accuracy"]) if run else None


def _look_up(search: Callable[["MlflowClient", str], "Run | None"], consequence: str) -> "Run | None":
    """What `search` finds, given the client and the experiment; None, after a warning, if MLflow cannot be reached."""
    uri = tracking_uri()
    if local_store_is_missing(uri):  # MLflow would make the store only to find it empty
        return None
    try:
        return search(*connect(uri))
    except failures() as error:
        warn_of_failure(uri, error, consequence)
        return None


def log_to_model_run(model_sha256: str, metrics: Mapping[str, float], files: Sequence[Path]) -> None:
    """Add metrics and files to the finished run of this model; a repeated call replaces what it added before.

    If MLflow cannot be reached, or the run itself waits in the outbox, they are saved there; if there is no such run,
    they are not. A warning says so.
    """
    uri = tracking_uri()
    try:
        if send_to_model_run(model_sha256, metrics, files):
            return
        if not outbox_part(model_sha256, "fit").is_dir():
            _warn_of_no_run(uri, model_sha256)
            return
        print(f"MLflow does not have the run of model {model_name(model_sha256)} yet; to send it with the test "
              f"results: {SYNC}")  # fmt: skip
    except Exception as error:  # noqa: BLE001, each kind of store has errors of its own
        warn_of_failure(uri, error, f"the test results are not there yet; once it is back, {SYNC} sends them")
    save_test(model_sha256, metrics, files)


def send_to_model_run(model_sha256: str, metrics: Mapping[str, float], files: Sequence[Path]) -> bool:
    """Do as log_to_model_run; False if there is no such run. Raises what a failing store raises."""
    client, experiment_id = connect(tracking_uri())
    run = find_finished_run(client, experiment_id, model_sha256)
    if run is None:
        return False
    from mlflow.entities import Metric, RunTag

    # MLflow appends a repeated metric to the first, as if it were a curve: only what changed is sent.
    named = {name: (metric_name(name), value) for name, value in metrics.items()}
    changed = [(name, value) for name, value in named.values() if name and run.data.metrics.get(name) != value]
    tags = [RunTag(name, tag_value(value)) for name, (metric, value) in named.items() if metric is None]
    time = now()
    client.log_batch(run.info.run_id, [Metric(name, value, time, 0) for name, value in changed], tags=tags)
    for file in files:
        client.log_artifact(run.info.run_id, str(file), file.absolute().parent.name)
    return True


def send_saved_test(model_sha256: str, metrics: Mapping[str, float], files: Sequence[Path]) -> bool:
    """Do the same for a test from the outbox; False, after a warning, if MLflow cannot be reached."""
    try:
        if not send_to_model_run(model_sha256, metrics, files):
            _warn_of_no_run(tracking_uri(), model_sha256)
    except Exception as error:  # noqa: BLE001, as above
        warn_of_failure(tracking_uri(), error, "what it misses stays in the outbox")
        return False
    return True


def _warn_of_no_run(uri: str, sha256: str) -> None:
    print(f"warning: MLflow at {hide_password(uri)} has no run of model {model_name(sha256)}: the test results are "
          "not recorded there", file=sys.stderr)  # fmt: skip
