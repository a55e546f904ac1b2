"""What `check` writes of each stage's code, and what it says of a change."""

import json
from pathlib import Path

import pytest

from refit.artifacts.checked import stage_params, write_checked
from refit.artifacts.paths import CHECKED
from refit.params import Params, check_params
from refit.runtime.errors import UserError


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
    assert write_checked(Params(), root) == []
    assert sorted(path.name for path in CHECKED.iterdir()) == ["fit.json", "test.json"]
    checked = json.loads((CHECKED / "fit.json").read_text())
    code = checked["code"]
    assert code.keys() == {"stages/fit.py", "refit/a.py", "refit/b.py", "torch"}
    assert code["torch"] == "1.0"


def test_the_same_code_says_nothing_and_writes_the_same_bytes(root: Path) -> None:
    write_checked(Params(), root)
    before = [path.read_bytes() for path in sorted(CHECKED.iterdir())]
    (root / "refit/b.py").write_text("x = 1  # a comment")
    assert write_checked(Params(), root) == []
    assert [path.read_bytes() for path in sorted(CHECKED.iterdir())] == before


def test_a_changed_file_is_named_with_each_stage_that_uses_it(root: Path) -> None:
    write_checked(Params(), root)
    (root / "refit/b.py").write_text("x = 2")
    assert write_checked(Params(), root) == ["fit: refit/b.py changed"]
    assert write_checked(Params(), root) == []


def test_another_version_of_a_package_is_named(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_checked(Params(), root)
    monkeypatch.setattr("refit.runtime.fingerprint._version", lambda package: "1.1")
    assert write_checked(Params(), root) == ["fit: torch 1.0 -> 1.1", "test: torch 1.0 -> 1.1"]


def test_a_file_or_package_that_comes_or_goes_is_named(root: Path) -> None:
    write_checked(Params(), root)
    (root / "refit/a.py").write_text("import refit.c, numpy")
    (root / "refit/c.py").touch()
    (root / "stages/test.py").write_text("")
    fit = "fit: refit/a.py changed, refit/b.py is no longer used, refit/c.py is new and 1 more"
    assert write_checked(Params(), root) == [fit, "test: stages/test.py changed, torch is no longer used"]


def test_nothing_is_said_where_there_is_nothing_sound_to_compare_with(root: Path) -> None:
    write_checked(Params(), root)
    (CHECKED / "fit.json").write_text("{")
    (root / "refit/b.py").write_text("x = 2")
    assert write_checked(Params(), root) == []


def test_a_stage_that_is_no_more_leaves_no_file(root: Path) -> None:
    write_checked(Params(), root)
    (root / "stages/test.py").unlink()
    write_checked(Params(), root)
    assert [path.name for path in CHECKED.iterdir()] == ["fit.json"]


def test_a_changed_value_is_named_with_each_stage_that_reads_it(root: Path) -> None:
    write_checked(Params(), root)
    now = check_params(
        {"optimizer": {"weight_decay": 0.1}, "test": {"confidence": 0.9}, "fit": {"save_state_every": 5}}
    )
    assert write_checked(now, root) == [
        "fit: optimizer.weight_decay 0.05 -> 0.1", "test: test.confidence 0.95 -> 0.9",
    ]  # fmt: skip


def test_a_missing_key_and_one_at_its_default_are_the_same(root: Path) -> None:
    write_checked(Params(), root)
    before = [path.read_bytes() for path in sorted(CHECKED.iterdir())]
    assert write_checked(check_params({"optimizer": {"weight_decay": 0.05}, "loss": {}}), root) == []
    assert [path.read_bytes() for path in sorted(CHECKED.iterdir())] == before


def test_what_an_earlier_version_wrote_is_replaced_without_a_word(root: Path) -> None:
    CHECKED.mkdir(parents=True)
    (CHECKED / "fit.json").write_text('{"stages/fit.py": "0"}')
    assert write_checked(Params(), root) == []


def test_a_stage_does_not_run_with_values_that_were_not_checked(root: Path) -> None:
    """DVC would record its outputs, and reuse them, as those of the earlier values."""
    Path("params.yaml").write_text("optimizer: {weight_decay: 0.1}")
    assert stage_params("fit").optimizer.weight_decay == 0.1, "check has never run: the stage was started by hand"
    write_checked(Params(), root)
    assert stage_params("test").test == Params().test
    with pytest.raises(UserError, match=r"^params\.yaml has changed .* \(optimizer\.weight_decay 0\.05 -> 0\.1\); run"):
        stage_params("fit")
