"""The section of each task in the report."""

from collections.abc import Callable, Sequence
from typing import Any

from refit.evaluation.tested import Evaluation, Tested
from refit.reports.classification.section import classifier_section
from refit.reports.page import Facts, Section

SECTIONS: dict[str, Callable[[Tested, Evaluation[Any], Sequence[Facts]], Section]] = {
    "classification": classifier_section
}
"""By the name of the task, as in TASKS. The last argument holds the rows of outcomes.csv."""
