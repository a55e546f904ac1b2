"""Where an MLflow run comes from: its name, its data set, and the tags of git, DVC and Prefect."""

import getpass
import json
import os
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from refit.artifacts.model import model_name
from refit.artifacts.prepared import DatasetInfo
from refit.params.data import data_name

_EXPERIMENT = "dvc_experiment"
_FROM_ENVIRONMENT = {_EXPERIMENT: "DVC_EXP_NAME", "prefect_flow_run_id": "PREFECT__FLOW_RUN_ID"}


def run_name(params: Mapping[str, str], tags: Mapping[str, str], model_sha256: str | None = None) -> str:
    """The data and DVC's experiment, such as `clothing / lr3`; without one, the data, the network and the model.

    `params` are those of the run, by dotted key.
    """
    data = data_name(params.get("data.source", ""), params.get("data.root", ""))
    network = [
        params[key] for key in ("model.system", "model.network") if params.get(key, "classifier") != "classifier"
    ]
    model = [model_name(model_sha256)] if model_sha256 else []
    fit = tags.get(_EXPERIMENT) or " ".join([*network, *model])
    return " / ".join(part for part in (data, fit) if part) or "fit"


def dataset_of(info: DatasetInfo, params: Mapping[str, Any]) -> dict[str, str]:
    """The arguments of MLflow's Dataset for the prepared data; `params` are nested."""
    profile = {"images": info.counts, "classes": info.classes, "shape": info.shape}
    return {
        "name": data_name(params["data"]["source"], params["data"]["root"]),
        "digest": model_name(info.sha256),
        "source_type": info.source.partition(":")[0],
        "source": json.dumps({"uri": params["data"]["root"]}),
        "profile": json.dumps(profile),
    }


def origin_tags() -> dict[str, str]:
    """The git commit and branch and the user, by the names that MLflow's UI shows; the DVC experiment, the flow run."""
    tags = {"mlflow.source.name": "stages/fit.py", "mlflow.source.type": "LOCAL"}
    with suppress(KeyError, OSError, ImportError):  # a container's user may have no name
        tags["mlflow.user"] = getpass.getuser()
    if commit := _git("rev-parse", "--verify", "HEAD"):
        changes = _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!dvc.lock")  # DVC writes that now
        tags |= {"mlflow.source.git.commit": commit, "git_dirty": str(bool(changes)).lower()}
    if branch := _git("symbolic-ref", "--quiet", "--short", "HEAD"):
        tags["mlflow.source.git.branch"] = branch
    return tags | {tag: os.environ[name] for tag, name in _FROM_ENVIRONMENT.items() if os.environ.get(name)}


def _git(*arguments: str) -> str | None:
    """The output of git; None without git, a repository, or what is asked for."""
    try:
        answer = subprocess.run(["git", *arguments], capture_output=True, text=True, check=True)
    except (FileNotFoundError, subprocess.CalledProcessError):
        return None
    return answer.stdout.strip()
