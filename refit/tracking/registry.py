"""MLflow's model registry: the versions of a model, and which of them is the champion.

With a version's run lie the artifact itself, read without unpickling, and which images it was trained on: what a fair
comparison with a later model needs.
"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from refit.artifacts.files import read_csv, read_json
from refit.artifacts.model import WEIGHTS, model_name, model_sha256
from refit.artifacts.prepared import PREPARED, read_hashes
from refit.runtime.errors import UserError
from refit.tracking.outbox import SYNC, unsent_part
from refit.tracking.runs import DEBUG_TAG, DESCRIPTION, MODEL_TAG, ModelStore, open_store

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

CHAMPION = "champion"
"""The alias of the version in use: models:/NAME@champion."""
_ARTIFACT = "artifact"
_SEEN = "seen.npy"
TEST, OUTCOMES = Path("data/evaluation/test.json"), Path("data/evaluation/outcomes.csv")
_WAS_CHAMPION = "was_champion"


class Version(NamedTuple):
    """A version of the registered model `name`."""

    name: str
    number: str
    sha256: str
    """Of its model."""
    run_id: str
    """Of the run that made it, with which its files lie."""
    was_champion: bool
    """Now or before."""

    @property
    def uri(self) -> str:
        return f"models:/{self.name}/{self.number}"


class Kept(NamedTuple):
    """What is kept of a version."""

    model_dir: Path
    seen: NDArray[np.uint64] | None
    """Short hashes of the images it was trained on or chosen by; None where they are not known."""
    predicted: dict[str, str]
    """What it took each test image for when it was registered, by the image's name; empty where that is not known."""


def register(model_dir: Path, name: str) -> tuple[Version, bool]:
    """Make the model in `model_dir` a version of the registered model `name`: the version, and whether it is new.

    Raises UserError where there is no run that holds the model, MLflow refuses the name or cannot be reached.
    """
    sha256 = model_sha256(model_dir)
    with open_store() as store:
        known = _find_version(store, name, sha256)
        version = known or _new_version(store, name, sha256)
        kept = _kept(store, version)
        if WEIGHTS not in kept or (_SEEN not in kept and _is_of_prepared_data(model_dir)):
            _keep(store, version, model_dir)
        return version, known is None


def find_version(name: str, sha256: str) -> Version | None:
    """The version of this model; None where it is none. Raises UserError where MLflow cannot be reached."""
    with open_store() as store:
        return _find_version(store, name, sha256)


def find_champion(name: str) -> Version | None:
    """The champion among the versions of `name`; None where none is yet. Raises UserError where MLflow cannot be
    reached, or where the alias was given to a version that `register` did not make."""
    with open_store() as store:
        from mlflow.exceptions import MlflowException

        try:
            version = store.client.get_model_version_by_alias(name, CHAMPION)
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):  # no such model; no alias
                return None
            raise
        if MODEL_TAG not in version.tags:
            raise UserError(
                f"models:/{name}@{CHAMPION} is version {version.version}, which Refit did not register; give the alias "
                "to one that `make register` made, or delete it"
            )
        return _version(version)


def make_champion(version: Version, why: str) -> None:
    """Give the version its alias, which leaves the one before it, and say why in its description."""
    with open_store() as store:
        store.client.update_model_version(version.name, version.number, why)
        store.client.set_model_version_tag(version.name, version.number, _WAS_CHAMPION, "true")
        store.client.set_registered_model_alias(version.name, CHAMPION, version.number)


def fetch(version: Version, folder: Path) -> Kept:
    """Bring what is kept of a version to `folder`. Raises UserError where MLflow does not hold its model."""
    with open_store() as store:
        if WEIGHTS not in _kept(store, version):
            raise UserError(
                f"MLflow at {store.shown_uri} does not hold the files of {version.uri}; check out the commit that made "
                "it, and run: dvc checkout && make register"
            )
        model = Path(store.client.download_artifacts(version.run_id, _ARTIFACT, str(folder)))
    seen, outcomes = model / _SEEN, model / OUTCOMES.name
    predicted = {row["file"]: row["predicted"] for row in read_csv(outcomes)} if outcomes.is_file() else {}
    return Kept(model, np.load(seen) if seen.is_file() else None, predicted)


def was_tested(sha256: str) -> bool:
    """Whether the figures in data/evaluation are of this model."""
    return TEST.is_file() and read_json(TEST, "dvc repro test").get("tested") == model_name(sha256)


def short_hashes(sha256: list[str]) -> NDArray[np.uint64]:
    """The first 8 bytes of each: enough to tell the images of a data set from one another."""
    return np.array([int(digest[:16], 16) for digest in sha256], dtype=np.uint64)


def _find_version(store: ModelStore, name: str, sha256: str) -> Version | None:
    versions = store.client.search_model_versions(f"name = '{name}' and tags.{MODEL_TAG} = '{sha256}'")
    return _version(versions[0]) if versions else None


def _version(known: "ModelVersion") -> Version:
    tags = known.tags
    return Version(known.name, str(known.version), tags[MODEL_TAG], known.run_id or "", _WAS_CHAMPION in tags)


def _new_version(store: ModelStore, name: str, sha256: str) -> Version:
    import mlflow
    from mlflow.entities import LoggedModelStatus

    run = store.find_run(sha256)
    if run is None and unsent_part(sha256, "fit").is_dir():
        raise UserError(f"MLflow misses the run of model {model_name(sha256)}; to send it: {SYNC}")
    if run is None:
        raise UserError(
            f"MLflow at {store.shown_uri} holds no run of model {model_name(sha256)}; "
            "to train it again: dvc repro --force --single-item fit"
        )
    if DEBUG_TAG in run.data.tags:
        raise UserError(
            f"MLflow's run {run.info.run_name} is a debug run, and its model none to register; take the debug "
            "section of params.yaml back to what it was, and run: dvc repro"
        )
    outputs = run.outputs.model_outputs if run.outputs else []
    models = [store.client.get_logged_model(output.model_id) for output in outputs]
    ready = [model.model_id for model in models if model.status == LoggedModelStatus.READY]
    if not ready:
        raise UserError(f"MLflow's run {run.info.run_name} holds no model: it could not be exported")
    mlflow.set_tracking_uri(store.uri)
    return _version(mlflow.register_model(f"models:/{ready[0]}", name, tags={MODEL_TAG: sha256}))


def _kept(store: ModelStore, version: Version) -> set[str]:
    return {Path(file.path).name for file in store.client.list_artifacts(version.run_id, _ARTIFACT)}


def _keep(store: ModelStore, version: Version, model_dir: Path) -> None:
    """Of the files the weights come last: where they are, all are."""
    if _is_of_prepared_data(model_dir):
        with TemporaryDirectory() as folder:
            seen = Path(folder, _SEEN)
            np.save(seen, np.unique(short_hashes(read_hashes("train", "val"))))
            store.client.log_artifact(version.run_id, str(seen), _ARTIFACT)
    else:
        print(f"warning: {PREPARED} is of other data than the model, so which images it saw is not kept with it",
              file=sys.stderr)  # fmt: skip
    outcomes = [OUTCOMES] if was_tested(version.sha256) and OUTCOMES.is_file() else []
    for file in (*outcomes, model_dir / DESCRIPTION, model_dir / WEIGHTS):
        store.client.log_artifact(version.run_id, str(file), _ARTIFACT)


def _is_of_prepared_data(model_dir: Path) -> bool:
    trained_on = read_json(model_dir / DESCRIPTION, "dvc repro fit").get("data_sha256")
    info = PREPARED / "dataset.json"
    return info.is_file() and read_json(info, "dvc repro prepare").get("sha256") == trained_on
