"""The summary of a real run in MLflow, and the summary command."""

import subprocess
import sys
from pathlib import Path

from refit.artifacts.model import model_sha256
from refit.reports.summary import as_markdown, as_text, read_facts, read_steps
from refit.tracking.runs import TrackedRun
from refit.tracking.store import tracking_uri
from tests.unit.reports.test_summary import repository  # noqa: F401, a fixture

PROJECT = Path(__file__).resolve().parents[2]


def test_the_summary_gives_the_run_s_name_id_and_url(repository: Path) -> None:  # noqa: F811
    run = TrackedRun({"data": {"source": "digits"}, "model": {"network": "cnn"}}, {})
    digest = model_sha256(repository / "data/model")
    run._client.set_tag(run._run_id, "model_sha256", digest)  # as finish() does, which also logs a network
    run._client.set_terminated(run._run_id, "FINISHED")
    assert tracking_uri().startswith(f"sqlite:///{repository}")
    page = f"http://127.0.0.1:5000/#/experiments/1/runs/{run.run_id}?workflowType=machine_learning"
    assert f"digits / cnn, {run.run_id}\n  {page}\n" in as_text(read_facts(), read_steps())
    assert f"| MLflow run | [digits / cnn, {run.run_id}]({page}) |" in as_markdown(read_facts())


def test_the_command_exits_2_without_a_traceback(tmp_path: Path) -> None:
    (tmp_path / "data/evaluation/test.json").unlink()
    program = [sys.executable, str(PROJECT / "refit/commands/summary.py")]
    answer = subprocess.run(program, capture_output=True, text=True, check=False, env={"PYTHONPATH": str(PROJECT)})
    assert answer.returncode == 2
    assert answer.stderr == "error: data/evaluation/test.json does not exist; run: dvc repro\n"
