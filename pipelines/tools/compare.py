"""A table of the experiments of the last commits for each data set, best validation accuracy first: `make compare`.

`dvc exp show` has every parameter and hash, and shows what dvc.lock names even where it belongs to another model. Here
a metric is a dash unless this row's parameters, data and model gave it, and no line is wider than the terminal.
"""

import json
import shutil
import subprocess
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from dvc.exceptions import DvcException
from dvc.repo import Repo
from dvc.utils.serialize import parse_yaml

from refit.artifacts import metrics
from refit.artifacts.checked import resolved_as
from refit.artifacts.paths import CHECKED, FIT, FIT_METRICS, TEST, TEST_METRICS
from refit.params import PARAMS_FILE, DataParams, Params, check_params
from refit.params.data import data_name
from refit.params.dotted import flatten
from refit.params.reads import READS
from refit.runtime.command import run_command
from refit.runtime.errors import UserError

COMMITS = 3
LOCK = "dvc.lock"
WORKSPACE = "workspace"
_IN_TITLE = ("data.source", "data.root")
_LONGEST_NAME = 32
_WIDE = 140  # columns, if the output is no terminal
_METRICS = {
    "val accuracy": ("fit", {FIT_METRICS: "val_acc", FIT: "val_accuracy"}),
    "val loss": ("fit", {FIT_METRICS: "val_loss", FIT: "val_loss"}),
    "test accuracy": ("test", {TEST_METRICS: "test_acc", TEST: "accuracy"}),
}
"""Columns: the stage that measures each, and its key in a file of metrics; the second file is of an earlier version."""


class Row(NamedTuple):
    """The workspace, a commit or an experiment."""

    name: str
    data: str
    params: dict[str, Any]
    """By dotted key."""
    code: Mapping[str, str] | None
    """What check recorded of the code of its fit; None if that is not known."""
    metrics: dict[str, float]
    """By column; those that belong to its parameters, data and model."""


def main() -> None:
    width = shutil.get_terminal_size((_WIDE, 0)).columns
    print("\n".join(as_text(list(read_rows()), width)))


def read_rows() -> Iterator[Row]:
    """The workspace, the last commit, and of those before it each that has experiments or was run on the workspace's
    data, with their experiments. Raises UserError outside a DVC repository."""
    try:
        repo = Repo()
        states = repo.experiments.show(num=COMMITS)
    except DvcException as error:
        raise UserError(f"the experiments cannot be read: {error}") from None
    data = None  # the workspace's, which comes first
    for number, state in enumerate(states):
        row = read_row(repo, state, state.name or (state.rev if state.rev == WORKSPACE else state.rev[:7]))
        data = data or row.data
        # An older commit may have been run by somebody else, on other data, or never.
        if number < 2 or state.experiments or (row.metrics and row.data == data):
            yield row
        for experiment in state.experiments or []:
            found = experiment.executor.state if experiment.executor else "success"
            name = experiment.revs[0].name or experiment.revs[0].rev[:7]
            yield read_row(repo, experiment.revs[0], name if found == "success" else f"{name} ({found})")


def read_row(repo: Repo, state: Any, name: str) -> Row:
    """`state` is DVC's ExpState."""
    files = state.data.metrics if state.data else {}
    params = (state.data.params if state.data else {}).get(str(PARAMS_FILE), {}).get("data") or {}
    lock = read_lock(state.rev)
    checked = {stage: read_checked(repo, stage, entry) for stage, entry in lock.items()}
    right = {stage for stage, entry in lock.items() if ran_with(stage, entry, checked[stage], params)}
    measured = {}
    for column, (stage, keys) in _METRICS.items():
        found = [files.get(str(file), {}).get("data", {}).get(key) for file, key in keys.items()]
        value = next((value for value in found if value is not None), None)
        if value is not None and is_current(stage, lock, right):
            measured[column] = float(value)
    data = {**DataParams().model_dump(), **(params.get("data") or {})}
    return Row(
        name, data_name(data["source"], data["root"]), flatten(params), checked.get("fit", {}).get("code"), measured
    )


def read_lock(revision: str) -> dict[str, Any]:
    """The stages of dvc.lock; empty if the revision has none."""
    if revision == WORKSPACE:
        text = Path(LOCK).read_text(encoding="utf-8") if Path(LOCK).is_file() else ""
    else:
        command = ["git", "show", f"{revision}:./{LOCK}"]
        text = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    stages: dict[str, Any] = (parse_yaml(text, LOCK) or {}).get("stages", {})
    return stages


def read_checked(repo: Repo, stage: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    """What `check` had recorded when the stage last ran, from DVC's cache. Empty if it is not there.

    `entry` is the stage's part of dvc.lock.
    """
    hashes = [dep["md5"] for dep in entry.get("deps", []) if dep["path"] == str(CHECKED / f"{stage}.json")]
    with suppress(IndexError, OSError):
        checked: dict[str, Any] = json.loads(Path(repo.cache.local.oid_to_path(hashes[0])).read_text(encoding="utf-8"))
        return checked if "code" in checked else {"code": checked}  # an earlier version recorded the code alone
    return {}


def ran_with(stage: str, entry: Mapping[str, Any], checked: Mapping[str, Any], params: Mapping[str, Any]) -> bool:
    """Whether the stage last ran with these parameters, which are nested; as far as is known."""
    if stage not in READS or "params" in entry:  # dvc.lock is of an earlier version, and names the sections
        recorded = entry.get("params", {}).get(str(PARAMS_FILE), {})
        return all(params.get(section) == values for section, values in recorded.items())
    try:
        recorded = checked.get("params", {})
        return bool(recorded == resolved_as(check_params(params), stage, recorded).values(*READS[stage]))
    except UserError:  # this experiment failed because of them
        return False


def is_current(stage: str, lock: Mapping[str, Any], right: Container[str]) -> bool:
    """Whether the stage last ran with the right parameters, and on what the stages before it last wrote, which they
    wrote with the right parameters too. `lock` is the stages of dvc.lock; `right` are those with the right ones."""
    if stage not in lock or stage not in right:
        return False
    written = {out["path"]: (name, out.get("md5")) for name, entry in lock.items() for out in entry.get("outs", [])}
    before = [(*written[dep["path"]], dep.get("md5")) for dep in lock[stage].get("deps", []) if dep["path"] in written]
    return all(now == then and is_current(name, lock, right) for name, now, then in before)


def as_text(rows: Sequence[Row], width: int) -> list[str]:
    """A table for each data set, no line wider than `width`; the workspace's data come first."""
    if not rows:
        return ["there are no experiments yet; run: dvc exp run -S KEY=VALUE"]
    base = next((row for row in rows if row.name != WORKSPACE), rows[0])
    lines = []
    for data in dict.fromkeys(row.data for row in rows):
        mine = sorted((row for row in rows if row.data == data), key=_best_first)
        lines += [data, *_table(mine, base, width), ""]
    if any(len(row.metrics) < len(_METRICS) for row in rows):
        lines.append("- : not measured yet with this row's parameters and data")
    else:
        lines.pop()
    return [_cut(line, width) for line in lines]


def _table(rows: Sequence[Row], base: Row, width: int) -> list[str]:
    table = [["experiment", *_METRICS, f"differs from {base.name}"]]
    for row in rows:
        values = [f"{row.metrics[column]:.4f}" if column in row.metrics else "-" for column in _METRICS]
        table.append([_cut(row.name, _LONGEST_NAME), *values, _differences(row, base)])
    first, *middle, _ = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        "  ".join([f"  {name:<{first}}", *map(str.rjust, values, middle), differs]).rstrip()
        for name, *values, differs in table
    ]


def _differences(row: Row, base: Row) -> str:
    defaults = flatten(Params().model_dump())  # of keys that a params.yaml does not have
    changed = {}
    for key in dict.fromkeys([*base.params, *row.params]):
        then, now = (params.get(key, defaults.get(key)) for params in (base.params, row.params))
        if now != then and not (key in _IN_TITLE and row.data != base.data):
            changed[key] = now
    other_code = row.code and base.code and row.code != base.code
    return f"{metrics.as_text(changed)}{' (other code)' if other_code else ''}".strip()


def _best_first(row: Row) -> tuple[float, float, float]:
    accuracy, loss, test = (row.metrics.get(column) for column in _METRICS)
    return -(accuracy or 0), float("inf") if loss is None else loss, -(test or 0)


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}\N{HORIZONTAL ELLIPSIS}"


if __name__ == "__main__":
    run_command(main)
