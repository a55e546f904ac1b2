"""The metrics that DVC tracks: each of their keys is a column of `dvc exp show`, in this order.

They are few, so that the columns fit a terminal; data/evaluation has all metrics. DVC also shows texts as they are, so
two columns tell what was trained: the name of the data, and the parameters that differ from their defaults.
"""

from collections.abc import Mapping

from refit.artifacts.choices import BatchChoice
from refit.artifacts.files import write_json
from refit.artifacts.paths import DATA_METRICS, FIT_METRICS, TEST_METRICS
from refit.params import DataParams, Params
from refit.params.data import data_name
from refit.params.dotted import as_in_yaml, flatten, not_at_default, short_names

Metrics = Mapping[str, float | None]


def changed_params(params: Params, batch: BatchChoice) -> str:
    """The parameters of a fit that are not at their defaults; `params` are the sections that it read."""
    changed = not_at_default(params)
    if batch.chosen_by == "params":  # of a section that the fit does not read
        changed["batch.size"] = batch.effective_batch
    return as_text(changed)


def as_text(changed: Mapping[str, object]) -> str:
    """Values by dotted key, for narrow tables, such as `width=8 max_epochs=3`."""
    short = short_names(flatten(Params().model_dump()))
    return " ".join(f"{short.get(key, key)}={as_in_yaml(value)}" for key, value in changed.items())


def write_data_metrics(data: DataParams, decisions: int = 0) -> None:
    """The name of the data, and the number of decisions about its images if there are any: in a file of its own, so
    that the same images in another folder retrain nothing."""
    decided = {"decisions": decisions} if decisions else {}
    write_json(DATA_METRICS, {"data": data_name(data.source, data.root), **decided})


def write_fit_metrics(best: Metrics, monitor: str, changed: str) -> None:
    """`best` is the row of the best epoch in history.csv; `changed` are the changed_params."""
    shown = {"val_accuracy": "val_acc", "val_loss": "val_loss"}  # short: the columns share a terminal's width
    shown.setdefault(monitor, monitor)
    metrics = {short: best[name] for name, short in shown.items() if name in best}
    write_json(FIT_METRICS, {**metrics, "changed_params": changed})


def write_test_metrics(score: str, value: float, logged: Metrics) -> None:
    """`score` is the name of the metric that compares models; `logged` are those that the system logs in its test."""
    short = {"accuracy": "acc"}.get(score, score)
    write_json(TEST_METRICS, {f"test_{short}": value, **{f"test_{name}": value for name, value in logged.items()}})
