"""Each rule of the advice: one case with the fault, and one without it."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from dvc.utils.hydra import apply_overrides

from refit.evaluation.classification.baselines import Baselines, majority, nearest_neighbours
from refit.evaluation.classification.findings import Evidence, find
from refit.evaluation.classification.report import ClassificationReport, evaluate
from refit.evaluation.comparison import compare
from refit.params import Params, check_params, load_params
from refit.params.dotted import flatten

CLASSES = ["cat", "dog", "hat"]


def report_of(right: dict[str, tuple[int, int]]) -> ClassificationReport:
    """A report with the given numbers of correct and of all test images per class. Errors go to the next class."""
    labels, predicted = [], []
    for label, name in enumerate(CLASSES):
        correct, images = right[name]
        labels += [label] * images
        predicted += [label] * correct + [(label + 1) % 3] * (images - correct)
    probabilities = np.full((len(labels), 3), 0.1)
    probabilities[np.arange(len(labels)), predicted] = 0.8
    return evaluate(probabilities, np.array(labels), CLASSES, 0.95, 10)


def history_of(val_losses: list[float], train: float = 0.95, val: float = 0.93) -> list[dict[str, float]]:
    return [{"epoch": number, "val_loss": loss, "train_accuracy": train, "val_accuracy": val}
            for number, loss in enumerate(val_losses, start=1)]  # fmt: skip


def compared(both: int, only_model: int, only_neighbours: int, neither: int) -> Any:
    counts = (both, only_model, only_neighbours, neither)
    return compare(np.repeat([True, True, False, False], counts), np.repeat([True, False, True, False], counts), 0.95)


PARAMS = flatten(Params().model_dump())
HEALTHY = Evidence(
    report=report_of({"cat": (93, 100), "dog": (92, 100), "hat": (94, 100)}),
    baselines=Baselines(majority=0.333, neighbours=0.7),
    beside_neighbours=compared(205, 74, 5, 16),
    train_images=(400, 400, 400),
    val_images=300,
    history=history_of([1.0, 0.5, 0.3, 0.21, 0.205, 0.203, 0.204, 0.203, 0.202, 0.201]),
    best_epoch=10,
    chosen_by="find_lr",
    learning_rate=0.003,
    tested_rates=(1e-6, 1.0),
    network_weights=100_000,
    params=PARAMS,
)


def test_a_healthy_run_has_no_findings() -> None:
    assert find(HEALTHY) == []


BALANCED = PARAMS | {"loss.class_weights": "balanced"}
HEAD_ALONE = PARAMS | {"fit.train": "head", "model.weights": "data/weights/mine.safetensors"}
WITHOUT_HATS = report_of({"cat": (140, 140), "dog": (140, 140), "hat": (0, 20)})
POOR = report_of({"cat": (35, 100), "dog": (36, 100), "hat": (34, 100)})


FAULTS: list[tuple[dict[str, Any], str, str]] = [
    (
        {"report": POOR, "history": history_of([1.1, 1.1], train=0.36, val=0.35), "best_epoch": 1},
        r"^The test accuracy, 0\.350 \(0\.298 to 0\.406\), .*largest class: 0\.333$", "make sanity",
    ),
    (
        {"report": report_of({"cat": (60, 100), "dog": (60, 100), "hat": (60, 100)}),
         "baselines": Baselines(0.333, 0.61), "beside_neighbours": compared(150, 30, 33, 87),
         "history": history_of([1.1, 1.1], train=0.62, val=0.6), "best_epoch": 1},
        r"^The test accuracy, 0\.600, .* 5 nearest .*: 0\.610 \(difference -0\.010, -0\.06\d to \+0\.04\d\)$",
        "another optimizer.learning_rate, or pretrained weights (`dvc exp run -S model.network=torchvision:resnet18 ",
    ),
    (
        {"report": WITHOUT_HATS, "train_images": (560, 560, 80)},
        r"^No image of hat is classified correctly \(test images: 20\)$",
        "a loss that weights the classes (`dvc exp run -S loss.class_weights=balanced`), more images of these classes",
    ),
    (
        {"report": WITHOUT_HATS, "train_images": (560, 560, 80), "params": BALANCED},
        r"^No image of hat is classified", "more images of these classes, a check of their labels, or more epochs (`",
    ),
    (
        {"report": WITHOUT_HATS, "train_images": (1060, 60, 500)},
        r"^No image of hat is classified", "more images of these classes, a check of their labels, or more epochs (`",
    ),
    (
        {"report": WITHOUT_HATS, "train_images": (560, 560, 80), "params": HEAD_ALONE},
        r"^No image of hat is classified",
        "or fine-tuning the later layers (`dvc exp run -S fit.train=all -S fit.l2=auto -S fit.freeze_share=0.3 "
        "-S fit.max_epochs=5 -S batch.max_size=64 -S optimizer.learning_rate=0.004 "
        "-S optimizer.backbone_learning_rate=0.1`)",
    ),
    (
        {"history": history_of([1.0, 0.41, 0.4], train=0.999, val=0.8), "best_epoch": 3, "report":
         report_of({"cat": (80, 100), "dog": (80, 100), "hat": (81, 100)})},
        r"^Over-fitting: .* 0\.999 on the training images and 0\.800", "(`dvc exp run -S augment.crop_area=0.35`)",
    ),
    (
        {"history": history_of([1.0, 0.4, 0.5, 0.6, 0.7, 0.8]), "best_epoch": 2},
        r"^Over-fitting: .* lowest in epoch 2 of 6 \(0\.400\) and rose to 0\.800$",
        "fewer epochs (`dvc exp run -S fit.max_epochs=2`)",
    ),
    (
        {"history": history_of([1.0, 0.8, 0.6]), "best_epoch": 3},
        r"^The validation loss was still falling at the end: 0\.800 to 0\.600 in the last epoch of 3$",
        "more epochs (`dvc exp run -S fit.max_epochs=6`)",
    ),
    (
        {"report": report_of({"cat": (75, 100), "dog": (76, 100), "hat": (74, 100)})},
        r"^The accuracy is 0\.930 on 300 validation images and 0\.750 on 300 test images; by chance .* of \de-\d+$",
        "the splits differ",
    ),
    (
        {"train_images": (400, 400, 8)},
        r"^Little can be .* of hat \(8 training and 100 test images\): the largest class has 400 training images$",
        "more images of these classes, or a loss that weights the classes (`dvc exp run -S loss.class_weights=",
    ),
    (
        {"network_weights": 11_000_000},
        r"^The network learns 11,000,000 weights from 1,200 training images",
        "(`dvc exp run -S model.network=torchvision:resnet18 -S model.weights=DEFAULT`), a smaller model.network",
    ),
    (
        {"report": report_of({"cat": (3, 3), "dog": (3, 3), "hat": (2, 2)})},
        r"^With 8 test images the accuracy is only known to be between 0\.68 and 1\.00$",
        "raise data.test, which leaves fewer images for training",
    ),
    ({"chosen_by": "fallback", "learning_rate": 0.001}, "found no learning rate .* = 0.001$", "`make sanity`"),
    ({"learning_rate": 8e-6}, r"chose a learning rate of 8e-06, at the edge of .* 1e-06 to 1e\+00$",
     "(`dvc exp run -S optimizer.learning_rate=0.001`)"),
    ({"learning_rate": 0.4}, "chose a learning rate of 0.4, at the edge", "0.001"),
]  # fmt: skip
"""Changes to HEALTHY, a pattern of what is found, and a part of the remedy."""


@pytest.mark.parametrize(("changes", "what", "remedy"), FAULTS)
def test_a_fault_is_reported_with_its_metrics_and_a_remedy(changes: dict[str, Any], what: str, remedy: str) -> None:
    (finding,) = find(replace(HEALTHY, **changes))
    assert remedy in finding.remedy
    assert re.search(what, finding.what), finding.what


def test_class_weights_are_not_advised_for_a_missed_class_that_has_many_images() -> None:
    changes: dict[str, Any] = {"report": WITHOUT_HATS, "train_images": (1060, 60, 500)}
    (finding,) = find(replace(HEALTHY, **changes))
    assert "class_weights" not in finding.remedy


@pytest.mark.parametrize(
    "changes",
    [
        {"report": report_of({"cat": (93, 100), "dog": (92, 100), "hat": (0, 1)})},  # one image may just be difficult
        {"baselines": Baselines(0.333, 0.95), "beside_neighbours": compared(280, 5, 5, 10)},  # little is left to gain
        {"history": history_of([1.0, 0.4, 0.41, 0.42, 0.41, 0.42]), "best_epoch": 2},
        {"history": history_of([0.3])[:1], "best_epoch": 1},
        {"history": [{"epoch": 1, "val_reward": 3.0}], "best_epoch": 1},  # a user's own system
        {"network_weights": 11_000_000, "params": PARAMS | {"model.weights": "data/weights/mine.safetensors"}},
        {"params": PARAMS | {"model.network": "timm:resnet18", "model.weights": "DEFAULT"}, "network_weights": 10**9},
        {
            "chosen_by": "head",
            "learning_rate": 0.0,
            "tested_rates": None,
            "params": HEAD_ALONE,
            "history": history_of([1.0, 0.4, 0.6, 0.8, 1.0], train=0.999, val=0.8),
            "best_epoch": 2,
            "report": report_of({"cat": (80, 100), "dog": (80, 100), "hat": (81, 100)}),
        },  # weaker penalties overfit
        {"chosen_by": "params", "learning_rate": 1e-6, "tested_rates": None},
        {"learning_rate": 0.005, "tested_rates": (1e-6, 0.05)},  # the range test ended when the loss diverged
    ],
)
def test_chance_and_intended_settings_give_no_finding(changes: dict[str, Any]) -> None:
    assert find(replace(HEALTHY, **changes)) == []


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"model.width": 32, "model.dropout": 0.3},
        {"model.network": "torchvision:resnet50"},
        {"model.network": "mine.Network", "model.network_arguments": {"depth": 2}},
        {"model.system": "autoencoder"},
        {"model.weights": "data/weights/mine.safetensors"},
        {"model.network": "timm:resnet18"},
        {"fit.train": "head", "fit.l2": 1.0, "model.weights": "data/weights/mine.safetensors"},
        {"loss.class_weights": "balanced", "augment.crop_area": 0.5, "augment.policy": "randaugment"},
    ],
    ids=str,
)
def test_every_command_of_the_advice_works_as_pasted_and_changes_something(
    keys: dict[str, Any], tmp_path: Path
) -> None:
    before = Params().model_dump()
    for key, value in keys.items():
        section, name = key.split(".")
        before[section][name] = value
    params = flatten(check_params(before).model_dump())
    for changes, _, _ in FAULTS:
        for finding in find(replace(HEALTHY, **changes | {"params": params})):
            for command in re.findall("`(.+?)`", finding.remedy):
                if command == "make sanity":
                    continue
                assert command.startswith("dvc exp run -S ")
                file = tmp_path / "params.yaml"
                file.write_text(yaml.safe_dump(before))
                apply_overrides(file, command.removeprefix("dvc exp run -S ").split(" -S "))
                assert load_params(file) != check_params(before), command


def test_the_majority_baseline_uses_the_train_split() -> None:
    assert majority(np.array([1, 1, 0]), np.array([0, 1, 1, 2])) == 0.5


def test_nearest_neighbours_are_found_by_the_colours_of_image_areas() -> None:
    random = np.random.default_rng(0)
    labels = np.arange(60) % 2
    images = (random.integers(0, 60, (60, 3, 20, 24)) + 150 * labels[:, None, None, None]).astype(np.uint8)
    assert (nearest_neighbours(images[:40], labels[:40], images[40:]) == labels[40:]).all()
    assert (nearest_neighbours(images[:2], labels[:2], images[2:4]) >= 0).all(), "fewer images than neighbours"
