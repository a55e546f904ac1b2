"""Another task joins with an entry in three tables. The stage `test` stays as it is."""

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from refit.artifacts.paths import FINDINGS, PICTURES, REPORT, TABLES, TEST, TEST_METRICS
from refit.artifacts.prepared import read_names
from refit.evaluation.evaluations import EVALUATIONS
from refit.evaluation.tested import Evaluation, Finding, Tested
from refit.inference.predictor import read_model
from refit.params import TestParams
from refit.reports.page import Section
from refit.reports.sections import SECTIONS
from refit.tasks import classification
from refit.tasks.task import TASKS
from stages import test
from tests.fixtures import Fit, run_test


class Closeness:
    """The mean probability of the true class, in place of a classifier's metrics."""

    def __init__(self, tested: Tested) -> None:
        self.value = float(tested.answer[np.arange(len(tested.answer)), tested.split.labels].mean())

    def headline(self) -> str:
        return f"closeness {self.value:.4f}"

    def test_summary(self) -> dict[str, float]:
        return {"closeness": self.value}

    def tables(self) -> dict[str, list[dict[str, object]]]:
        return {"closest": [{"closeness": self.value}]}


def evaluate(tested: Tested, params: TestParams) -> Evaluation[Closeness]:
    return Evaluation(Closeness(tested), {"nothing": 0.0}, [Finding("It is far", "go closer")], np.array([7]))


def section(tested: Tested, evaluation: Evaluation[Closeness], outcomes: Any) -> Section:
    blocks = "{% block results %}<h2>Farthest: {{ name }}, {{ nothing | percent }}</h2>{% endblock %}"
    worst = outcomes[evaluation.worst[0]]
    values = {"name": worst["file"], "nothing": evaluation.baselines["nothing"]}
    return Section(evaluation.report.headline(), [("Closeness", "near", "1 is best")], blocks, values, pictures={})


def test_another_task_joins_with_its_own_metrics_and_report_section(
    fitted: Fit, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert TASKS.keys() == EVALUATIONS.keys() == SECTIONS.keys()
    monkeypatch.setitem(TASKS, "nearness", SimpleNamespace(**vars(classification) | {"SCORE": "closeness"}))
    monkeypatch.setitem(EVALUATIONS, "nearness", evaluate)
    monkeypatch.setitem(SECTIONS, "nearness", section)
    fitted(fit__max_epochs=1)
    system, model = read_model()
    monkeypatch.setattr(test, "read_model", lambda: (system, model.model_copy(update={"task": "nearness"})))
    run_test()
    closeness = json.loads(TEST.read_text())["closeness"]
    assert 0 < closeness < 1
    assert json.loads(TEST_METRICS.read_text()) == {"test_closeness": closeness}
    assert json.loads(FINDINGS.read_text()) == {
        "baselines": {"nothing": 0.0}, "findings": [{"what": "It is far", "remedy": "go closer"}]
    }  # fmt: skip
    assert [path.name for path in TABLES.iterdir()] == ["closest.csv"]
    assert {path.name for path in PICTURES.iterdir()} == {"training.png", "learning_rate.png"}
    page = REPORT.read_text()
    assert f"<h2>Farthest: {read_names('test')[7]}, 0.0" in page
    assert "It is far." in page
    assert "Confusion" not in page
    assert capsys.readouterr().out.splitlines()[-1] == f"closeness {closeness:.4f}"
