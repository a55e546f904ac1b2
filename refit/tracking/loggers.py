"""Loggers, by their names in `tracking.loggers`: what a fit and a test tell goes to each. Only here, and for MLflow in
refit/tracking/runs.py, is it known what loggers there are.

All but MLflow's write below `data/logs/`: a fit to `fit-<fingerprint>`, which takes the name of its model, the first 16
characters of the sha256, once there is one. That folder is neither DVC's nor git's.
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

from refit.artifacts.files import repository_root, write_bytes, write_csv, write_json
from refit.artifacts.model import model_name, model_sha256
from refit.params import load_params
from refit.runtime.environment import QUIET
from refit.tracking.run_logger import FitLogger, RunLogger
from refit.tracking.runs import EXPERIMENT, log_to_model_run

LOGS = Path("data/logs")
METRICS = "metrics.csv"

_WANDB_RUN = "run_id"
_WANDB_STEPS = "last_steps.json"


def chosen_loggers() -> list[str]:
    """tracking.loggers. No stage declares that section: it changes no result, so it must make none stale."""
    names: list[str] = load_params().model_dump()["tracking"]["loggers"]
    return names


def model_logs(sha256: str) -> Path:
    """Where the loggers of the fit that gave this model have written."""
    return repository_root() / LOGS / sha256[:16]


class FitLoggers:
    """The loggers of one fit. A fit that goes on from a state goes on with them, without a gap or a repeat."""

    def __init__(
        self, names: Sequence[str] | None, params: Mapping[str, Any], tags: Mapping[str, str], state: Path, step: int
    ) -> None:
        """`params` is all of params.yaml, nested; `state` the folder of the fit's state, which is of this `step`.
        `names` is None in a process of the fit that is not its leader, who logs for all."""
        self.folder = repository_root() / LOGS / f"fit-{state.name}"
        if step == 0 and names is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
        opened = [
            RunLogger(params, tags, state) if name == "mlflow" else _OPEN[name](self.folder, params, step)
            for name in names or ()
        ]
        self.each: list[FitLogger] = [logger for logger in opened if logger is not None]

    @property
    def hold_histograms(self) -> bool:
        return any(logger.holds_histograms for logger in self.each)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Figures of a step, or of the fit as a whole."""
        for logger in self.each:
            logger.log_metrics(dict(metrics), step)

    def log_picture(self, name: str, png: bytes, step: int) -> None:
        """A picture, the bytes of a PNG file."""
        for logger in self.each:
            logger.log_picture(name, png, step)

    def log_histograms(self, values: Mapping[str, Tensor], step: int) -> None:
        """How the numbers of each tensor are spread."""
        for logger in self.each:
            logger.log_histograms(values, step)

    def log_files(self, *paths: Path) -> None:
        for logger in self.each:
            logger.log_files(*paths)

    def finish(self, model_dir: Path, images: Tensor) -> None:
        """The fit ended well: see TrackedRun.finish for what is given."""
        for logger in self.each:
            logger.finish(model_dir, images)
        if self.folder.is_dir():
            _name_after_model(self.folder, model_logs(model_sha256(model_dir)))

    def fail(self) -> None:
        for logger in self.each:
            logger.fail()


def log_to_model(sha256: str, metrics: Mapping[str, float], files: Sequence[Path]) -> None:
    """Add a test's metrics and files to what each chosen logger holds of this model; a repeat replaces them.

    A logger that took no part in the model's fit is passed over; of files TensorBoard and W&B take the pictures.
    """
    pictures = {file.stem: file.read_bytes() for file in files if file.suffix == ".png"}
    for name in chosen_loggers():
        if name == "mlflow":
            log_to_model_run(sha256, metrics, files)
        elif (folder := model_logs(sha256) / name).is_dir():
            _ADD_TEST[name](folder, metrics, pictures)


def _name_after_model(folder: Path, named: Path) -> None:
    """What the same model was logged with before, and perhaps tested, stays."""
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
        # What a fit that was cut off told of its steps after the state it goes on from, TensorBoard leaves out.
        super().__init__(folder, name="", version="tensorboard", default_hp_metric=False, purge_step=step or None)
        self._params = dict(params)
        self.hparams = self._params
        self._figures: dict[str, float] = {}

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if step is None:
            self._figures |= metrics
        super().log_metrics(metrics, step)
        self.save()  # it flushes: what is told must be in the file before a later state is

    def log_picture(self, name: str, png: bytes, step: int) -> None:
        self.experiment.add_image(name, _pixels(png), step, dataformats="HWC")
        self.save()

    def log_histograms(self, values: Mapping[str, Tensor], step: int) -> None:
        for name, tensor in values.items():
            self.experiment.add_histogram(name, tensor, step)
        self.save()

    def finish(self, model_dir: Path, images: Tensor) -> None:
        best = self._figures[f"best_{self._params['fit']['monitor']}"]
        TensorBoardLogger.log_hyperparams(self, self._params, {"hp_metric": best})
        self.finalize("success")

    def fail(self) -> None:
        self.finalize("failed")


class _CSV(FitLogger):
    """A row a step. The file is written whole each time: Lightning's own logger of this kind begins it anew in a fit
    that goes on, and a kill may leave it without its rows."""

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
        """Figures of the fit as a whole stand in its last row."""
        step = max(self._rows, default=0) if step is None else step
        self._rows.setdefault(step, {"step": step}).update(metrics)
        header = dict.fromkeys(name for row in self._rows.values() for name in row)
        write_csv(self._file, [{name: row.get(name, "") for name in header} for row in self._rows.values()])


class _WandB(FitLogger, WandbLogger):
    """Where W&B cannot hold it, or WANDB_MODE=offline, the run lies below `wandb/`, for `wandb sync`."""

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
        told = self._notes / _WANDB_STEPS
        self._last_step: dict[str, int] = json.loads(told.read_bytes()) if told.is_file() else {}

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if step is None:
            self.experiment.summary.update(dict(metrics))
            return
        # Else told before the fit was cut off.
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
        spread = {name: wandb.Histogram(np_histogram=np.histogram(array, 64)) for name, array in arrays.items()}
        super().log_metrics(spread, step)  # type: ignore[arg-type]

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
    print(f"warning: W&B failed ({first}): the work goes on without it; WANDB_MODE=offline keeps its run here",
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
