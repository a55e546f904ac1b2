"""The metrics that DVC tracks: each of their keys is a column of `dvc exp show`, in this order.

They are few, so that the columns fit a terminal; data/evaluation has all metrics. DVC also shows texts as they are, so
two columns tell what was trained: the name of the data, and the parameters that differ from their defaults.
"""

from collections.abc import Mapping

from refit.artifacts.choices import BatchChoice
from refit.artifacts.files import write_json
from refit.artifacts.paths import FIT_METRICS, TEST_METRICS
from refit.artifacts.prepared import DatasetInfo
from refit.params import Params
from refit.params.dotted import as_yaml, changed_params, flatten, short_names

Metrics = Mapping[str, float | None]


def write_fit_metrics(best: Metrics, params: Params, batch: BatchChoice, info: DatasetInfo) -> None:
    """`best` is the row of the best epoch in history.csv; `params` are the sections that the fit read."""
    names = dict.fromkeys(("val_accuracy", "val_loss", params.fit.monitor))
    changed = changed_params(params)
    if batch.chosen_by == "params":  # a section that the fit does not read
        changed["batch.size"] = batch.effective_batch
    short = short_names(flatten(Params().model_dump()))
    write_json(
        FIT_METRICS,
        {
            **{name: best[name] for name in names if name in best},
            "data": info.name or info.source,
            "changed_params": " ".join(f"{short.get(key, key)}={as_yaml(value)}" for key, value in changed.items()),
        },
    )


def write_test_metrics(accuracy: float, own: Metrics) -> None:
    """`own` are the metrics that the system itself logs in its test."""
    write_json(TEST_METRICS, {"test_accuracy": accuracy, **{f"test_{name}": value for name, value in own.items()}})
