"""MLflow's model registry: the versions of a model, and which of them is the champion.

The run of a version also holds what a fair comparison with a later model needs: the model artifact, which is read
without unpickling, and which images it was trained on.
"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from refit.artifacts.files import read_csv, read_json
from refit.artifacts.model import RECORD, WEIGHTS, model_name, model_sha256
from refit.artifacts.paths import OUTCOMES, PREPARED, TEST
from refit.artifacts.prepared import read_hashes
from refit.runtime.errors import UserError
from refit.tracking.outbox import SYNC, outbox_part
from refit.tracking.store import DEBUG_TAG, MODEL_TAG, ModelStore, open_store

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

CHAMPION = "champion"
"""The alias of the version in use: models:/NAME@champion."""
_ARTIFACT = "artifact"
_SEEN = "seen.npy"
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


class SavedVersion(NamedTuple):
    """What MLflow holds of a version."""

    model_dir: Path
    seen: NDArray[np.uint64] | None
    """Short hashes of the images it was trained or selected on; None if they are not known."""
    predicted: dict[str, str]
    """Its prediction for each test image when it was registered, by the image's name; empty if that is not known."""


def register(model_dir: Path, name: str) -> tuple[Version, bool]:
    """Make the model in `model_dir` a version of the registered model `name`: the version, and whether it is new.

    Raises UserError if no run holds the model, or MLflow refuses the name or cannot be reached.
    """
    sha256 = model_sha256(model_dir)
    with open_store() as store:
        known = _find_version(store, name, sha256)
        version = known or _new_version(store, name, sha256)
        saved = _saved_files(store, version)
        if WEIGHTS not in saved or (_SEEN not in saved and _is_of_prepared_data(model_dir)):
            _save(store, version, model_dir)
        return version, known is None


def find_version(name: str, sha256: str) -> Version | None:
    """The version of this model; None if it has none. Raises UserError if MLflow cannot be reached."""
    with open_store() as store:
        return _find_version(store, name, sha256)


def find_champion(name: str) -> Version | None:
    """The champion among the versions of `name`; None if there is none yet. Raises UserError if MLflow cannot be
    reached, or the alias was given to a version that `register` did not make."""
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
    """Move the alias to this version, and write the reason into its description."""
    with open_store() as store:
        store.client.update_model_version(version.name, version.number, why)
        store.client.set_model_version_tag(version.name, version.number, _WAS_CHAMPION, "true")
        store.client.set_registered_model_alias(version.name, CHAMPION, version.number)


def fetch(version: Version, folder: Path) -> SavedVersion:
    """Download what MLflow holds of a version to `folder`. Raises UserError if it does not hold the model."""
    with open_store() as store:
        if WEIGHTS not in _saved_files(store, version):
            raise UserError(
                f"MLflow at {store.shown_uri} does not hold the files of {version.uri}; check out the commit that made "
                "it, and run: dvc checkout && make register"
            )
        model = Path(store.client.download_artifacts(version.run_id, _ARTIFACT, str(folder)))
    seen, outcomes = model / _SEEN, model / OUTCOMES.name
    predicted = {row["file"]: row["predicted"] for row in read_csv(outcomes)} if outcomes.is_file() else {}
    return SavedVersion(model, np.load(seen) if seen.is_file() else None, predicted)


def was_tested(sha256: str) -> bool:
    """Whether the metrics in data/evaluation are those of this model."""
    return TEST.is_file() and read_json(TEST, "dvc repro test").get("tested") == model_name(sha256)


def short_hashes(sha256: list[str]) -> NDArray[np.uint64]:
    """The first 8 bytes of each: enough to tell apart the images of a data set."""
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
    from mlflow.utils.logging_utils import disable_logging, enable_logging

    run = store.find_run(sha256)
    if run is None and outbox_part(sha256, "fit").is_dir():
        raise UserError(f"MLflow does not have the run of model {model_name(sha256)} yet; to send it: {SYNC}")
    if run is None:
        raise UserError(
            f"MLflow at {store.shown_uri} holds no run of model {model_name(sha256)}; "
            "to train it again: dvc repro --force --single-item fit"
        )
    if DEBUG_TAG in run.data.tags:
        raise UserError(
            f"MLflow's run {run.info.run_name} is a debug run, whose model cannot be registered; undo the "
            "changes to the debug section of params.yaml, and run: dvc repro"
        )
    outputs = run.outputs.model_outputs if run.outputs else []
    models = [store.client.get_logged_model(output.model_id) for output in outputs]
    ready = [model.model_id for model in models if model.status == LoggedModelStatus.READY]
    if not ready:
        raise UserError(f"MLflow's run {run.info.run_name} holds no model: it could not be exported")
    mlflow.set_tracking_uri(store.uri)
    # MLflow prints what succeeds, whatever its logging level. What fails is an exception.
    disable_logging()  # type: ignore[no-untyped-call]
    try:
        return _version(mlflow.register_model(f"models:/{ready[0]}", name, tags={MODEL_TAG: sha256}))
    finally:
        enable_logging()  # type: ignore[no-untyped-call]


def _saved_files(store: ModelStore, version: Version) -> set[str]:
    return {Path(file.path).name for file in store.client.list_artifacts(version.run_id, _ARTIFACT)}


def _save(store: ModelStore, version: Version, model_dir: Path) -> None:
    """Upload the files, the weights last: a version that has them is complete."""
    if _is_of_prepared_data(model_dir):
        with TemporaryDirectory() as folder:
            seen = Path(folder, _SEEN)
            np.save(seen, np.unique(short_hashes(read_hashes("train", "val"))))
            store.client.log_artifact(version.run_id, str(seen), _ARTIFACT)
    else:
        print(f"warning: {PREPARED} is not the data that the model was trained on, so which images it saw is not "
              "recorded", file=sys.stderr)  # fmt: skip
    outcomes = [OUTCOMES] if was_tested(version.sha256) and OUTCOMES.is_file() else []
    for file in (*outcomes, model_dir / RECORD, model_dir / WEIGHTS):
        store.client.log_artifact(version.run_id, str(file), _ARTIFACT)


def _is_of_prepared_data(model_dir: Path) -> bool:
    trained_on = read_json(model_dir / RECORD, "dvc repro fit").get("data_sha256")
    info = PREPARED / "dataset.json"
    return info.is_file() and read_json(info, "dvc repro prepare").get("sha256") == trained_on
