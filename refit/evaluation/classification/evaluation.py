"""The evaluation of a classifier: its metrics, baselines, advice and most confident mistakes."""

from dataclasses import asdict

from refit.evaluation.classification.evidence import gather
from refit.evaluation.classification.findings import find
from refit.evaluation.classification.report import ClassificationReport, evaluate, worst_mistakes
from refit.evaluation.tested import Evaluation, Tested
from refit.params import TestParams


def evaluate_classifier(tested: Tested, params: TestParams) -> Evaluation[ClassificationReport]:
    """Raises UserError if a probability is not finite, or an output of an earlier stage is missing."""
    answer, split = tested.answer, tested.split
    report = evaluate(answer, split.labels, tested.model.classes, params.confidence, params.calibration_bins)
    evidence = gather(report, answer, split, tested.system)
    worst = worst_mistakes(answer, split.labels, params.worst_mistakes)
    return Evaluation(report, asdict(evidence.baselines), find(evidence), worst)
