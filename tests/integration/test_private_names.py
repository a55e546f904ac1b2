"""The undocumented features of libraries that Refit needs, one entry per feature.

After `make lock`, this file lists the features that the new versions break. Each check uses the real library.
"""

import ast
import importlib.util
import inspect
import logging
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.demos.boring_classes import BoringModel, RandomDataset
from pytorch_lightning.loops.fit_loop import _FitLoop
from torch.utils.data import DataLoader

pytestmark = pytest.mark.filterwarnings("ignore:_NoneStep.value:DeprecationWarning")  # from DVC

ROOT = Path(__file__).resolve().parents[2]


class Need(NamedTuple):
    library: str
    what: str
    """The name, behaviour or message."""
    feature: str
    """The part of Refit that breaks without it."""
    check: Callable[[], None]
    """Raises an exception if the library no longer has it."""


NEEDS: list[Need] = []


def need(library: str, what: str, feature: str) -> Callable[[Callable[[], None]], None]:
    return lambda check: NEEDS.append(Need(library, what, feature, check))


@pytest.fixture(autouse=True)
def _in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def trainer(**options: Any) -> pl.Trainer:
    quiet: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    return pl.Trainer(**{"accelerator": "cpu", "max_epochs": 1, "enable_checkpointing": False, **quiet, **options})


def fit(system: pl.LightningModule, **options: Any) -> pl.Trainer:
    made = trainer(limit_val_batches=1, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made.fit(system, DataLoader(RandomDataset(32, 4)), DataLoader(RandomDataset(32, 4)))
    return made


# ---------------------------------------------------------------------------------------------------------- Lightning


@need("pytorch-lightning", "FitLoop.restarting has a setter", "a resumed fit with optimizer.schedule: plateau")
def _() -> None:
    restarting = inspect.getattr_static(_FitLoop, "restarting")
    assert restarting.fset is not None
    assert "update_plateau_schedulers=not self.restarting" in inspect.getsource(_FitLoop.on_advance_end)


@need("pytorch-lightning", "a train loader's first batch is made after on_train_start", "a resumed fit's first batch")
def _() -> None:
    order: list[str] = []

    class Loader:
        def __len__(self) -> int:
            return 1

        def __iter__(self) -> Iterator[torch.Tensor]:
            order.append("batch")
            yield torch.ones(1, 32)

    class Watch(pl.Callback):
        def on_train_start(self, *_: object) -> None:
            order.append("on_train_start")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer(callbacks=[Watch()], limit_val_batches=0).fit(BoringModel(), Loader())
    assert order == ["on_train_start", "batch"]


@need("pytorch-lightning", "Trainer.val_check_batch is a number of batches", "states at steps without a validation")
def _() -> None:
    assert fit(BoringModel(), val_check_interval=0.5).val_check_batch == 2


@need("pytorch-lightning", "Trainer.callback_metrics can be updated", "metrics of a resumed epoch")
def _() -> None:
    made = trainer()
    made.callback_metrics.update({"val_loss": torch.tensor(1.0)})
    assert "val_loss" in made.callback_metrics


@need("pytorch-lightning", "LightningModule.CHECKPOINT_HYPER_PARAMS_KEY", "params.yaml in a fit's state")
def _() -> None:
    assert pl.LightningModule.CHECKPOINT_HYPER_PARAMS_KEY == "hyper_parameters"


@need("pytorch-lightning", "RichProgressBar's columns, descriptions and _get_train_description", "the progress bar")
def _() -> None:
    from pytorch_lightning.callbacks import RichProgressBar

    bar = RichProgressBar()
    _, bar_column, *_ = bar.configure_columns(trainer())
    assert hasattr(bar_column, "bar_width")
    assert list(inspect.signature(bar._get_train_description).parameters) == ["current_epoch"]
    for name in ("validation_description", "train_progress_bar_id", "progress"):
        assert hasattr(bar, name), name


@need(
    "pytorch-lightning",
    "the error about a `val_check_interval` that is too large",
    "the error of debug.val_check_interval",
)
def _() -> None:
    with pytest.raises(ValueError, match="`val_check_interval`"):
        fit(BoringModel(), val_check_interval=1000)


@need("pytorch-lightning", "MisconfigurationException in lightning_fabric", "errors about devices and debug limits")
def _() -> None:
    from lightning_fabric.utilities.exceptions import MisconfigurationException

    with pytest.raises(MisconfigurationException):
        fit(BoringModel(), limit_train_batches=0.001)


@need(
    "pytorch-lightning",
    'the Tuner takes "DefaultCPUAllocator: can\'t allocate memory" for out of memory',
    "scale_batch",
)
def _() -> None:
    from pytorch_lightning.utilities.memory import is_oom_error

    assert is_oom_error(RuntimeError("DefaultCPUAllocator: can't allocate memory: over batch.memory_budget"))


@need("pytorch-lightning", "lr_find's running mean has a bias correction that is one step off", "the curve of find_lr")
def _() -> None:
    from pytorch_lightning.tuner.tuning import Tuner

    class Constant(BoringModel):
        def training_step(self, batch: torch.Tensor, batch_idx: int) -> Any:
            return self(batch).sum() * 0 + 1

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        options: dict[str, Any] = {"num_training": 3, "update_attr": False}
        finder = Tuner(trainer(max_epochs=-1)).lr_find(Constant(), DataLoader(RandomDataset(32, 8)), **options)
    assert finder is not None
    smoothing = 0.98
    first, second, *_ = finder.results["loss"]
    assert first == pytest.approx((1 - smoothing) / (1 - smoothing**2))
    assert second == pytest.approx((1 - smoothing**2) / (1 - smoothing**3))


@need("pytorch-lightning", "SIGTERMException is a SystemExit", "an MLflow run that is marked as killed")
def _() -> None:
    from pytorch_lightning.utilities.exceptions import SIGTERMException

    assert issubclass(SIGTERMException, SystemExit)


@need(
    "pytorch-lightning", "the launcher's logger is named after its module", "the message that a process of a fit ended"
)
def _() -> None:
    from lightning_fabric.strategies.launchers import subprocess_script

    assert isinstance(subprocess_script._logger, logging.Logger)
    assert subprocess_script._logger.name == "lightning_fabric.strategies.launchers.subprocess_script"


@need("pytorch-lightning", "the warning that a module without a trainer logs", "averaging: swa without that warning")
def _() -> None:
    with pytest.warns(match="`self.trainer` reference is not registered"):
        BoringModel().log("name", 1.0)


@need("pytorch-lightning", "WandbLogger logs steps as trainer/global_step", "the x-axis in W&B")
def _() -> None:
    from pytorch_lightning.loggers import WandbLogger

    class Run:
        def log(self, values: dict[str, float]) -> None:
            self.values = values

    run: Any = Run()
    WandbLogger(experiment=run).log_metrics({"val_loss": 1.0}, step=3)
    assert run.values == {"val_loss": 1.0, "trainer/global_step": 3}


@need("pytorch-lightning", "TensorBoardLogger.hparams", "the parameters in TensorBoard's folder")
def _() -> None:
    from pytorch_lightning.loggers import TensorBoardLogger

    assert TensorBoardLogger(".").hparams == {}


# -------------------------------------------------------------------------------------------------------------- torch


@need("torch", "'does not have a deterministic implementation' in the error", "the error of trainer.deterministic")
def _() -> None:
    pixels, indices = torch.zeros(1, 1, 1), torch.zeros(1, 1, 1, dtype=torch.int64)
    torch.use_deterministic_algorithms(True)
    try:
        with pytest.raises(RuntimeError, match=r"^[a-z_0-9]+ does not have a deterministic implementation"):
            torch.nn.functional.max_unpool1d(pixels, indices, (1,))
    finally:
        torch.use_deterministic_algorithms(False)


@need("torch", "_step_supports_amp_scaling of a fused optimizer", "gradient clipping in bf16-mixed")
def _() -> None:
    from lightning_fabric.plugins.precision.amp import _optimizer_handles_unscaling

    optimizer: Any = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], fused=True)
    assert _optimizer_handles_unscaling(optimizer)
    optimizer._step_supports_amp_scaling = False
    assert not _optimizer_handles_unscaling(optimizer)


@need("torch", "_ddp_params_and_buffers_to_ignore of a module", "train metrics on several devices")
def _() -> None:
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    class System(torch.nn.Linear):
        _ddp_params_and_buffers_to_ignore = ("bias",)

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
    try:
        ignored = DistributedDataParallel(System(1, 1)).parameters_to_ignore
    finally:
        dist.destroy_process_group()
    assert set(ignored) == {"bias"}


# ---------------------------------------------------------------------------------------------------------------- DVC


@need("dvc", "dvc.rwlock.SCHEMA", "`make doctor` and the repair before a flow: DVC's lock file")
def _() -> None:
    from dvc.rwlock import SCHEMA
    from voluptuous import Invalid

    assert SCHEMA({"write": {"data": {"pid": 1, "cmd": "dvc"}}})["read"] == {}
    with pytest.raises(Invalid):
        SCHEMA({"write": []})


@need("dvc", "dvc.schema.COMPILED_LOCKFILE_SCHEMA", "`make doctor` and the repair before a flow: dvc.lock")
def _() -> None:
    from dvc.schema import COMPILED_LOCKFILE_SCHEMA
    from voluptuous import Invalid

    COMPILED_LOCKFILE_SCHEMA({"schema": "2.0", "stages": {"fit": {"cmd": "true"}}})
    with pytest.raises(Invalid):
        COMPILED_LOCKFILE_SCHEMA({"schema": "2.0", "stages": {"fit": {}}})


DVC_YAML = """\
stages:
  first: {cmd: echo 1 > one, deps: [raw], outs: [one]}
  second: {cmd: echo spoken; exit 3, deps: [one], outs: [two]}
"""


def dvc_repository() -> None:
    from dvc.repo import Repo

    Repo.init(no_scm=True).close()
    Path("dvc.yaml").write_text(DVC_YAML)
    Path("raw").write_text("edited")
    Path("raw.dvc").write_text("outs: [{md5: d41d8cd98f00b204e9800998ecf8427e, path: raw}]\n")


@need("dvc", "Repo.index, its graph and its stages", "the graph that the flows run")
def _() -> None:
    from pipelines.dvc_graph import Source, read_graph, read_sources

    dvc_repository()
    assert read_graph() == {"first": [], "second": ["first"]}
    assert read_sources() == [Source("raw.dvc", "raw", imported=False, available=True, edited=True)]


@need("dvc", "the listing of an import's source, and how an import is saved", "the update of an import")
def _() -> None:
    from dvc.repo import Repo

    from pipelines.tools import update

    Repo.init(no_scm=True).close()
    Path("source").mkdir()
    Path("source/one").write_text("1")
    with Repo(".") as repo:
        repo.imp_url("source", "imported")
    Path("source/two").write_text("2")
    update.main("imported.dvc")
    assert Path("imported/two").read_text() == "2"


@need("dvc", "the messages of `dvc repro`", "a flow's error and log: a stage's own message instead of DVC's")
def _() -> None:
    from pipelines import stage_process

    dvc_repository()
    command = [sys.executable, "-m", "dvc", "repro"]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "DVC_NO_ANALYTICS": "1"}, check=False
    )
    lines = (done.stdout + done.stderr).splitlines()
    assert "Running stage 'second':" in lines
    assert "> echo spoken; exit 3" in lines
    assert stage_process._explain(lines, done.returncode) == (3, "spoken"), lines


# ------------------------------------------------------------------------------------------------------------ Prefect


@need("prefect", "a state named TimedOut", "the error of pipelines.stage_time_limit")
def _() -> None:
    from prefect.task_engine import AsyncTaskRunEngine

    assert 'name="TimedOut"' in inspect.getsource(AsyncTaskRunEngine.handle_timeout)


@need("prefect", "prefect.exceptions.TerminationSignal", "a flow's exit code after SIGTERM")
def _() -> None:
    from prefect.exceptions import TerminationSignal

    assert issubclass(TerminationSignal, BaseException)


@need("prefect", "get_client starts the temporary server", "a flow without a Prefect server")
def _() -> None:
    from prefect.client.orchestration import SyncPrefectClient, get_client

    assert "SubprocessASGIServer()" in inspect.getsource(get_client)
    assert isinstance(SyncPrefectClient.api_url, property)


@need("prefect", "PREFECT__FLOW_RUN_ID holds the id of a worker's flow run", "the flow's id in the MLflow run")
def _() -> None:
    from prefect.runtime import flow_run

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT__FLOW_RUN_ID", "4f8d")
        assert flow_run.get_id() == "4f8d"


# ------------------------------------------------------------------------------------------------------------- MLflow


@need("mlflow", "the names of its error codes", "first runs at the same time, and a registry without a champion")
def _() -> None:
    from mlflow.protos.databricks_pb2 import ErrorCode

    for name in ("RESOURCE_ALREADY_EXISTS", "RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
        assert isinstance(ErrorCode.Value(name), int)


@need("mlflow", "the tag mlflow.source.git.commit", "the commit on the page of a run")
def _() -> None:
    from mlflow.utils.mlflow_tags import MLFLOW_GIT_COMMIT

    assert MLFLOW_GIT_COMMIT == "mlflow.source.git.commit"


@need("mlflow", "its store of SQL as a module", "the warm process, which imports it while the first stage runs")
def _() -> None:
    assert importlib.util.find_spec("mlflow.store.tracking.sqlalchemy_store")


@need("mlflow", "log_model's argument validate_serving_input", "the end of a fit: MLflow would load the model again")
def _() -> None:
    from mlflow.models import Model

    assert 'kwargs.get("validate_serving_input", True)' in inspect.getsource(Model.log)


# --------------------------------------------------------------------------------------------------------------- tests


@pytest.mark.parametrize("one", NEEDS, ids=lambda one: f"{one.library}: {one.what}: {one.feature}")
def test_each_undocumented_feature_that_refit_needs_still_exists(one: Need) -> None:
    one.check()


def test_every_private_name_in_use_is_listed_here() -> None:
    """Except methods that override a private method."""
    files = [path for room in ("refit", "stages", "pipelines") for path in (ROOT / room).rglob("*.py")]
    nodes = [node for path in files for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))]
    ours, used = {"_exit", "_asdict", "_replace", "_make", "_fields"}, set()  # the first five belong to Python
    for node in nodes:
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                ours.add(node.name)
            case ast.Name(ctx=ast.Store()):
                ours.add(node.id)
            case ast.Attribute(ctx=ast.Store(), value=ast.Name(id="self")):
                ours.add(node.attr)
            case ast.Attribute():
                used.add(node.attr)
            case ast.ImportFrom(module=str(module)) if not module.startswith(("refit", "stages", "pipelines")):
                used |= {*module.split("."), *(alias.name for alias in node.names)}
    private = {name for name in used - ours if re.match(r"_[a-zA-Z]", name)}
    listed = " ".join(one.what for one in NEEDS)
    assert [name for name in sorted(private) if name not in listed] == []
