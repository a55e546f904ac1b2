"""dvc.yaml has each stage depend on its code and its params, and the imports go one way.

That a stage's code is all that its process imports is in tests/stages/test_pipeline.py, its data likewise.
"""

import ast
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from refit.params import Params
from refit.params.dotted import flatten
from refit.params.reads import READS
from refit.runtime import fingerprint

ROOT = Path(__file__).resolve().parents[2]
STAGES: dict[str, Any] = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
WORK = [name for name in STAGES if name != "check"]


@cache
def imports_of(file: Path) -> frozenset[Path]:
    """Project files that a module imports, in functions too, not counting packages' `__init__.py`."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute here"
            assert node.module
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        found |= {ROOT / f"{name.replace('.', '/')}.py" for name in names}
        if "refit.params" in names:
            found.add(ROOT / "refit/params/__init__.py")
    return frozenset(path for path in found if path.is_file())


def all_imports_of(file: Path) -> set[Path]:
    reached, todo = {file}, [file]
    while todo:
        new = imports_of(todo.pop()) - reached
        reached |= new
        todo += new
    return reached


def code_deps(stage: str) -> list[str]:
    return [
        dep for dep in STAGES[stage]["deps"] if not dep.startswith(("data/", "${")) or dep.startswith("data/checked")
    ]


@pytest.mark.parametrize("stage", WORK)
def test_a_stage_depends_on_what_check_found_of_its_code_and_on_no_source_file(stage: str) -> None:
    assert code_deps(stage) == [f"data/checked/{stage}.json"]
    assert (ROOT / f"stages/{stage}.py").is_file()


def test_check_depends_on_the_whole_of_params_yaml_and_of_the_code() -> None:
    assert code_deps("check") == ["params.yaml", "refit", "requirements.lock", "stages"]
    assert {f"{folder}/" for folder in ("refit", "stages")} == set(fingerprint._WATCHED)


@pytest.mark.parametrize("stage", WORK)
def test_the_parameters_of_a_stage_are_recorded_by_check_and_named_in_one_place(stage: str) -> None:
    assert "params" not in STAGES[stage]
    known = flatten(Params().model_dump())
    for key in READS[stage]:
        assert any(f"{name}.".startswith(f"{key}.") for name in known), key


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_is_run_as_its_own_module_with_no_shell_between_dvc_and_it(stage: str) -> None:
    assert STAGES[stage]["cmd"] == f"exec python -m stages.{stage}"


def test_the_package_of_the_stages_only_chooses_the_process_of_a_stage() -> None:
    """So that its code, which is not among that of a stage, changes no result."""
    assert imports_of(ROOT / "stages/__init__.py") == {ROOT / "refit/runtime/parent.py", ROOT / "refit/runtime/warm.py"}
