"""Likely label errors: images that a model which was not trained on them takes for another class."""

import warnings
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

FOLDS = 5
STRENGTHS = (0.001, 0.01, 0.1)  # inverse l2 penalties to choose from

Floats = npt.NDArray[np.floating]
Numbers = npt.NDArray[np.int64]


class LabelSuspect(NamedTuple):
    position: int
    suggested: int
    """The class that the model gives it."""
    score: float
    """cleanlab's self-confidence: the probability of its own label, by the model of the other folds."""


def find_label_errors(features: Floats, labels: Numbers, groups: Numbers, seed: int) -> list[LabelSuspect]:
    """The images whose label is not the most probable class, the least probable label first (Northcutt et al. 2021, as
    cleanlab ranks them).

    features: (N, D). labels: (N,). groups: (N,), of images that are trained on together or not at all, such as
    near-duplicates, which would vouch for each other's labels. An image is not judged if its class has no image in the
    other folds. Needs the extra `audit`.
    """
    from cleanlab.rank import get_label_quality_scores

    probabilities, judged = out_of_sample(features, labels, groups, seed)
    if not judged.any():
        return []
    scores = np.ones(len(labels))
    scores[judged] = get_label_quality_scores(labels[judged], probabilities[judged], method="self_confidence")
    suggested = probabilities.argmax(axis=1)
    suspects = np.flatnonzero(judged & (suggested != labels))
    ranked = suspects[np.argsort(scores[suspects], kind="stable")]
    return [LabelSuspect(int(i), int(suggested[i]), float(scores[i])) for i in ranked]


def out_of_sample(
    features: Floats, labels: Numbers, groups: Numbers, seed: int
) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """The probabilities of each image's classes (N, K) by logistic regression on the other folds, and whether its own
    class was among those (N,). The l2 penalty is the one with the smallest loss on the first fold."""
    from sklearn.model_selection import StratifiedGroupKFold

    probabilities, judged = np.zeros((len(labels), int(labels.max()) + 1)), np.zeros(len(labels), np.bool_)
    folds = min(FOLDS, int(np.bincount(labels).max()), len(np.unique(groups)))
    if folds < 2:
        return probabilities, judged
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)  # such images are not judged
        splits = list(StratifiedGroupKFold(folds, shuffle=True, random_state=seed).split(features, labels, groups))
    strength = None
    for train, held_out in splits:
        if len(np.unique(labels[train])) < 2:
            continue
        known = np.isin(labels[held_out], labels[train])
        if strength is None:
            losses = {c: _loss(_probabilities(features, labels, train, held_out, c)[known], labels[held_out][known])
                      for c in STRENGTHS}  # fmt: skip
            strength = min(losses, key=losses.__getitem__)
        given = _probabilities(features, labels, train, held_out, strength)
        probabilities[held_out, : given.shape[1]], judged[held_out] = given, known
    return probabilities, judged


def _probabilities(features: Floats, labels: Numbers, train: Numbers, held_out: Numbers, strength: float) -> Floats:
    """(M, K) of the images in `held_out` (M,); 0 for a class that is not in `train`."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=200, tol=1e-3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # near the optimum is near enough for a ranking
        model.fit(features[train], labels[train])
    found = np.zeros((len(held_out), int(labels.max()) + 1))
    found[:, model.classes_] = model.predict_proba(features[held_out])
    return found


def _loss(probabilities: Floats, labels: Numbers) -> float:
    if not len(labels):
        return 0.0
    return float(-np.log(np.maximum(probabilities[np.arange(len(labels)), labels], 1e-12)).mean())
