"""Gather the evidence for findings.py from the outputs of the stages."""

import numpy as np
from torch import nn

from refit.artifacts.choices import read_learning_rate
from refit.artifacts.files import read_json, read_numbers
from refit.artifacts.model import read_fit_params
from refit.artifacts.paths import FIT, HISTORY, LEARNING_RATE_CURVE
from refit.artifacts.prepared import Split, read_info, read_split
from refit.evaluation.classification.baselines import Baselines, majority, nearest_neighbours
from refit.evaluation.classification.findings import Evidence
from refit.evaluation.classification.report import ClassificationReport
from refit.evaluation.comparison import compare
from refit.params.dotted import flatten
from refit.tasks.classification import Floats, predictions


def gather(report: ClassificationReport, answer: Floats, tested: Split, system: nn.Module) -> Evidence:
    """The evidence of the run whose outputs are in data/.

    answer: probabilities of the images of `tested`, (N, classes). system: the trained system.
    """
    train, info = read_split("train", mapped=True), read_info()
    neighbours = nearest_neighbours(train.images, train.labels, tested.images)
    fitted, rate = read_json(FIT, "dvc repro fit"), read_learning_rate()
    rates = [row["learning_rate"] for row in read_numbers(LEARNING_RATE_CURVE)]
    return Evidence(
        report=report,
        baselines=Baselines(majority(train.labels, tested.labels), float((neighbours == tested.labels).mean())),
        beside_neighbours=compare(predictions(answer) == tested.labels, neighbours == tested.labels, report.confidence),
        train_images=tuple(np.bincount(train.labels, minlength=len(info.classes)).tolist()),
        val_images=info.counts["val"],
        history=read_numbers(HISTORY),
        best_epoch=int(fitted["epoch"]),
        chosen_by=rate.chosen_by,
        learning_rate=rate.learning_rate,
        tested_rates=(min(rates), max(rates)) if rates else None,
        network_weights=sum(weight.numel() for weight in system.parameters()),
        params=flatten(read_fit_params()),
    )
