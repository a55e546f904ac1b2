"""MLflow, with refit/tracking/registry.py: one run for each trained model.

MLflow keeps the history; nothing needs it. Where its store cannot be reached, one line says so and the work goes on.
"""

import fcntl
import os
import re
import runpy
import shutil
import sqlite3
import subprocess
import sys
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from refit.artifacts.files import repository_root, write_bytes
from refit.artifacts.model import model_name, model_sha256
from refit.runtime.environment import QUIET
from refit.runtime.errors import UserError
from refit.tracking.outbox import (
    IMAGES,
    MODEL,
    NOTE,
    PICTURES,
    SYNC,
    Journal,
    Opening,
    Point,
    keep_files,
    keep_fit,
    keep_test,
    kept_opening,
    unsent_part,
)

if TYPE_CHECKING:  # mlflow and torch take seconds to import: only who calls in here pays
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from torch import Tensor

EXPERIMENT = "refit"
WEIGHTS, DESCRIPTION = "model.safetensors", "model.json"
LOCAL_UI = "http://127.0.0.1:5000"  # where `make mlflow` shows the local store

DEBUG_TAG = "debug"
"""Of a run that the debug section cut short."""
MODEL_TAG = "model_sha256"
"""Of a run, its logged model and a registered version of it."""
_PASSWORD = re.compile(r"//[^/@\s]*@")
_LOCAL_STORE = "mlflow.db"
_LOCAL_ARTIFACTS = "mlruns"


class RunLink(NamedTuple):
    """A finished run."""

    run_id: str
    name: str
    url: str
    """Its page: on the server, or where `make mlflow` shows the local store."""


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, else mlflow.db in the repository's root: the main one also in DVC's temporary workspaces."""
    return os.environ.get("MLFLOW_TRACKING_URI") or _local_store()


class TrackedRun:
    """The MLflow run of one fit. No method raises for a store that fails: the first failure is told, then it is silent.

    Metrics and files go out on a thread of their own, so that no step of the fit waits for a disk or a network. What a
    store that fails has missed is kept, once there is a model, for refit/commands/sync.py to send.
    """

    def __init__(self, params: Mapping[str, Any], tags: Mapping[str, str], folder: Path | None = None) -> None:
        """`params` may be nested; they are logged flat, with dotted keys. `tags` join those of git, DVC and Prefect.

        The run's id and metrics are written to `folder`; the run that they tell of, if unfinished, is this one broken
        off, and goes on.
        """
        self._begin(Opening(flatten(params), {**_origin_tags(), **tags}, _now()), folder)
        self._if_lost = f"training goes on; once MLflow is back, {SYNC} sends it this run"
        self._attempt(self._open)
        self._later(self._send_metrics)

    @classmethod
    def kept(cls, folder: Path) -> Self:
        """The run that `folder` keeps, as far as it came: what is missing of its params and metrics is sent."""
        run = cls.__new__(cls)
        run._begin(kept_opening(folder), folder)
        run._if_lost = "what it misses still waits here"
        run._attempt(run._open)
        run._later(run._send_metrics)
        return run

    @property
    def run_id(self) -> str | None:
        """None where the store could not be reached."""
        return self._run_id or None

    @property
    def lost(self) -> bool:
        """Whether the store failed, and so misses something of the run."""
        return self._lost

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Send metrics at a step, once an epoch or so. Returns in microseconds, whatever the store does."""
        now, step = _now(), step or 0
        points = [Point(name, float(value), now, step) for name, value in metrics.items()]
        self._journal.add(points)
        self._unsent.extend(point for point in points if step > self._last_step.get(point.name, -1))
        self._later(self._send_metrics)

    def log_files(self, *paths: Path) -> None:
        """Add files to the run, each under the name of its folder."""
        self._files += paths
        self._later(self._send_files, paths)

    def log_picture(self, name: str, png: bytes, step: int) -> None:
        """Add a picture, the bytes of a PNG file, as pictures/NAME.png; it has no step here."""
        if self._folder:
            write_bytes(self._folder / PICTURES / f"{name}.png", png)
        self._later(self._send_picture, name, png)

    def finish(self, model_dir: Path, images: "Tensor") -> None:
        """Log the trained model and mark the run finished; or delete it, where a run holds this very model already.

        What is logged is the whole system, as read back from `model_dir`: it takes uint8 images (N, C, H, W) to the
        same answers as `predict` gives. Two or more `images` are stored with it as an example of its input, and so are
        the names of the classes.
        """
        self._drain()
        sha256 = model_sha256(model_dir)
        self._attempt(self._finish, sha256, model_dir, images)
        self._journal.close()
        if self._lost and self._folder != unsent_part(sha256, "fit"):
            self._keep(sha256, model_dir, images)

    def fail(self) -> None:
        """Mark the run failed; or killed, where the exception being handled is a signal's."""
        # Lightning turns SIGTERM into a SystemExit.
        killed = isinstance(sys.exception(), (SystemExit, KeyboardInterrupt))
        self._later(self._end, "KILLED" if killed else "FAILED")
        self._drain()
        self._journal.close()

    def _begin(self, opening: Opening, folder: Path | None) -> None:
        self._opening = opening
        self._folder = folder
        named = map(opening.params.get, ("data.source", "model.system", "model.network"))
        self._name = " ".join(name for name in named if name and name != "classifier") or "fit"
        self._run_id = ""
        self._uri = tracking_uri()
        self._lost = False
        self._last_step: dict[str, int] = {}
        """Of each metric, in the part of the run before it was broken off."""
        self._journal = Journal(folder)
        self._files: list[Path] = []
        self._unsent: deque[Point] = deque()
        self._jobs: list[Future[None]] = []
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="mlflow")

    def _open(self) -> None:
        self._client, self._experiment_id = _connect(self._uri)
        run = self._broken_off()
        if run is None:
            opening = self._opening
            run = self._client.create_run(self._experiment_id, opening.started, opening.tags, self._name)
            if self._folder:
                write_bytes(self._folder / NOTE, run.info.run_id.encode())
        self._run_id = run.info.run_id
        for name in run.data.metrics:
            history = self._client.get_metric_history(self._run_id, name)
            self._last_step[name] = max(metric.step for metric in history)
        for point in self._journal.points:
            if point.step > self._last_step.get(point.name, -1):
                self._unsent.append(point)
        self._last_step |= {point.name: point.step for point in self._unsent}
        from mlflow.entities import Param

        missing = [Param(*param) for param in self._opening.params.items() if param[0] not in run.data.params]
        for start in range(0, len(missing), 100):  # as many as MLflow takes at once
            self._client.log_batch(self._run_id, params=missing[start : start + 100])

    def _broken_off(self) -> "Run | None":
        """The run that was to go on, if it is there and unfinished."""
        if not (run_id := self._noted_id()):
            return None
        runs = self._client.search_runs([self._experiment_id], f"attributes.run_id = '{run_id}'", max_results=1)
        if not runs or runs[0].info.status == "FINISHED":
            return None
        self._client.update_run(run_id, status="RUNNING")
        run: Run = runs[0]
        return run

    def _noted_id(self) -> str:
        note = self._folder and self._folder / NOTE
        return note.read_text(encoding="utf-8") if note and note.is_file() else ""

    def _keep(self, sha256: str, model_dir: Path, images: "Tensor") -> None:
        import numpy as np

        with keep_fit(sha256, self._opening, self._run_id or self._noted_id(), self._journal.points) as folder:
            keep_files(folder, [*self._files, *sorted(self._folder.glob(f"{PICTURES}/*") if self._folder else [])])
            shutil.copytree(model_dir, folder / MODEL)
            np.save(folder / IMAGES, images[:2].numpy())

    def _send_metrics(self) -> None:
        from mlflow.entities import Metric

        # What gathered while the last batch was under way goes out as one; 1,000 is MLflow's limit.
        while self._unsent:
            batch = [Metric(*self._unsent.popleft()) for _ in range(min(len(self._unsent), 1000))]
            self._client.log_batch(self._run_id, metrics=batch)

    def _send_files(self, paths: Sequence[Path]) -> None:
        for path in paths:
            self._client.log_artifact(self._run_id, str(path), path.absolute().parent.name)

    def _send_picture(self, name: str, png: bytes) -> None:
        with TemporaryDirectory() as folder:
            file = Path(folder, f"{name}.png")
            file.write_bytes(png)
            self._client.log_artifact(self._run_id, str(file), PICTURES)

    def _end(self, status: str) -> None:
        self._client.set_terminated(self._run_id, status)

    def _finish(self, sha256: str, model_dir: Path, images: "Tensor") -> None:
        existing = _find(self._client, self._experiment_id, sha256)
        if existing and DEBUG_TAG in existing.data.tags and DEBUG_TAG not in self._opening.tags:
            self._client.delete_run(existing.info.run_id)  # a trial came to the same weights as this, the real one
        elif existing:
            self._client.delete_run(self._run_id)
            print(f"MLflow: run {existing.info.run_name} ({existing.info.run_id}) holds this very model; no run added")
            return
        self._client.set_tag(self._run_id, MODEL_TAG, sha256)
        self._client.update_run(self._run_id, name=f"{self._name} {model_name(sha256)}")
        self._log_model(model_dir, images)

    def _log_model(self, model_dir: Path, images: "Tensor") -> None:
        import mlflow.pytorch
        import torch
        from mlflow.models import infer_signature

        from refit.inference.predictor import read_model

        system, record = read_model(model_dir)
        example = images[:2]
        with torch.no_grad():
            answers = system(example)
        is_one = isinstance(answers, torch.Tensor)
        shown = answers.numpy() if is_one else {name: value.numpy() for name, value in answers.items()}
        mlflow.set_tracking_uri(self._uri)
        with mlflow.start_run(run_id=self._run_id), warnings.catch_warnings():  # marks the run finished at its end
            # Weights in the channels_last layout are complete, though torch.export's writer takes them for a part.
            warnings.filterwarnings("ignore", "No complete tensor found in the group")
            try:
                mlflow.pytorch.log_model(
                    system,
                    name="model",
                    signature=infer_signature(example.numpy(), shown),
                    input_example=example.numpy(),
                    pip_requirements=[f"torch=={version('torch').partition('+')[0]}"],  # inferring them takes 7 s
                    tags={MODEL_TAG: record.sha256},
                    metadata={"classes": record.classes},
                )
            except RuntimeError as error:  # torch.export has no graph for every network
                print(f"warning: MLflow's run holds no model, which cannot be registered: {_root_cause(error)}",
                      file=sys.stderr)  # fmt: skip

    def _later(self, call: Callable[..., None], *args: Any) -> None:
        if not self._lost:
            self._jobs.append(self._thread.submit(self._attempt, call, *args))

    def _attempt(self, call: Callable[..., None], *args: Any) -> None:
        if self._lost:
            return
        try:
            call(*args)
        except Exception as error:  # noqa: BLE001, each kind of store has errors of its own
            self._lost = True
            _warn(self._uri, error, self._if_lost)

    def _drain(self) -> None:
        for job in self._jobs:
            job.result()
        self._jobs.clear()


def find_run(model_sha256: str) -> RunLink | None:
    """The finished run of this model; None where there is none, or, after a warning, where MLflow cannot be reached."""
    uri = tracking_uri()
    if uri == _local_store() and not (repository_root() / _LOCAL_STORE).is_file():
        return None  # MLflow would make the store only to find it empty
    try:
        client, experiment_id = _connect(uri)
        run = _find(client, experiment_id, model_sha256)
    except _failures() as error:
        _warn(uri, error, "this model's run cannot be looked up")
        return None
    return _link(uri, run) if run else None


def log_to_model_run(model_sha256: str, metrics: Mapping[str, float], files: Sequence[Path]) -> None:
    """Add metrics and files to the finished run of this model; a repeat replaces what it added before.

    Where MLflow cannot be reached, or the run itself still waits to be sent, they are kept for
    refit/commands/sync.py; where there is no such run, they are not. A warning says so.
    """
    uri = tracking_uri()
    try:
        if send_to_model_run(model_sha256, metrics, files):
            return
        if not unsent_part(model_sha256, "fit").is_dir():
            _warn_of_no_run(uri, model_sha256)
            return
        print(f"MLflow misses the run of model {model_name(model_sha256)}, and so its test results: {SYNC}")
    except Exception as error:  # noqa: BLE001, as above
        _warn(uri, error, f"the test results are not there yet; once it is back, {SYNC} sends them")
    keep_test(model_sha256, metrics, files)


def send_to_model_run(model_sha256: str, metrics: Mapping[str, float], files: Sequence[Path]) -> bool:
    """As log_to_model_run does; False where there is no such run. A store that fails raises."""
    client, experiment_id = _connect(tracking_uri())
    run = _find(client, experiment_id, model_sha256)
    if run is None:
        return False
    from mlflow.entities import Metric

    # MLflow appends a repeated metric to the first as if it were a curve: only what changed is sent.
    changed = {name: value for name, value in metrics.items() if run.data.metrics.get(name) != value}
    now = _now()
    client.log_batch(run.info.run_id, metrics=[Metric(name, value, now, 0) for name, value in changed.items()])
    for file in files:
        client.log_artifact(run.info.run_id, str(file), file.absolute().parent.name)
    return True


def send_kept_test(model_sha256: str, metrics: Mapping[str, float], files: Sequence[Path]) -> bool:
    """The same for what was kept; False, after a warning, where MLflow cannot be reached."""
    try:
        if not send_to_model_run(model_sha256, metrics, files):
            _warn_of_no_run(tracking_uri(), model_sha256)
    except Exception as error:  # noqa: BLE001, as above
        _warn(tracking_uri(), error, "what it misses still waits here")
        return False
    return True


class ModelStore(NamedTuple):
    """MLflow, for a command that cannot do without it."""

    uri: str
    client: "MlflowClient"
    experiment_id: str

    @property
    def shown_uri(self) -> str:
        """Without a password."""
        return _hide_password(self.uri)

    def find_run(self, model_sha256: str) -> "Run | None":
        """The finished run of this model."""
        return _find(self.client, self.experiment_id, model_sha256)


@contextmanager
def open_store() -> Iterator[ModelStore]:
    """Raises UserError, of one line, where MLflow cannot be reached or refuses what the block asks of it."""
    uri = tracking_uri()
    try:
        yield ModelStore(uri, *_connect(uri))
    except _failures() as error:
        raise UserError(f"MLflow at {_hide_password(uri)}: {_root_cause(error)}") from None


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested values as text under dotted keys."""
    flat: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = str(value)
    return flat


def _connect(uri: str) -> "tuple[MlflowClient, str]":
    """A client that has reached its store, and the id of the experiment, made where it is new."""
    os.environ.update(QUIET | os.environ)  # MLflow reads them when it is imported
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    if uri == _local_store() and not (repository_root() / _LOCAL_STORE).is_file():
        _make_local_store()
    _probe_sqlite(uri)
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
    try:
        client = MlflowClient(uri, registry_uri=uri)
        experiment = client.get_experiment_by_name(name)
    except (ValueError, ImportError) as error:  # no URI at all; a database whose driver is not installed
        raise ConnectionError(f"MLFLOW_TRACKING_URI cannot be used: {error}") from error
    if experiment is None:
        artifacts = (repository_root() / _LOCAL_ARTIFACTS).as_uri() if uri == _local_store() else None
        try:
            return client, client.create_experiment(name, artifact_location=artifacts)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":  # else: made by another run at the same time
                raise
        experiment = client.get_experiment_by_name(name)
        assert experiment is not None, name
    return client, experiment.experiment_id


def _make_local_store() -> None:
    """MLflow builds its tables over seconds, unguarded: killed meanwhile, or two at a time, it leaves a store that
    never opens again. So one process at a time makes it, aside, and it appears whole."""
    from mlflow import MlflowClient

    folder, store = repository_root() / _LOCAL_ARTIFACTS, repository_root() / _LOCAL_STORE
    folder.mkdir(exist_ok=True)
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not store.is_file():
            with TemporaryDirectory(dir=folder) as aside:
                MlflowClient(f"sqlite:///{aside}/{store.name}").search_experiments(max_results=1)
                Path(aside, store.name).replace(store)
    finally:
        os.close(lock)


def _probe_sqlite(uri: str) -> None:
    """MLflow tries for 100 s to open an SQLite file that cannot be opened; SQLite itself says so at once."""
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


def _find(client: "MlflowClient", experiment_id: str, sha256: str) -> "Run | None":
    filters = f"tags.{MODEL_TAG} = '{sha256}' and attributes.status = 'FINISHED'"
    runs = client.search_runs([experiment_id], filters, max_results=1, order_by=["attributes.start_time ASC"])
    return runs[0] if runs else None


def _failures() -> tuple[type[Exception], ...]:
    """What a failing store raises: MLflow's own (which wrap requests' and most of SQLAlchemy's), SQLAlchemy's while
    the store is opened, and the file system's for artifacts."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    return MlflowException, SQLAlchemyError, sqlite3.Error, OSError


def _warn(uri: str, error: BaseException, consequence: str) -> None:
    print(f"warning: MLflow at {_hide_password(uri)} failed ({_root_cause(error)}): {consequence}",
          file=sys.stderr, flush=True)  # fmt: skip


def _warn_of_no_run(uri: str, sha256: str) -> None:
    print(f"warning: MLflow at {_hide_password(uri)} holds no run of model {model_name(sha256)}: the test results are "
          "not kept there", file=sys.stderr)  # fmt: skip


def _root_cause(error: BaseException) -> str:
    """The first line of the innermost exception: `Connection refused`, where MLflow's own text is a paragraph."""
    while inner := error.__cause__ or error.__context__:
        error = inner
    lines = str(error).splitlines() or [""]
    return _hide_password(f"{type(error).__name__}: {lines[0][:200]}")


def _hide_password(text: str) -> str:
    return _PASSWORD.sub("//***@", text)


def _link(uri: str, run: "Run") -> RunLink:
    site = _PASSWORD.sub("//", uri).rstrip("/") if uri.startswith("http") else LOCAL_UI
    page = f"{site}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"
    return RunLink(run.info.run_id, run.info.run_name, page)


def _origin_tags() -> dict[str, str]:
    """Where a run comes from: the git commit, the DVC experiment, the Prefect flow run."""
    tags: dict[str, str] = {}
    if commit := _git("rev-parse", "--verify", "HEAD"):
        changes = _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!dvc.lock")  # DVC is writing that
        tags |= {"mlflow.source.git.commit": commit, "git_dirty": str(bool(changes)).lower()}
    for tag, variable in {"dvc_experiment": "DVC_EXP_NAME", "prefect_flow_run_id": "PREFECT__FLOW_RUN_ID"}.items():
        if value := os.environ.get(variable):
            tags[tag] = value
    return tags


def _git(*arguments: str) -> str | None:
    """What git says; None without git, a repository or a commit."""
    try:
        answer = subprocess.run(["git", *arguments], capture_output=True, text=True, check=True)
    except (FileNotFoundError, subprocess.CalledProcessError):
        return None
    return answer.stdout.strip()


def _local_store() -> str:
    return f"sqlite:///{repository_root() / _LOCAL_STORE}"


def _now() -> int:
    return int(time.time() * 1000)


if __name__ == "__main__":
    # By name: what it imports is nothing that a stage depends on.
    runpy.run_module("refit.commands.sync", run_name="__main__")
