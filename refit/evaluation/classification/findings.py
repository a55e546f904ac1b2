"""Advice from the evidence of a run: what is wrong or doubtful, with its figures, and the key that may help.

Each rule says what it saw, and nothing where the evidence may be chance. A healthy run has no findings.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

from refit.evaluation.classification.baselines import NEIGHBOURS, SIDE, Baselines
from refit.evaluation.classification.report import ClassificationReport, ClassMetrics
from refit.evaluation.comparison import Comparison
from refit.evaluation.tested import Finding
from refit.params import OUR_NETWORKS
from refit.params.model import TIMM, TORCHVISION
from refit.params.training import FINE_TUNING

_CHANCE = 0.01  # an observation that is less probable by chance is a finding
_WIDE = 0.1  # half of the interval of the test accuracy
_EASY = 0.9  # accuracy of the neighbours above which a network need not be better
_GAP = 0.1  # of training and validation accuracy
_RISE = 1.2  # last validation loss ÷ the best one
_STILL_FALLING = 0.05  # relative fall of the validation loss in the last tenth of the epochs
_FEW = 1000  # weights of the network for each training image
_RARE = 20  # training images of a class
_UNEVEN = 3.0  # images of the largest class ÷ of the smallest
_EDGES = (10.0, 3.0)  # distance from the ends of the tested learning rates, as factors. A test that ended because the
# loss diverged suggests at most a tenth of its last rate


@dataclass(frozen=True)
class Evidence:
    report: ClassificationReport
    baselines: Baselines
    beside_neighbours: Comparison
    """The model compared with the nearest neighbours on the test images."""
    train_images: tuple[int, ...]
    """Training images of each class, in the order of the report's classes."""
    val_images: int
    history: Sequence[dict[str, float]]
    """The rows of history.csv."""
    best_epoch: int
    chosen_by: str
    """As in LearningRateChoice."""
    learning_rate: float
    tested_rates: tuple[float, float] | None
    """The lowest and the highest rate of the range test; None if there was none."""
    network_weights: int
    """Numbers that the network learns."""
    params: Mapping[str, Any]
    """Those of the fit, by dotted key."""

    @property
    def head_alone(self) -> bool:
        return bool(self.params.get("fit.train") == "head")  # earlier fits have no such key


def find(evidence: Evidence) -> list[Finding]:
    """The findings of a run, the most serious first."""
    asked = [rule for rule in _RULES if not (evidence.head_alone and rule in _OF_EPOCHS)]
    return [finding for rule in asked for finding in rule(evidence)]


def _no_better_than_the_majority(seen: Evidence) -> Iterator[Finding]:
    report = seen.report
    if report.accuracy_low <= seen.baselines.majority:
        yield Finding(
            f"The test accuracy, {_interval(report)}, is not shown to be better than always answering with the largest "
            f"class: {seen.baselines.majority:.3f}",
            "check the labels with `make sanity`; more images, another optimizer.learning_rate, or more fit.max_epochs",
        )


def _no_better_than_neighbours(seen: Evidence) -> Iterator[Finding]:
    beside = seen.beside_neighbours
    if seen.baselines.neighbours < _EASY and beside.low <= 0 and seen.report.accuracy_low > seen.baselines.majority:
        yield Finding(
            f"The test accuracy, {seen.report.accuracy:.3f}, is not shown to be better than that of the {NEIGHBOURS} "
            f"nearest training images of {SIDE} x {SIDE} pixels: {seen.baselines.neighbours:.3f} (difference "
            f"{beside.difference:+.3f}, {beside.low:+.3f} to {beside.high:+.3f})",
            "the network has learned little: "
            + _any_of(
                _longer(seen), "a larger data.image_size", "another optimizer.learning_rate", _pretrained_weights(seen)
            ),
        )


def _classes_never_found(seen: Evidence) -> Iterator[Finding]:
    right = seen.report.accuracy
    missed = [row for row in seen.report.classes if row.recall == 0 and (1 - right) ** row.images < _CHANCE]
    if missed:
        images = {row.name: images for row, images in zip(seen.report.classes, seen.train_images, strict=True)}
        smallest = min(images[row.name] for row in missed)
        uneven = max(seen.train_images) >= _UNEVEN * smallest  # else weights would make these classes no heavier
        yield Finding(
            f"No image of {_names(missed)} is classified correctly (test images: {_counts(missed)})",
            _any_of(
                _class_weights(seen) if uneven else "",
                "more images of these classes",
                "a check of their labels",
                _longer(seen),
            ),
        )


def _rare_classes(seen: Evidence) -> Iterator[Finding]:
    most = max(seen.train_images)
    rare = [
        f"{row.name} ({images:,} training and {row.images:,} test images)"
        for row, images in zip(seen.report.classes, seen.train_images, strict=True)
        if 0 < images < _RARE and images * _UNEVEN < most
    ]
    if rare:
        yield Finding(
            f"Little can be learned or said of {', '.join(rare)}: the largest class has {most:,} training images",
            _any_of("more images of these classes", _class_weights(seen)),
        )


def _memorised(seen: Evidence) -> Iterator[Finding]:
    best = seen.history[seen.best_epoch - 1]
    train, val = best.get("train_accuracy"), best.get("val_accuracy")
    if train is None or val is None:
        return
    error = math.sqrt(val * (1 - val) / seen.val_images)
    if train - val > _GAP and train - val > NormalDist().inv_cdf(1 - _CHANCE) * error:
        yield Finding(
            f"Over-fitting: in the best epoch the accuracy is {train:.3f} on the training images and {val:.3f} on the "
            "validation images",
            _any_of("more images", _augmentation(seen), "a smaller network", _pretrained_weights(seen)),
        )


def _loss_rose(seen: Evidence) -> Iterator[Finding]:
    best, last = seen.history[seen.best_epoch - 1].get("val_loss"), seen.history[-1].get("val_loss")
    if best is not None and last is not None and 0 < _RISE * best < last and seen.best_epoch <= len(seen.history) / 2:
        fewer = min(len(seen.history) - 1, max(2, round(1.2 * seen.best_epoch)))
        yield Finding(
            f"Over-fitting: the validation loss was lowest in epoch {seen.best_epoch} of {len(seen.history)} "
            f"({best:.3f}) and rose to {last:.3f}",
            _any_of(_change("fewer epochs", f"fit.max_epochs={fewer}"), _augmentation(seen)),
        )


def _still_falling(seen: Evidence) -> Iterator[Finding]:
    epochs = len(seen.history)
    if seen.best_epoch < epochs or epochs == 1 or "val_loss" not in seen.history[-1]:
        return
    tail = max(1, epochs // 10)
    before, last = seen.history[-1 - tail]["val_loss"], seen.history[-1]["val_loss"]
    if before - last > _STILL_FALLING * before:
        yield Finding(
            f"The validation loss was still falling at the end: {before:.3f} to {last:.3f} in the last "
            f"{'epoch' if tail == 1 else f'{tail} epochs'} of {epochs}",
            _longer(seen),
        )


def _splits_differ(seen: Evidence) -> Iterator[Finding]:
    val = seen.history[seen.best_epoch - 1].get("val_accuracy")
    if val is None:
        return
    test, images = seen.report.accuracy, seen.report.images
    pooled = (val * seen.val_images + test * images) / (seen.val_images + images)
    error = math.sqrt(pooled * (1 - pooled) * (1 / seen.val_images + 1 / images))
    chance = 2 * (1 - NormalDist().cdf(abs(val - test) / error)) if error else 1.0
    if chance < _CHANCE:
        yield Finding(
            f"The accuracy is {val:.3f} on {seen.val_images:,} validation images and {test:.3f} on {images:,} test "
            f"images; by chance this has a probability of {chance:.1g}",
            "the splits differ: check from where their images come, and whether near-copies are in several splits",
        )


def _few_images(seen: Evidence) -> Iterator[Finding]:
    images = sum(seen.train_images)
    if seen.params["model.weights"] is None and seen.network_weights > _FEW * images:
        yield Finding(
            f"The network learns {seen.network_weights:,} weights from {images:,} training images, without pretrained "
            "ones",
            _any_of(_pretrained_weights(seen), "a smaller model.network or model.width", "more images"),
        )


def _few_test_images(seen: Evidence) -> Iterator[Finding]:
    report = seen.report
    if report.accuracy_high - report.accuracy_low > 2 * _WIDE:
        yield Finding(
            f"With {report.images:,} test images the accuracy is only known to be between {report.accuracy_low:.2f} "
            f"and {report.accuracy_high:.2f}",
            "more test images: put more into test/, or raise data.test, which leaves fewer images for training",
        )


def _learning_rate_at_the_edge(seen: Evidence) -> Iterator[Finding]:
    if seen.chosen_by == "fallback":
        yield Finding(
            "The range test of find_lr found no learning rate at which the loss falls; the fit used "
            f"optimizer.fallback_learning_rate = {seen.learning_rate:g}",
            "check the labels with `make sanity`, or set optimizer.learning_rate",
        )
    elif seen.chosen_by == "find_lr" and seen.tested_rates is not None:
        lowest, highest = seen.tested_rates
        if not lowest * _EDGES[0] < seen.learning_rate < highest / _EDGES[1]:
            yield Finding(
                f"The range test of find_lr chose a learning rate of {seen.learning_rate:.2g}, at the edge of the "
                f"tested range, {lowest:.0e} to {highest:.0e}",
                _change("a usual rate", "optimizer.learning_rate=0.001"),
            )


_RULES: tuple[Callable[[Evidence], Iterator[Finding]], ...] = (
    _few_test_images,  # it limits what all others can say
    _no_better_than_the_majority,
    _no_better_than_neighbours,
    _classes_never_found,
    _rare_classes,
    _splits_differ,
    _learning_rate_at_the_edge,
    _memorised,
    _loss_rose,
    _still_falling,
    _few_images,
)
# Not of a head alone: each of its epochs is another penalty, and the one that is best on the validation images is kept.
_OF_EPOCHS = (_memorised, _loss_rose, _still_falling)


def _any_of(*options: str) -> str:
    """The options in a row; an empty one is left out."""
    *others, last = filter(None, options)
    return f"{', '.join(others)}, or {last}" if others else last


def _change(what: str, *settings: str) -> str:
    """An option with its command. Each setting is KEY=VALUE."""
    return f"{what} (`{' '.join(['dvc exp run', *(f'-S {setting}' for setting in settings)])}`)"


def _longer(seen: Evidence) -> str:
    """More epochs can help only if the last one was the best; after the head, the other layers can learn."""
    if seen.head_alone:
        return _change("fine-tuning the later layers", *FINE_TUNING)
    epochs = len(seen.history)
    return _change("more epochs", f"fit.max_epochs={2 * epochs}") if seen.best_epoch == epochs else ""


def _class_weights(seen: Evidence) -> str:
    """Empty if the loss weights the classes already, or has no classes to weight."""
    of_classes = seen.params["model.system"] == "classifier" and seen.params["loss.class_weights"] == "none"
    return _change("a loss that weights the classes", "loss.class_weights=balanced") if of_classes else ""


def _augmentation(seen: Evidence) -> str:
    """The first kind that is off. Not flips: a mirror image may be of another class."""
    for key, off, value in (("augment.crop_area", 1.0, "0.35"), ("augment.policy", "none", "trivialaugment")):
        if seen.params[key] == off:
            return _change("augmentation", f"{key}={value}")
    return ""


def _pretrained_weights(seen: Evidence) -> str:
    """A library's, with a network that has them. Empty if there are weights already, or the network is the user's
    own."""
    network = seen.params["model.network"]
    if seen.params["model.weights"] is not None or seen.params["model.system"] != "classifier":
        return ""
    if network.startswith((TORCHVISION, TIMM)):
        return _change("pretrained weights", "model.weights=DEFAULT")
    if network not in OUR_NETWORKS:
        return ""
    ours = [f"{key}=null" for key in ("model.width", "model.dropout") if seen.params[key] is not None]
    return _change("pretrained weights", f"model.network={TORCHVISION}resnet18", "model.weights=DEFAULT", *ours)


def _interval(report: ClassificationReport) -> str:
    return f"{report.accuracy:.3f} ({report.accuracy_low:.3f} to {report.accuracy_high:.3f})"


def _names(rows: Sequence[ClassMetrics]) -> str:
    return ", ".join(row.name for row in rows)


def _counts(rows: Sequence[ClassMetrics]) -> str:
    return ", ".join(f"{row.images:,}" for row in rows)
