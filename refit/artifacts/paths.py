"""Every path below `data/`, by its one name. All are relative to the folder that a stage runs in.

The folders of the user's own files (`data/raw`, `data/new`, `data/weights`) are defaults in params.yaml.
"""

import os
from pathlib import Path

CHECKED = Path("data/checked")
PREPARED = Path("data/prepared")
PREPARED_REPORT = Path("data/prepared_report.json")

BATCH = Path("data/tuning/batch.json")
LEARNING_RATE = Path("data/tuning/learning_rate.json")
LEARNING_RATE_CURVE = Path("data/tuning/learning_rate.csv")

MODEL = Path("data/model")
FIT = Path("data/evaluation/fit.json")
HISTORY = Path("data/evaluation/history.csv")

TEST = Path("data/evaluation/test.json")
OUTCOMES = Path("data/evaluation/outcomes.csv")
TABLES = Path("data/evaluation/tables")
PICTURES = Path("data/evaluation/pictures")
REPORT = Path("data/evaluation/report.html")

PREDICTIONS = Path("data/predictions")
PROMOTION = Path("data/promotion")
"""verdict.json, promotion.md and differences.csv: the last decision about a champion, and why."""

# Below repository_root(), which DVC's temporary workspaces share.
STATES = Path("data/state")
DIVERGED = "diverged.json"
"""In the folder of a fit's state: the batch whose loss was not finite."""
OUTBOX = Path("data/state/mlflow")
LOGS = Path("data/logs")
PROFILES = Path("data/logs/profile")


def repository_root() -> Path:
    """The root of DVC's repository: the main one also in the temporary workspace of an experiment."""
    return Path(os.environ.get("DVC_ROOT") or ".").resolve()
