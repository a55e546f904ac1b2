"""The outputs of the layers before a network's head for the prepared images, for a fit that trains the head alone.

`data/features` has `SPLIT.npy`, float32 (N, D), for each split, and `features.json`. It has no splits if all layers are
trained.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from refit.artifacts.files import read_json, whole_folder, write_json
from refit.artifacts.paths import FEATURES

RECORD = "features.json"

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class FeaturesInfo:
    """The content of features.json."""

    splits: list[str]
    backbone_sha256: str
    """Of the layers before the head."""
    data_sha256: str
    """Of the prepared data set."""


NONE = FeaturesInfo([], "", "")


def write_features(info: FeaturesInfo, features: Mapping[str, Array]) -> None:
    """Write the features of each split, in the order of the split's rows."""
    with whole_folder(FEATURES) as folder:
        for split in info.splits:
            np.save(folder / f"{split}.npy", features[split])
        write_json(folder / RECORD, asdict(info))


def has_features() -> bool:
    return (FEATURES / RECORD).exists() and bool(_read_info().splits)


def read_features(split: str, backbone_sha256: str, data_sha256: str) -> Array | None:
    """The features of a split, if they are of this backbone and of this data set."""
    info = _read_info()
    if info != FeaturesInfo(info.splits, backbone_sha256, data_sha256) or split not in info.splits:
        return None
    features: Array = np.load(FEATURES / f"{split}.npy")
    return features


def read_features_of_data(data_sha256: str) -> dict[str, Array] | None:
    """The features of each split of this data set, whichever backbone computed them. None if data/features has features
    of another data set, or none at all."""
    if not has_features() or (info := _read_info()).data_sha256 != data_sha256:
        return None
    return {split: np.load(FEATURES / f"{split}.npy") for split in info.splits}


def _read_info() -> FeaturesInfo:
    return FeaturesInfo(**read_json(FEATURES / RECORD, "dvc repro features"))
