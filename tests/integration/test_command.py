"""How a command runs: its arguments, its errors and its exit code."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]

COMMANDS = {
    "mistake": "raise UserError('the file is not there')",
    "long": "print('seen\\n' * 100_000)",
    "short": "print('seen')",
}


def start(name: str) -> "subprocess.Popen[str]":
    imports = "from refit.runtime.command import run_command\nfrom refit.runtime.errors import UserError"
    code = f"{imports}\ndef main():\n    {COMMANDS[name]}\nrun_command(main)"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return subprocess.Popen(
        [sys.executable, "-c", code], env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def test_a_user_error_is_one_line_with_exit_code_2() -> None:
    command = start("mistake")
    assert command.communicate() == ("", "error: the file is not there\n")
    assert command.returncode == 2


@pytest.mark.parametrize("name", ["long", "short"])
def test_a_closed_pipe_prints_no_error(name: str) -> None:
    command = start(name)
    assert command.stdout is not None
    assert command.stderr is not None
    if name == "long":
        assert command.stdout.readline() == "seen\n"
    command.stdout.close()
    assert (command.stderr.read(), command.wait()) == ("", 1)
    command.stderr.close()


@pytest.mark.parametrize(
    "module",
    [
        "stages.fit",
        "refit.predict",
        "refit.commands.sanity",
        "refit.commands.summary",
        "pipelines.tools.doctor",
        "pipelines.reproduce",
        "pipelines.retrain",
        "refit.commands.promote",
        "pipelines.tools.smoke",
        "pipelines.tools.verify",
        "refit.commands.register",
        "refit.commands.sync",
        "pipelines.tools.versus",
    ],
)
def test_an_unknown_argument_is_refused_before_any_work(
    module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [module, "--fast"])
    monkeypatch.delitem(sys.modules, module, raising=False)  # as in a process of its own, which would import it again
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    said = capsys.readouterr()
    assert (ended.value.code, said.out) == (2, "")
    assert "error: " in said.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("module", "usage", "purpose"),
    [
        ("refit.commands.register", "[NAME]", "Register the current model as a version in MLflow's registry"),
        ("refit.commands.summary", "[-h]", "Print a summary of the last run"),
        ("pipelines.tools.offline_plots", "PAGE", "Let `dvc plots show` and `dvc plots diff` draw without a network"),
    ],
)
def test_help_states_a_command_s_purpose_and_arguments(module: str, usage: str, purpose: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", module, "--help"], cwd=PROJECT, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[0].startswith(f"usage: python -m {module} ")
    assert usage in done.stdout.splitlines()[0]
    assert purpose in " ".join(done.stdout.split())
