"""What `check` writes of each stage's code, and what it says of a change."""

import json
from pathlib import Path

import pytest

from refit.artifacts.checked import write_checked
from refit.artifacts.paths import CHECKED

OURS = ("classifier", "cnn")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of two stages beside `check`, in the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("refit.runtime.fingerprint._version", lambda package: "1.0")
    (tmp_path / "stages").mkdir()
    (tmp_path / "refit").mkdir()
    for name, source in {
        "stages/__init__.py": "", "stages/check.py": "", "stages/fit.py": "import refit.a, torch",
        "stages/test.py": "import torch", "refit/a.py": "import refit.b", "refit/b.py": "x = 1",
    }.items():  # fmt: skip
        (tmp_path / name).write_text(source)
    return tmp_path


def test_each_stage_but_check_has_a_file_and_the_first_run_says_nothing(root: Path) -> None:
    assert write_checked(OURS, root) == []
    assert sorted(path.name for path in CHECKED.iterdir()) == ["fit.json", "test.json"]
    code = json.loads((CHECKED / "fit.json").read_text())
    assert code.keys() == {"stages/fit.py", "refit/a.py", "refit/b.py", "torch"}
    assert code["torch"] == "1.0"


def test_the_same_code_says_nothing_and_writes_the_same_bytes(root: Path) -> None:
    write_checked(OURS, root)
    before = [path.read_bytes() for path in sorted(CHECKED.iterdir())]
    (root / "refit/b.py").write_text("x = 1  # a comment")
    assert write_checked(OURS, root) == []
    assert [path.read_bytes() for path in sorted(CHECKED.iterdir())] == before


def test_a_changed_file_is_named_with_each_stage_that_uses_it(root: Path) -> None:
    write_checked(OURS, root)
    (root / "refit/b.py").write_text("x = 2")
    assert write_checked(OURS, root) == ["fit: refit/b.py changed"]
    assert write_checked(OURS, root) == []


def test_another_version_of_a_package_is_named(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_checked(OURS, root)
    monkeypatch.setattr("refit.runtime.fingerprint._version", lambda package: "1.1")
    assert write_checked(OURS, root) == ["fit: torch 1.0 -> 1.1", "test: torch 1.0 -> 1.1"]


def test_a_file_or_package_that_comes_or_goes_is_named(root: Path) -> None:
    write_checked(OURS, root)
    (root / "refit/a.py").write_text("import refit.c, numpy")
    (root / "refit/c.py").touch()
    (root / "stages/test.py").write_text("")
    fit = "fit: refit/a.py changed, refit/b.py is no longer used, refit/c.py is new and 1 more"
    assert write_checked(OURS, root) == [fit, "test: stages/test.py changed, torch is no longer used"]


def test_nothing_is_said_where_there_is_nothing_sound_to_compare_with(root: Path) -> None:
    write_checked(OURS, root)
    (CHECKED / "fit.json").write_text("{")
    (root / "refit/b.py").write_text("x = 2")
    assert write_checked(OURS, root) == []


def test_a_stage_that_is_no_more_leaves_no_file(root: Path) -> None:
    write_checked(OURS, root)
    (root / "stages/test.py").unlink()
    write_checked(OURS, root)
    assert [path.name for path in CHECKED.iterdir()] == ["fit.json"]
