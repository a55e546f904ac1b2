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

from refit.data.prepared import PREPARED, read_hashes
from refit.files import read_json
from refit.tracking import DEBUG_TAG, DESCRIPTION, MODEL_TAG, WEIGHTS, ModelStore, model_name, model_sha256, open_store

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

CHAMPION = "champion"
"""The alias of the version in use: models:/NAME@champion."""
_ARTIFACT = "artifact"
_SEEN = "seen.npy"


class Version(NamedTuple):
    """A version of the registered model `name`."""

    name: str
    number: str
    sha256: str
    """Of its model."""
    run_id: str
    """Of the run that made it, with which its files lie."""

    @property
    def uri(self) -> str:
        return f"models:/{self.name}/{self.number}"


def register(model_dir: Path, name: str) -> tuple[Version, bool]:
    """Make the model in `model_dir` a version of the registered model `name`: the version, and whether it is new.

    Raises ValueError where there is no run that holds the model, MLflow refuses the name or cannot be reached.
    """
    sha256 = model_sha256(model_dir)
    with open_store() as store:
        known = store.client.search_model_versions(f"name = '{name}' and tags.{MODEL_TAG} = '{sha256}'")
        version = _version(known[0]) if known else _new_version(store, name, sha256)
        if not _is_kept(store, version):
            _keep(store, version, model_dir)
        return version, not known


def find_champion(name: str) -> Version | None:
    """The champion among the versions of `name`; None where none is yet. Raises ValueError where MLflow cannot be
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
            raise ValueError(
                f"models:/{name}@{CHAMPION} is version {version.version}, which Refit did not register; give the alias "
                "to one that `make register` made, or delete it"
            )
        return _version(version)


def make_champion(version: Version, why: str) -> None:
    """Give the version its alias, which leaves the one before it, and say why in its description."""
    with open_store() as store:
        store.client.update_model_version(version.name, version.number, why)
        store.client.set_registered_model_alias(version.name, CHAMPION, version.number)


def fetch_artifact(version: Version, folder: Path) -> tuple[Path, NDArray[np.uint64] | None]:
    """Write the version's model to `folder`: its own folder, and the short hashes of the images it was trained on or
    chosen by, sorted; None where they are not known. Raises ValueError where MLflow does not hold the model."""
    with open_store() as store:
        if not _is_kept(store, version):
            raise ValueError(
                f"MLflow at {store.shown_uri} does not hold the files of {version.uri}; check out the commit that made "
                "it, and run: dvc checkout && make register"
            )
        model = Path(store.client.download_artifacts(version.run_id, _ARTIFACT, str(folder)))
    seen = model / _SEEN
    return model, np.load(seen) if seen.is_file() else None


def short_hashes(sha256: list[str]) -> NDArray[np.uint64]:
    """The first 8 bytes of each: enough to tell the images of a data set from one another."""
    return np.array([int(digest[:16], 16) for digest in sha256], dtype=np.uint64)


def _version(known: "ModelVersion") -> Version:
    return Version(known.name, str(known.version), known.tags[MODEL_TAG], known.run_id or "")


def _new_version(store: ModelStore, name: str, sha256: str) -> Version:
    import mlflow
    from mlflow.entities import LoggedModelStatus

    run = store.find_run(sha256)
    if run is None:
        raise ValueError(
            f"MLflow at {store.shown_uri} holds no run of model {model_name(sha256)}; "
            "to train it again: dvc repro --force --single-item fit"
        )
    if DEBUG_TAG in run.data.tags:
        raise ValueError(
            f"MLflow's run {run.info.run_name} is a debug run, and its model none to register; take the debug "
            "section of params.yaml back to what it was, and run: dvc repro"
        )
    outputs = run.outputs.model_outputs if run.outputs else []
    models = [store.client.get_logged_model(output.model_id) for output in outputs]
    ready = [model.model_id for model in models if model.status == LoggedModelStatus.READY]
    if not ready:
        raise ValueError(f"MLflow's run {run.info.run_name} holds no model: it could not be exported")
    mlflow.set_tracking_uri(store.uri)
    return _version(mlflow.register_model(f"models:/{ready[0]}", name, tags={MODEL_TAG: sha256}))


def _is_kept(store: ModelStore, version: Version) -> bool:
    return any(Path(file.path).name == WEIGHTS for file in store.client.list_artifacts(version.run_id, _ARTIFACT))


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
    for name in (DESCRIPTION, WEIGHTS):
        store.client.log_artifact(version.run_id, str(model_dir / name), _ARTIFACT)


def _is_of_prepared_data(model_dir: Path) -> bool:
    trained_on = read_json(model_dir / DESCRIPTION, "dvc repro fit").get("data_sha256")
    info = PREPARED / "dataset.json"
    return info.is_file() and read_json(info, "dvc repro prepare").get("sha256") == trained_on
