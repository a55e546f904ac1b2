"""MLflow's run of a fit: one for each trained model.

MLflow keeps the history, and nothing needs it: if its store cannot be reached, one line says so and the fit goes on.
"""

import shutil
import sys
import warnings
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Self

from refit.artifacts.files import write_bytes
from refit.artifacts.model import model_sha256
from refit.artifacts.prepared import DatasetInfo
from refit.params.dotted import flatten
from refit.tracking.fit_logger import FitLogger
from refit.tracking.origin import dataset_of, origin_tags, run_name
from refit.tracking.outbox import (
    IMAGES,
    MODEL,
    PICTURES,
    RUN_ID,
    SYNC,
    Point,
    PointLog,
    RunStart,
    outbox_part,
    read_start,
    save_files,
    save_fit,
)
from refit.tracking.store import (
    DEBUG_TAG,
    EXPERIMENT,
    MODEL_TAG,
    connect,
    failures,
    find_finished_run,
    metric_name,
    now,
    root_cause,
    set_up_experiment,
    tag_value,
    tracking_uri,
    warn_of_failure,
)

if TYPE_CHECKING:  # mlflow takes seconds to import, and is not needed if another logger is chosen
    from mlflow.entities import Run
    from torch import Tensor


class TrackedRun(FitLogger):
    """The MLflow run of one fit. No method raises if the store fails: the first failure prints a warning, later ones
    print nothing.

    Metrics and files are sent on a thread, so that no step of the fit waits for a disk or a network. What a failing
    store has missed is saved in the outbox, once there is a model.
    """

    def __init__(
        self,
        params: Mapping[str, Any],
        tags: Mapping[str, str],
        folder: Path | None = None,
        info: DatasetInfo | None = None,
    ) -> None:
        """`params` may be nested; they are logged under dotted keys. `tags` join those of git, DVC and Prefect. `info`
        becomes the run's data set.

        The run's id and metrics are written to `folder`. If that names an unfinished run, it is resumed.
        """
        flat = {name: str(value) for name, value in flatten(params).items()}
        dataset = dataset_of(info, params) if info else {}
        self._set_up(RunStart(flat, {**origin_tags(), **tags}, now(), dataset), folder)
        self._consequence = f"training goes on; once MLflow is back, {SYNC} sends it this run"
        self._attempt(self._open)
        self._submit(self._send_metrics)

    @classmethod
    def from_outbox(cls, folder: Path) -> Self:
        """The run that `folder` of the outbox holds; the params and metrics that MLflow does not have yet are sent."""
        run = cls.__new__(cls)
        run._set_up(read_start(folder), folder)
        run._consequence = "what it misses stays in the outbox"
        run._attempt(run._open)
        run._submit(run._send_metrics)
        return run

    @property
    def name(self) -> str:
        return EXPERIMENT

    @property
    def version(self) -> str | None:
        return self.run_id

    @property
    def run_id(self) -> str | None:
        """None if the store could not be reached."""
        return self._run_id or None

    @property
    def store_failed(self) -> bool:
        """Whether the store failed, and so misses a part of the run."""
        return self._store_failed

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Send metrics at a step, once an epoch or so. Those of the whole fit, without a step, become tags: as metrics
        they would be bars among the curves. Returns in microseconds, whatever the store does."""
        if step is None:
            self._start.tags.update({name: tag_value(value) for name, value in metrics.items()})
            self._submit(self._send_tags)
            return
        time = now()
        named = {metric_name(name): float(value) for name, value in metrics.items() if name != "epoch"}  # Lightning's
        points = [Point(name, value, time, step) for name, value in named.items() if name]
        self._point_log.add(points)
        self._unsent.extend(point for point in points if step > self._last_step.get(point.name, -1))
        self._submit(self._send_metrics)

    def log_files(self, *paths: Path) -> None:
        """Add files to the run, each under the name of its folder."""
        self._files += paths
        self._submit(self._send_files, paths)

    def log_picture(self, name: str, png: bytes, step: int) -> None:
        """Add a picture, the bytes of a PNG file, as pictures/NAME.png; it has no step here."""
        if self._folder:
            write_bytes(self._folder / PICTURES / f"{name}.png", png)
        self._submit(self._send_picture, name, png)

    def finish(self, model_dir: Path, images: "Tensor") -> None:
        """Log the trained model and mark the run finished; or delete it, if another run has the same model.

        What is logged is the whole system, as read back from `model_dir`: it takes uint8 images (N, C, H, W) to the
        same answers as `predict` gives. Two or more `images` are stored with it as an example of its input, and so are
        the names of the classes.
        """
        self._wait()
        sha256 = model_sha256(model_dir)
        self._attempt(self._finish, sha256, model_dir, images)
        self._point_log.close()
        if self._store_failed and self._folder != outbox_part(sha256, "fit"):
            self._save(sha256, model_dir, images)

    def fail(self) -> None:
        """Mark the run failed; or killed, if a signal raised the exception that is being handled."""
        # Lightning turns SIGTERM into a SystemExit.
        killed = isinstance(sys.exception(), (SystemExit, KeyboardInterrupt))
        self._submit(self._end, "KILLED" if killed else "FAILED")
        self._wait()
        self._point_log.close()

    def _set_up(self, start: RunStart, folder: Path | None) -> None:
        self._start = start
        self._folder = folder
        self._run_id = ""
        self._uri = tracking_uri()
        self._store_failed = False
        self._last_step: dict[str, int] = {}
        """Of each metric, in the part of the run before it was interrupted."""
        self._point_log = PointLog(folder)
        self._files: list[Path] = []
        self._unsent: deque[Point] = deque()
        self._jobs: list[Future[None]] = []
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="mlflow")

    def _open(self) -> None:
        self._client, self._experiment_id = connect(self._uri)
        set_up_experiment(self._client, self._experiment_id)
        run = self._unfinished_run()
        if run is None:
            start = self._start
            name = run_name(start.params, start.tags)
            run = self._client.create_run(self._experiment_id, start.started, start.tags, name)
            if self._folder:
                write_bytes(self._folder / RUN_ID, run.info.run_id.encode())
        self._run_id = run.info.run_id
        for name in run.data.metrics:
            history = self._client.get_metric_history(self._run_id, name)
            self._last_step[name] = max(metric.step for metric in history)
        for point in self._point_log.points:
            if point.step > self._last_step.get(point.name, -1):
                self._unsent.append(point)
        self._last_step |= {point.name: point.step for point in self._unsent}
        from mlflow.entities import Param

        missing = [Param(*param) for param in self._start.params.items() if param[0] not in run.data.params]
        for first in range(0, len(missing), 100):  # MLflow's limit
            self._client.log_batch(self._run_id, params=missing[first : first + 100])
        if self._start.dataset:
            self._log_dataset(self._start.dataset)
        self._send_tags()

    def _log_dataset(self, dataset: Mapping[str, str]) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag
        from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT

        tags = [InputTag(MLFLOW_DATASET_CONTEXT, "training")]
        self._client.log_inputs(self._run_id, [DatasetInput(Dataset(**dataset), tags)])

    def _unfinished_run(self) -> "Run | None":
        """The run whose id is in the folder, if MLflow has it and it is not finished."""
        if not (run_id := self._saved_id()):
            return None
        runs = self._client.search_runs([self._experiment_id], f"attributes.run_id = '{run_id}'", max_results=1)
        if not runs or runs[0].info.status == "FINISHED":
            return None
        self._client.update_run(run_id, status="RUNNING")
        run: Run = runs[0]
        return run

    def _saved_id(self) -> str:
        file = self._folder and self._folder / RUN_ID
        return file.read_text(encoding="utf-8") if file and file.is_file() else ""

    def _save(self, sha256: str, model_dir: Path, images: "Tensor") -> None:
        import numpy as np

        with save_fit(sha256, self._start, self._run_id or self._saved_id(), self._point_log.points) as folder:
            save_files(folder, [*self._files, *sorted(self._folder.glob(f"{PICTURES}/*") if self._folder else [])])
            shutil.copytree(model_dir, folder / MODEL)
            np.save(folder / IMAGES, images[:2].numpy())

    def _send_metrics(self) -> None:
        from mlflow.entities import Metric

        # What gathered while the last batch was sent goes out together; 1,000 is MLflow's limit.
        while self._unsent:
            batch = [Metric(*self._unsent.popleft()) for _ in range(min(len(self._unsent), 1000))]
            self._client.log_batch(self._run_id, metrics=batch)

    def _send_tags(self) -> None:
        from mlflow.entities import RunTag

        self._client.log_batch(self._run_id, tags=[RunTag(*tag) for tag in self._start.tags.items()])

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
        existing = find_finished_run(self._client, self._experiment_id, sha256)
        if existing and DEBUG_TAG in existing.data.tags and DEBUG_TAG not in self._start.tags:
            self._client.delete_run(existing.info.run_id)  # a debug run gave the same weights as this full one
        elif existing:
            self._client.delete_run(self._run_id)
            print(f"MLflow: run {existing.info.run_name} ({existing.info.run_id}) has the same model; no run added")
            return
        self._client.set_tag(self._run_id, MODEL_TAG, sha256)
        self._client.update_run(self._run_id, name=run_name(self._start.params, self._start.tags, sha256))
        self._log_model(model_dir, images)

    def _log_model(self, model_dir: Path, images: "Tensor") -> None:
        import mlflow.pytorch
        import torch
        from mlflow.models import infer_signature

        from refit.inference.predictor import read_model

        system, record = read_model(model_dir)
        example = images[:2]
        mlflow.set_tracking_uri(self._uri)
        with mlflow.start_run(run_id=self._run_id), warnings.catch_warnings():  # marks the run finished at its end
            # Weights in the channels_last layout are complete, though torch.export's writer takes them for a part.
            warnings.filterwarnings("ignore", "No complete tensor found in the group")
            try:
                with torch.no_grad():
                    answers = system(example)
                is_one = isinstance(answers, torch.Tensor)
                shown = answers.numpy() if is_one else {name: value.numpy() for name, value in answers.items()}
                mlflow.pytorch.log_model(
                    system,
                    name="model",
                    signature=infer_signature(example.numpy(), shown),
                    input_example=example.numpy(),
                    pip_requirements=[f"torch=={version('torch').partition('+')[0]}"],  # inferring them takes 7 s
                    tags={MODEL_TAG: record.sha256},
                    metadata={"classes": record.classes},
                    validate_serving_input=False,  # it would load the model again, and only warn
                )
            except failures():
                raise
            except Exception as error:  # noqa: BLE001, torch.export fails in many ways at a network without one graph
                print(f"warning: MLflow's run holds no model, which cannot be registered: {root_cause(error)}",
                      file=sys.stderr)  # fmt: skip

    def _submit(self, call: Callable[..., None], *args: Any) -> None:
        if not self._store_failed:
            self._jobs.append(self._thread.submit(self._attempt, call, *args))

    def _attempt(self, call: Callable[..., None], *args: Any) -> None:
        if self._store_failed:
            return
        try:
            call(*args)
        except Exception as error:  # noqa: BLE001, each kind of store has errors of its own
            self._store_failed = True
            warn_of_failure(self._uri, error, self._consequence)

    def _wait(self) -> None:
        for job in self._jobs:
            job.result()
        self._jobs.clear()
