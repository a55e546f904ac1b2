"""The advice on real runs: data sets with one artificial fault, and healthy ones."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from refit.artifacts.paths import FINDINGS, PREPARED
from tests.fixtures import Fit, run_test

SPLITS = ("train", "val", "test")
Images = np.ndarray[Any, Any]
Change = Callable[[str, Images, Images], tuple[Images, Images]]
"""A function from a split's name, images and labels to its new images and labels."""


def rewrite(change: Change) -> None:
    info = json.loads((PREPARED / "dataset.json").read_text())
    for split in SPLITS:
        files = [PREPARED / f"{split}_{kind}.npy" for kind in ("images", "labels")]
        images, labels = change(split, *(np.load(file) for file in files))
        np.save(files[0], images)
        np.save(files[1], labels)
        info["counts"][split] = len(labels)
    (PREPARED / "dataset.json").write_text(json.dumps(info))


def found_in(fitted: Fit, **keys: object) -> list[str]:
    fitted(learning_rate=0.005, **{"model__network": "mlp", "model__width": 32, "fit__max_epochs": 12} | keys)
    run_test(report=False)
    return [f"{finding['what']}. {finding['remedy']}" for finding in json.loads(FINDINGS.read_text())["findings"]]


def few_of_two_classes(split: str, images: Images, labels: Images) -> tuple[Images, Images]:
    rare = np.isin(labels, [3, 8])
    kept = ~rare | (np.cumsum(rare) <= 4) if split != "test" else np.ones(len(labels), bool)
    return images[kept], labels[kept]


def wrong_labels(split: str, images: Images, labels: Images) -> tuple[Images, Images]:
    return images, np.random.default_rng(0).permutation(labels)


def another_test_set(split: str, images: Images, labels: Images) -> tuple[Images, Images]:
    return (images[:, :, ::-1].copy() if split == "test" else images), labels


def few(split: str, images: Images, labels: Images) -> tuple[Images, Images]:
    return (images[:128], labels[:128]) if split == "train" else (images, labels)


def eight_test_images(split: str, images: Images, labels: Images) -> tuple[Images, Images]:
    return (images[:8], labels[:8]) if split == "test" else (images, labels)


def as_it_is(split: str, images: Images, labels: Images) -> tuple[Images, Images]:
    return images, labels


def five_classes(split: str, images: Images, labels: Images) -> tuple[Images, Images]:
    return images[labels < 5], labels[labels < 5]


@pytest.mark.parametrize(
    ("change", "keys", "said"),
    [
        (
            few_of_two_classes, {},
            [
                "Little can be learned or said of 3 (", "is classified correctly",
                "`dvc exp run -S loss.class_weights=balanced`",
            ],
        ),
        (wrong_labels, {}, ["always answering with the largest class"]),
        (another_test_set, {}, ["the splits differ"]),
        (few, {"fit__max_epochs": 30}, ["Over-fitting: in the best epoch"]),
        (few, {"model__width": 512, "fit__max_epochs": 2}, ["a smaller model.network"]),
        (as_it_is, {"fit__max_epochs": 2}, ["was still falling at the end"]),
        (eight_test_images, {}, ["With 8 test images"]),
    ],
)  # fmt: skip
def test_a_data_set_with_a_fault_gets_the_matching_advice(
    change: Change, keys: dict[str, object], said: list[str], fitted: Fit
) -> None:
    rewrite(change)
    found = "\n".join(found_in(fitted, **keys))
    assert [part for part in said if part not in found] == [], found


@pytest.mark.parametrize(
    ("change", "keys"),
    [
        (as_it_is, {"fit__max_epochs": 20}),
        (as_it_is, {"model__network": "cnn", "model__width": 8}),
        (as_it_is, {"augment__shift": 1, "model__width": 64, "fit__max_epochs": 20}),
        (five_classes, {"fit__max_epochs": 20}),
    ],
)
def test_a_healthy_run_gets_no_advice(change: Change, keys: dict[str, object], fitted: Fit) -> None:
    rewrite(change)
    assert found_in(fitted, **keys) == []
