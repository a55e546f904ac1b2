"""The graph is read from dvc.yaml alone."""

import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.dvc_graph import read_graph
from refit.runtime.errors import UserError
from tests.flows.toy import PROJECT, Toy

# A warning about DVC's own use of pygtrie.
pytestmark = pytest.mark.filterwarnings("ignore:_NoneStep.value will soon raise:DeprecationWarning")


def test_the_flow_s_graph_is_that_of_dvc_yaml(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    toy.stage("last", after=("left", "right"))
    toy.stage("left", after=("first",))
    toy.stage("right", after=("first",))
    toy.stage("first")
    monkeypatch.chdir(toy.root)
    assert read_graph() == {"last": ["left", "right"], "left": ["first"], "right": ["first"], "first": []}


def test_stages_of_other_folders_are_ignored(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    toy.stage("first")
    (toy.root / "other").mkdir()
    (toy.root / "other/dvc.yaml").write_text("stages: {elsewhere: {cmd: 'true', deps: [../out/first]}}")
    monkeypatch.chdir(toy.root)
    assert read_graph() == {"first": []}


def test_an_invalid_dvc_yaml_is_a_user_error(toy: Toy) -> None:
    (toy.root / "dvc.yaml").write_text("stages: {first: {comand: 'true'}}")
    done = toy.run("python", "-c", "from pipelines.dvc_graph import read_graph; read_graph()", check=False)
    assert "UserError: the graph of dvc.yaml cannot be read: " in done.stdout
    assert "comand" in done.stdout


def test_a_folder_without_a_repository_is_a_user_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="not inside of a DVC repository"):
        read_graph()


def test_this_projects_test_and_predict_do_not_wait_for_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(PROJECT)
    graph = read_graph()
    assert list(graph) == ["check", "prepare", "scale_batch", "find_lr", "features", "fit", "test", "predict"]
    assert "fit" in graph["test"]
    assert "fit" in graph["predict"]
    assert "test" not in graph["predict"]
    assert "predict" not in graph["test"]


def test_no_flow_imports_torch() -> None:
    loaded = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys, pipelines.reproduce; print('torch' in sys.modules, 'prefect' in sys.modules)",
        ],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert loaded.stdout.split() == ["False", "True"]
