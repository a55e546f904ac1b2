"""All paths in `data/`, each defined once. They are relative to a stage's working directory.

The folders for the user's files (`data/raw`, `data/new`, `data/weights`) are defaults in params.yaml.
"""

import os
from pathlib import Path

CHECKED = Path("data/checked")
PREPARED = Path("data/prepared")
PREPARING = Path("data/preparing")
"""The images that `prepare` has decoded, until they are in the prepared data set."""
PREPARED_REPORT = Path("data/prepared_report.json")
PREPARED_PAGE = Path("data/prepared_report.html")
DATA_DIFF = Path("data/data_diff.html")
"""The last comparison of two data sets."""
PREPARED_LEFT_OUT = Path("data/prepared_left_out.csv")

DECISIONS = Path("data/audit.csv")
"""What people decided about single images, by hand or with `make decide`."""
AUDIT = Path("data/audit")
SUSPECTS = Path("data/audit/suspects.csv")
AUDIT_RECORD = Path("data/audit/audit.json")
AUDIT_PAGE = Path("data/audit/audit.html")

BATCH = Path("data/tuning/batch.json")
LEARNING_RATE = Path("data/tuning/learning_rate.json")
LEARNING_RATE_CURVE = Path("data/tuning/learning_rate.csv")
FROZEN_LEARNING_RATE_CURVE = Path("data/tuning/frozen_learning_rate.csv")

FEATURES = Path("data/features")
"""The outputs of the layers before the head for each prepared image, if only the head is trained."""
MODEL = Path("data/model")
FIT = Path("data/evaluation/fit.json")
HISTORY = Path("data/evaluation/history.csv")

TEST = Path("data/evaluation/test.json")
OUTCOMES = Path("data/evaluation/outcomes.csv")
FINDINGS = Path("data/evaluation/findings.json")
"""Baselines, and advice from the evidence of the run."""
TABLES = Path("data/evaluation/tables")
PICTURES = Path("data/evaluation/pictures")
REPORT = Path("data/evaluation/report.html")

# The few metrics that are columns of `dvc exp show`.
DATA_METRICS = Path("data/metrics/data.json")
FIT_METRICS = Path("data/metrics/fit.json")
TEST_METRICS = Path("data/metrics/test.json")

PREDICTIONS = Path("data/predictions")
PREDICTIONS_SUMMARY = Path("data/predictions/summary.json")
PREDICTIONS_PAGE = Path("data/predictions/predictions.html")
PROMOTION = Path("data/promotion")
"""verdict.json, promotion.md and differences.csv: the last decision about the champion, with its reason."""

# Relative to repository_root(), which DVC's temporary workspaces share.
STATES = Path("data/state")
DIVERGED = "diverged.json"
"""In the folder of a fit's saved states: the batch whose loss was not finite."""
OUTBOX = Path("data/state/mlflow")
LOGS = Path("data/logs")
PROFILES = Path("data/logs/profile")


def repository_root() -> Path:
    """The root of DVC's repository; in the temporary workspace of an experiment, that of the main repository."""
    return Path(os.environ.get("DVC_ROOT") or ".").resolve()
