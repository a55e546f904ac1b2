"""The structure of the code: which folder may import which, how long a file may be, and where paths are written."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = (
    "runtime", "params", "artifacts", "data", "batches", "tasks", "systems", "evaluation", "inference", "training",
    "tracking", "reports", "commands",
)  # fmt: skip
"""The folders of refit/, from the bottom up: each imports only from itself and from those before it."""
ENTRY_POINTS = ("stages", "pipelines")
PACKAGES = ("refit", *ENTRY_POINTS)
COMMAND = "predict.py"
"""The command in refit/ itself, where it has a short name. It counts as one of the commands."""
LONGEST = 400  # lines per file


PATHS_MODULE = "refit/artifacts/"
SPELL_PATHS_TOO = {
    "refit/params/": "the defaults of params.yaml, and where its weights have to be",
    "stages/check.py": "it creates the folders of the user's own files, which are such defaults",
}


class Arrow(NamedTuple):
    """One file imports another file or another package, when it is imported or later."""

    source: str
    target: str
    at_import: bool


def files(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def named(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


@cache
def arrows_of(file: Path) -> tuple[Arrow, ...]:
    """The imports of a file, also in functions and under TYPE_CHECKING: project files and other packages."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    at_import = {id(node) for node in run_at_import(tree.body)}
    return tuple(
        Arrow(named(file), target, id(node) in at_import)
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for target in targets(node, file)
    )


def run_at_import(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements that run when the module is imported, without those in functions or under TYPE_CHECKING."""
    for node in body:
        yield node
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            yield from run_at_import(node.orelse)
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for part in ("body", "orelse", "finalbody"):
                yield from run_at_import(getattr(node, part, []))
            for handler in getattr(node, "handlers", []):
                yield from run_at_import(handler.body)


def targets(node: ast.Import | ast.ImportFrom, file: Path) -> set[str]:
    if isinstance(node, ast.Import):
        return {target_of(alias.name) for alias in node.names}
    assert node.level == 0, f"{named(file)}: imports are absolute here"
    assert node.module
    # `from refit.reports import plots` imports a module, `from refit.reports.plots import DPI` a name in a module.
    modules = {f"{node.module}.{alias.name}" for alias in node.names}
    return {target_of(module) if module_file(module) else target_of(node.module) for module in modules}


def target_of(module: str) -> str:
    file = module_file(module)
    return named(file) if file else module.partition(".")[0]


def module_file(module: str) -> Path | None:
    path = ROOT / module.replace(".", "/")
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


def folder_of(file: str) -> str:
    """The folder in refit/ that a file belongs to, or its top-level package."""
    package, folder, *_ = Path(file).parts
    if package != "refit":
        return package
    return "commands" if folder == COMMAND else folder


def fault_of(arrow: Arrow) -> str | None:
    """What is wrong with an import; None for an allowed one."""
    source, target = arrow.source, arrow.target
    here = folder_of(source)
    if not target.endswith(".py"):
        if target in ("prefect", "dvc") and here != "pipelines":
            return f"only pipelines may import {target}"
        return None
    there = folder_of(target)
    if here == there and here != "commands":
        return None
    if there in ("commands", *ENTRY_POINTS):
        return f"nothing imports {there}"
    if here in ENTRY_POINTS or FOLDERS.index(here) > FOLDERS.index(there):
        return None
    return f"{here} is below {there}"


@pytest.mark.parametrize("package", PACKAGES)
def test_each_folder_imports_only_from_the_folders_below_it(package: str) -> None:
    arrows = [arrow for file in files(package) if file != ROOT / "refit/__init__.py" for arrow in arrows_of(file)]
    assert arrows
    faults = [f"{arrow.source} imports {arrow.target}: {fault}" for arrow in arrows
              if (fault := fault_of(arrow))]  # fmt: skip
    assert not faults, "\n".join(faults)


def test_the_listed_folders_are_those_of_refit() -> None:
    folders = {path.name for path in (ROOT / "refit").iterdir() if path.is_dir() and any(path.glob("*.py"))}
    assert folders == set(FOLDERS)
    assert {path.name for path in (ROOT / "refit").glob("*.py")} == {"__init__.py", COMMAND}


def test_a_wrong_import_is_reported_with_both_folders() -> None:
    def fault(source: str, target: str) -> str | None:
        return fault_of(Arrow(source, target, True))

    assert fault("refit/training/x.py", "refit/tracking/y.py") == "training is below tracking"
    assert fault("refit/tracking/y.py", "refit/training/x.py") is None
    assert fault("refit/commands/x.py", "refit/commands/y.py") == "nothing imports commands"
    assert fault("pipelines/x.py", "refit/commands/y.py") == "nothing imports commands"
    assert fault("pipelines/x.py", "stages/y.py") == "nothing imports stages"
    assert fault("refit/reports/x.py", "pipelines/y.py") == "nothing imports pipelines"
    assert fault("stages/x.py", "dvc") == "only pipelines may import dvc"
    assert fault("pipelines/tools/x.py", "pipelines/y.py") is None


def test_pipelines_and_promote_do_not_import_torch_directly_or_indirectly() -> None:
    heavy = {"torch", "torchvision", "torchmetrics", "pytorch_lightning"}
    for file in [*files("pipelines"), ROOT / "refit/commands/promote.py"]:
        todo, reached = [file], {file}
        while todo:
            at_import = {arrow.target for arrow in arrows_of(todo.pop()) if arrow.at_import}
            assert not at_import & heavy, f"{named(file)} reaches {at_import & heavy} at its import"
            new = {ROOT / target for target in at_import if target.endswith(".py")} - reached
            reached |= new
            todo += new


@pytest.mark.parametrize(
    ("module", "files_that_may"),
    [
        ("mlflow", {f"refit/tracking/{name}.py" for name in ("store", "runs", "model_runs", "registry")}),
        ("wandb", {"refit/tracking/loggers.py"}),
        ("filelock", {"refit/runtime/locks.py"}),
        (
            "argparse",
            {"refit/runtime/command.py", "refit/tracking/fit_logger.py"},
        ),  # the second for one of Lightning's types
        ("fcntl", set()),
    ],
)
def test_a_library_is_imported_only_in_its_listed_files(module: str, files_that_may: set[str]) -> None:
    arrows = [arrow for package in PACKAGES for file in files(package) for arrow in arrows_of(file)]
    assert {arrow.source for arrow in arrows if arrow.target == module} == files_that_may


def test_the_names_of_the_loggers_occur_only_in_loggers_and_environment() -> None:
    """Except refit/params, which defines the choices, and the environment, which silences them."""
    knowing = {
        named(file)
        for package in PACKAGES
        for file in files(package)
        if re.search("tensorboard|wandb|CSVLogger", file.read_text(encoding="utf-8"), re.IGNORECASE)
    }
    others = {file for file in knowing if not file.startswith("refit/params/")}
    assert others == {"refit/tracking/loggers.py", "refit/runtime/environment.py"}


@pytest.mark.parametrize("package", PACKAGES)
def test_no_file_is_longer_than_the_limit(package: str) -> None:
    lengths = {named(file): len(file.read_text(encoding="utf-8").splitlines()) for file in files(package)}
    assert {file: lines for file, lines in lengths.items() if lines > LONGEST} == {}


@pytest.mark.parametrize("package", PACKAGES)
def test_paths_below_data_are_written_only_in_artifacts(package: str) -> None:
    spelled = [
        f"{named(file)}:{node.lineno}: {node.value!r} belongs in refit/artifacts/paths.py"
        for file in files(package)
        if not named(file).startswith((PATHS_MODULE, *SPELL_PATHS_TOO))
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("data/")
    ]
    assert not spelled, "\n".join(spelled)
