"""Another task joins with an entry in three tables. The stage `test`, `promote`, `versus` and the summary stay as they
are."""

import json
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pipelines.tools import versus
from refit.artifacts.paths import FINDINGS, PICTURES, REPORT, TABLES, TEST, TEST_METRICS
from refit.artifacts.prepared import read_names
from refit.commands import promote
from refit.evaluation.comparison import paired
from refit.evaluation.evaluations import EVALUATIONS
from refit.evaluation.tested import Evaluation, Finding, Tested
from refit.inference.predictor import read_model
from refit.params import Params, TestParams
from refit.reports import summary
from refit.reports.page import Section
from refit.reports.sections import SECTIONS
from refit.reports.summary import Fact
from refit.runtime.errors import UserError
from refit.tasks import classification
from refit.tasks.task import TASKS
from refit.tracking.registry import Version
from stages import test
from tests.fixtures import Fit, run_test


class Nearness:
    """Digits whose value counts: 7 for 8 is nearly right."""

    SCORE = "closeness"
    BASELINE = "nothing", "never answering"

    @staticmethod
    def outcome_scores(actual: Sequence[str], predicted: Sequence[str]) -> np.ndarray:
        distances: np.ndarray = np.abs(np.array(actual, float) - np.array(predicted, float))
        return 1 - distances / 10

    @staticmethod
    def summary(test: Mapping[str, Any], baselines: Mapping[str, float]) -> list[tuple[str, str]]:
        return [("closeness", f"{test['closeness']:.4f}, and {baselines['nothing']:.0f} without an answer")]


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
    monkeypatch.setitem(TASKS, "nearness", SimpleNamespace(**vars(classification) | vars(Nearness)))
    monkeypatch.setitem(EVALUATIONS, "nearness", evaluate)
    monkeypatch.setitem(SECTIONS, "nearness", section)
    fitted(fit__max_epochs=1)
    system, model = read_model()
    record = model.model_copy(update={"task": "nearness"})
    monkeypatch.setattr(test, "read_model", lambda: (system, record))
    for door in (promote, summary):
        monkeypatch.setattr(door, "read_record", lambda _: record)
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
    assert Fact("closeness", f"{closeness:.4f}, and 0 without an answer") in summary.read_facts()

    challenger = promote.read_challenger()
    rows = challenger.outcomes
    distance = [abs(int(row["actual"]) - int(row["predicted"])) for row in rows]
    assert max(distance) > 1, "otherwise the scores are those of a classification"
    zeros = {row["file"]: "0" for row in rows}
    found, _ = paired(rows, "other", zeros, Nearness.outcome_scores, 0.95)
    assert found.score == pytest.approx(1 - np.mean(distance) / 10)
    rival = promote.ChampionComparison(Version("refit", "7", "c" * 64, "run", was_champion=True), found, 0, 0, [])
    verdict = promote.decide(challenger, rival, Params().promote)
    facts = promote.as_facts(challenger, rival, verdict, 0.95)
    assert f"closeness {closeness:.4f}" in facts[0].text
    assert Fact("closeness", f"new {found.score:.4f}, champion {found.other_score:.4f} on 359 images") in facts
    assert "the difference in closeness is" in verdict.why

    tested = versus.read_tested("workspace")
    told = versus.as_facts(tested, tested, found)
    assert told[0].text == f"workspace: model {tested.model}, closeness {closeness:.4f} on 359 images"
    with pytest.raises(UserError, match="solve different tasks: nearness and classification"):
        versus.compared(tested, tested._replace(task="classification"), 0.95)
