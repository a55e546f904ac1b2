"""In dvc.yaml, each stage depends on its code and its params; the imports go in one direction.

tests/stages/test_pipeline.py checks that a stage's code is all that its process imports, and likewise its data.
"""

import ast
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from refit.params import Params
from refit.params.reads import READS
from refit.runtime import fingerprint

ROOT = Path(__file__).resolve().parents[2]
STAGES: dict[str, Any] = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
WORK = [name for name in STAGES if name != "check"]


@cache
def imports_of(file: Path) -> frozenset[Path]:
    """The project files that a module imports, also in functions, without the `__init__.py` of packages."""
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
def test_a_stage_depends_on_its_checked_fingerprints_and_on_no_source_file(stage: str) -> None:
    assert code_deps(stage) == [f"data/checked/{stage}.json"]
    assert (ROOT / f"stages/{stage}.py").is_file()


def test_check_depends_on_the_whole_of_params_yaml_and_of_the_code() -> None:
    assert code_deps("check") == ["params.yaml", "refit", "requirements.lock", "stages"]
    assert {f"{folder}/" for folder in ("refit", "stages")} == set(fingerprint._WATCHED)


@pytest.mark.parametrize("stage", WORK)
def test_the_parameters_of_a_stage_are_recorded_by_check_and_listed_only_in_reads(stage: str) -> None:
    assert "params" not in STAGES[stage]
    sections = {name: keys for name, keys in Params().model_dump().items() if isinstance(keys, dict)}
    known = ["seed", *(f"{section}.{key}" for section, keys in sections.items() for key in keys)]
    for key in READS[stage]:
        assert any(f"{name}.".startswith(f"{key}.") for name in known), key


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_runs_as_its_own_module_without_a_shell_in_between(stage: str) -> None:
    assert STAGES[stage]["cmd"] == f"exec python -m stages.{stage}"


def test_the_stages_package_itself_only_chooses_the_process_of_a_stage() -> None:
    """Its code is not part of a stage's fingerprint, so it must not change any result."""
    assert imports_of(ROOT / "stages/__init__.py") == {ROOT / "refit/runtime/parent.py", ROOT / "refit/runtime/warm.py"}
