"""The loggers that `tracking.loggers` names: TensorBoard, CSV and W&B here, MLflow in refit/tracking/runs.py.

All but MLflow's write below `data/logs/`: a fit to `fit-<fingerprint>`, which is renamed after its model, the first 16
characters of the sha256, once there is one. Neither DVC nor git tracks that folder.
"""

import csv
import io
import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from pytorch_lightning.loggers import TensorBoardLogger, WandbLogger
from torch import Tensor

from refit.artifacts.files import write_bytes, write_csv, write_json
from refit.artifacts.model import model_name, model_sha256
from refit.artifacts.paths import LOGS, repository_root
from refit.artifacts.prepared import DatasetInfo
from refit.params import load_params
from refit.runtime.environment import QUIET
from refit.tracking.fit_logger import FitLogger
from refit.tracking.model_runs import log_to_model_run
from refit.tracking.runs import TrackedRun
from refit.tracking.store import EXPERIMENT

METRICS = "metrics.csv"

_WANDB_RUN = "run_id"
_WANDB_STEPS = "last_steps.json"


def chosen_loggers() -> list[str]:
    """tracking.loggers. No stage declares that section: it changes no result, so it must not make one stale."""
    names: list[str] = load_params().model_dump()["tracking"]["loggers"]
    return names


def model_logs(sha256: str) -> Path:
    """The folder in which the loggers of the fit of this model have written."""
    return repository_root() / LOGS / sha256[:16]


class FitLoggers:
    """The loggers of one fit. When a fit is resumed, so are its logs, without a gap or a repetition."""

    def __init__(
        self,
        names: Sequence[str] | None,
        params: Mapping[str, Any],
        info: DatasetInfo,
        tags: Mapping[str, str],
        state: Path,
        step: int,
    ) -> None:
        """`params` is all of params.yaml, nested; `info` describes the data; `state` is the folder of the fit's state,
        which was saved at this `step`. `names` is None in the processes of a fit that do not log: only its first does.
        """
        self.folder = repository_root() / LOGS / f"fit-{state.name}"
        if step == 0 and names is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
        opened = [
            TrackedRun(params, tags, state, info) if name == "mlflow" else _OPEN[name](self.folder, params, step)
            for name in names or ()
        ]
        self.each: list[FitLogger] = [logger for logger in opened if logger is not None]

    @property
    def hold_histograms(self) -> bool:
        return any(logger.holds_histograms for logger in self.each)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log metrics of a step, or of the whole fit."""
        for logger in self.each:
            logger.log_metrics(dict(metrics), step)

    def log_picture(self, name: str, png: bytes, step: int) -> None:
        """Log a picture, the bytes of a PNG file."""
        for logger in self.each:
            logger.log_picture(name, png, step)

    def log_histograms(self, values: Mapping[str, Tensor], step: int) -> None:
        """Log a histogram of each tensor."""
        for logger in self.each:
            logger.log_histograms(values, step)

    def log_files(self, *paths: Path) -> None:
        for logger in self.each:
            logger.log_files(*paths)

    def finish(self, model_dir: Path, images: Tensor) -> None:
        """End the logs of a fit that succeeded; TrackedRun.finish describes the arguments."""
        for logger in self.each:
            logger.finish(model_dir, images)
        if self.folder.is_dir():
            _name_after_model(self.folder, model_logs(model_sha256(model_dir)))

    def fail(self) -> None:
        for logger in self.each:
            logger.fail()


def log_to_model(sha256: str, metrics: Mapping[str, float], files: Sequence[Path]) -> None:
    """Add a test's metrics and files to the log of this model's fit in each chosen logger; a repeated call replaces
    them.

    A logger without a log of that fit is skipped. TensorBoard and W&B take only the pictures among the files.
    """
    pictures = {file.stem: file.read_bytes() for file in files if file.suffix == ".png"}
    for name in chosen_loggers():
        if name == "mlflow":
            log_to_model_run(sha256, metrics, files)
        elif (folder := model_logs(sha256) / name).is_dir():
            _ADD_TEST[name](folder, metrics, pictures)


def _name_after_model(folder: Path, named: Path) -> None:
    """Rename the folder; a log of the same model that is there already, perhaps with a test, stays."""
    named.mkdir(exist_ok=True)
    for part in folder.iterdir():
        if (named / part.name).exists():
            shutil.rmtree(part)
        else:
            part.replace(named / part.name)
    folder.rmdir()


class _TensorBoard(FitLogger, TensorBoardLogger):
    """Scalars, pictures, histograms, and the parameters with the best value of fit.monitor as `hp_metric`."""

    holds_histograms = True

    def __init__(self, folder: Path, params: Mapping[str, Any], step: int):
        # purge_step: TensorBoard drops what an interrupted fit logged after the state that is resumed.
        super().__init__(folder, name="", version="tensorboard", default_hp_metric=False, purge_step=step or None)
        self._params = dict(params)
        self.hparams = self._params
        self._fit_metrics: dict[str, float] = {}

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if step is None:
            self._fit_metrics |= metrics
        super().log_metrics(metrics, step)
        self.save()  # it flushes: the metrics must be in the file before a later state is saved

    def log_picture(self, name: str, png: bytes, step: int) -> None:
        self.experiment.add_image(name, _pixels(png), step, dataformats="HWC")
        self.save()

    def log_histograms(self, values: Mapping[str, Tensor], step: int) -> None:
        for name, tensor in values.items():
            self.experiment.add_histogram(name, tensor, step)
        self.save()

    def finish(self, model_dir: Path, images: Tensor) -> None:
        best = self._fit_metrics[f"best_{self._params['fit']['monitor']}"]
        TensorBoardLogger.log_hyperparams(self, self._params, {"hp_metric": best})
        self.finalize("success")

    def fail(self) -> None:
        self.finalize("failed")


class _CSV(FitLogger):
    """One row per step. The whole file is written each time: Lightning's CSVLogger starts a new file when a fit is
    resumed, and loses its rows if it is killed."""

    def __init__(self, folder: Path, params: Mapping[str, Any], step: int):
        self._file = folder / "csv" / METRICS
        self._rows: dict[int, dict[str, Any]] = {}
        if self._file.is_file():
            for row in csv.DictReader(io.StringIO(self._file.read_text(encoding="utf-8"))):
                if int(row["step"]) < step:
                    self._rows[int(row["step"])] = {name: value for name, value in row.items() if value}
        write_json(folder / "csv" / "params.json", params)

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return self._file.parent.parent.name

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Metrics of the whole fit go to the last row."""
        step = max(self._rows, default=0) if step is None else step
        self._rows.setdefault(step, {"step": step}).update(metrics)
        header = dict.fromkeys(name for row in self._rows.values() for name in row)
        write_csv(self._file, [{name: row.get(name, "") for name in header} for row in self._rows.values()])


class _WandB(FitLogger, WandbLogger):
    """If W&B cannot be reached, or WANDB_MODE=offline, the run stays below `wandb/`, for `wandb sync`."""

    holds_histograms = True

    def __init__(self, folder: Path, params: Mapping[str, Any], step: int):
        run_id = folder.name.removeprefix("fit-")
        folder.mkdir(parents=True, exist_ok=True)
        run = _wandb_run(run_id, folder)
        super().__init__(save_dir=folder, project=EXPERIMENT, version=run_id, experiment=run)
        # As Lightning does for a run that it opens itself: a metric's x-axis is the optimizer step.
        run.define_metric("trainer/global_step")
        run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
        run.config.update(dict(params), allow_val_change=True)
        self._notes = folder / "wandb"
        write_bytes(self._notes / _WANDB_RUN, run_id.encode())
        steps = self._notes / _WANDB_STEPS
        self._last_step: dict[str, int] = json.loads(steps.read_bytes()) if steps.is_file() else {}

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if step is None:
            self.experiment.summary.update(dict(metrics))
            return
        # The others were logged before the fit was interrupted.
        new = {name: value for name, value in metrics.items() if step > self._last_step.get(name, -1)}
        if not new:
            return
        super().log_metrics(new, step)
        self._last_step |= dict.fromkeys(new, step)
        write_json(self._notes / _WANDB_STEPS, self._last_step)

    def log_picture(self, name: str, png: bytes, step: int) -> None:
        self.log_image(name, [_pixels(png)], step)

    def log_histograms(self, values: Mapping[str, Tensor], step: int) -> None:
        import wandb

        arrays = {name: tensor.float().numpy(force=True) for name, tensor in values.items()}
        histograms = {name: wandb.Histogram(np_histogram=np.histogram(array, 64)) for name, array in arrays.items()}
        super().log_metrics(histograms, step)  # type: ignore[arg-type]

    def finish(self, model_dir: Path, images: Tensor) -> None:
        sha256 = model_sha256(model_dir)
        self.experiment.config.update({"model_sha256": sha256}, allow_val_change=True)
        self.experiment.name = model_name(sha256)
        self.experiment.finish()

    def fail(self) -> None:
        self.experiment.finish(exit_code=1)


def _open_wandb(folder: Path, params: Mapping[str, Any], step: int) -> FitLogger | None:
    os.environ.update(QUIET | os.environ)  # W&B reads them when it is imported
    import wandb

    try:
        return _WandB(folder, params, step)
    except wandb.Error as error:
        _warn_of_wandb(error)
        return None


def _wandb_run(run_id: str, folder: Path) -> Any:
    """A new run with files in `folder`, or the existing run with this id. Raises wandb.Error."""
    import wandb

    settings = wandb.Settings(console="off", silent=True)
    return wandb.init(project=EXPERIMENT, id=run_id, dir=folder, resume="allow", settings=settings)


def _warn_of_wandb(error: Exception) -> None:
    first, *_ = str(error).splitlines() or [type(error).__name__]
    print(f"warning: W&B failed ({first}): the stage continues without it; WANDB_MODE=offline keeps the run here",
          file=sys.stderr, flush=True)  # fmt: skip


def _add_test_to_tensorboard(folder: Path, metrics: Mapping[str, float], pictures: Mapping[str, bytes]) -> None:
    from torch.utils.tensorboard import SummaryWriter

    shutil.rmtree(folder / "test", ignore_errors=True)
    with SummaryWriter(str(folder / "test")) as writer:
        for name, value in metrics.items():
            writer.add_scalar(name, value, 0)
        for name, png in pictures.items():
            writer.add_image(name, _pixels(png), 0, dataformats="HWC")


def _add_test_to_csv(folder: Path, metrics: Mapping[str, float], pictures: Mapping[str, bytes]) -> None:
    write_csv(folder / "test.csv", [metrics])


def _add_test_to_wandb(folder: Path, metrics: Mapping[str, float], pictures: Mapping[str, bytes]) -> None:
    import wandb

    run_id = (folder / _WANDB_RUN).read_text(encoding="utf-8")
    try:
        run = _wandb_run(run_id, folder.parent)
    except wandb.Error as error:
        _warn_of_wandb(error)
        return
    run.summary.update(dict(metrics))
    run.log({name: wandb.Image(_pixels(png)) for name, png in pictures.items()})
    run.finish()


def _pixels(png: bytes) -> npt.NDArray[np.uint8]:
    """(H, W, 3)."""
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


_OPEN: dict[str, Callable[[Path, Mapping[str, Any], int], FitLogger | None]] = {
    "tensorboard": _TensorBoard,
    "csv": _CSV,
    "wandb": _open_wandb,
}
_ADD_TEST = {"tensorboard": _add_test_to_tensorboard, "csv": _add_test_to_csv, "wandb": _add_test_to_wandb}
