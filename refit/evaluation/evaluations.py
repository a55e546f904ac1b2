"""The evaluation of each task: a function from the answers of a test to what they are worth."""

from collections.abc import Callable
from typing import Any

from refit.evaluation.classification.evaluation import evaluate_classifier
from refit.evaluation.tested import Evaluation, Tested
from refit.params import TestParams

EVALUATIONS: dict[str, Callable[[Tested, TestParams], Evaluation[Any]]] = {"classification": evaluate_classifier}
"""By the name of the task, as in TASKS."""
