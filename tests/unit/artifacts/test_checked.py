"""The fingerprints that `check` writes for each stage, and the changes that it reports."""

import json
from pathlib import Path

import pytest

from refit.artifacts.checked import stage_params, write_checked
from refit.artifacts.paths import CHECKED
from refit.params import Params, check_params, load_params
from refit.runtime.errors import UserError


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with `check` and two other stages, in the current folder."""
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


def test_each_stage_except_check_has_a_file_and_the_first_run_reports_no_change(root: Path) -> None:
    assert write_checked(Params(), {}, root) == []
    assert sorted(path.name for path in CHECKED.iterdir()) == ["fit.json", "network.json", "test.json"]
    checked = json.loads((CHECKED / "fit.json").read_text())
    code = checked["code"]
    assert code.keys() == {"stages/fit.py", "refit/a.py", "refit/b.py", "torch"}
    assert code["torch"] == "1.0"


def test_the_same_code_reports_no_change_and_writes_the_same_bytes(root: Path) -> None:
    write_checked(Params(), {}, root)
    before = [path.read_bytes() for path in sorted(CHECKED.iterdir())]
    (root / "refit/b.py").write_text("x = 1  # a comment")
    assert write_checked(Params(), {}, root) == []
    assert [path.read_bytes() for path in sorted(CHECKED.iterdir())] == before


def test_a_changed_file_is_reported_for_each_stage_that_uses_it(root: Path) -> None:
    write_checked(Params(), {}, root)
    (root / "refit/b.py").write_text("x = 2")
    assert write_checked(Params(), {}, root) == ["fit: refit/b.py changed"]
    assert write_checked(Params(), {}, root) == []


def test_a_new_package_version_is_reported(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_checked(Params(), {}, root)
    monkeypatch.setattr("refit.runtime.fingerprint._version", lambda package: "1.1")
    assert write_checked(Params(), {}, root) == ["fit: torch 1.0 -> 1.1", "test: torch 1.0 -> 1.1"]


def test_a_new_or_no_longer_used_file_or_package_is_reported(root: Path) -> None:
    write_checked(Params(), {}, root)
    (root / "refit/a.py").write_text("import refit.c, numpy")
    (root / "refit/c.py").touch()
    (root / "stages/test.py").write_text("")
    fit = "fit: refit/a.py changed, refit/b.py is no longer used, refit/c.py is new and 1 more"
    assert write_checked(Params(), {}, root) == [fit, "test: stages/test.py changed, torch is no longer used"]


def test_no_change_is_reported_if_the_previous_file_is_broken(root: Path) -> None:
    write_checked(Params(), {}, root)
    (CHECKED / "fit.json").write_text("{")
    (root / "refit/b.py").write_text("x = 2")
    assert write_checked(Params(), {}, root) == []


def test_the_file_of_a_removed_stage_is_deleted(root: Path) -> None:
    write_checked(Params(), {}, root)
    (root / "stages/test.py").unlink()
    write_checked(Params(), {}, root)
    assert sorted(path.name for path in CHECKED.iterdir()) == ["fit.json", "network.json"]


def test_a_changed_value_is_reported_for_each_stage_that_reads_it(root: Path) -> None:
    write_checked(Params(), {}, root)
    now = check_params(
        {"optimizer": {"weight_decay": 0.1}, "test": {"confidence": 0.9}, "fit": {"save_state_every": 5}}
    )
    assert write_checked(now, {}, root) == [
        "fit: optimizer.weight_decay 0.05 -> 0.1", "test: test.confidence 0.95 -> 0.9",
    ]  # fmt: skip


def test_a_missing_key_and_its_default_value_are_the_same(root: Path) -> None:
    write_checked(Params(), {}, root)
    before = [path.read_bytes() for path in sorted(CHECKED.iterdir())]
    assert write_checked(check_params({"optimizer": {"weight_decay": 0.05}, "loss": {}}), {}, root) == []
    assert [path.read_bytes() for path in sorted(CHECKED.iterdir())] == before


def test_a_file_of_an_earlier_version_is_replaced_without_a_message(root: Path) -> None:
    CHECKED.mkdir(parents=True)
    (CHECKED / "fit.json").write_text('{"stages/fit.py": "0"}')
    assert write_checked(Params(), {}, root) == []


def test_a_stage_refuses_values_that_were_not_checked(root: Path) -> None:
    """Otherwise DVC would record and reuse its outputs as those of the earlier values."""
    Path("params.yaml").write_text("optimizer: {weight_decay: 0.1}")
    assert stage_params("fit").optimizer.weight_decay == 0.1, "check has not run, so there are no checked values"
    write_checked(Params(), {}, root)
    assert stage_params("test").test == Params().test
    with pytest.raises(UserError, match=r"^params\.yaml has changed .* \(optimizer\.weight_decay 0\.05 -> 0\.1\); run"):
        stage_params("fit")


def test_a_stage_is_given_the_value_that_check_found_in_place_of_auto_and_changes_with_it_alone(root: Path) -> None:
    (root / "stages/prepare.py").write_text("")
    Path("params.yaml").write_text("data: {image_size: auto}")
    assert stage_params("prepare").data.image_size == "auto", "check has not run"
    write_checked(Params(), {"data.image_size": 224}, root)
    assert stage_params("prepare").data.image_size == 224
    as_auto = (CHECKED / "prepare.json").read_bytes()

    stated = "data: {image_size: 224}"
    Path("params.yaml").write_text(stated)
    assert write_checked(load_params(), {"data.image_size": 224}, root) == []
    assert (CHECKED / "prepare.json").read_bytes() == as_auto
    assert stage_params("prepare").data.image_size == 224

    Path("params.yaml").write_text("data: {image_size: 128}")
    with pytest.raises(UserError, match=r"has changed .*\(data\.image_size 224 -> 128\)"):
        stage_params("prepare")
    assert write_checked(Params(), {"data.image_size": 300}, root) == ["prepare: data.image_size 224 -> 300"]
    Path("params.yaml").write_text("data: {image_size: auto, val: 0.3}")
    with pytest.raises(UserError, match=r"has changed .*\(data\.val 0\.15 -> 0\.3\)"):
        stage_params("prepare")
