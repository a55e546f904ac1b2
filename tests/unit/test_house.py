"""The plan of the house: which room may import which, how long a file may be, and where a path is spelled."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = (
    "runtime", "params", "artifacts", "data", "batches", "tasks", "systems", "evaluation", "inference", "training",
    "tracking", "reports", "commands",
)  # fmt: skip
"""Of refit/, from the ground up: each imports only from itself and from those before it."""
DOORS = ("stages", "pipelines")
PACKAGES = ("refit", *DOORS)
COMMAND = "predict.py"
"""In refit/ itself, for a short name: it belongs to the commands."""
LONGEST = 400  # lines of a file


PATHS_MODULE = "refit/artifacts/"
SPELL_PATHS_TOO = {
    "refit/params/": "the defaults of params.yaml, and where its weights have to be",
    "stages/check.py": "it creates the folders of the user's own files, which are such defaults",
}


class Arrow(NamedTuple):
    """One file imports another, or another package, at its import or later."""

    source: str
    target: str
    at_import: bool


def files(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def named(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


@cache
def arrows_of(file: Path) -> tuple[Arrow, ...]:
    """What a file imports, in functions and under TYPE_CHECKING too: a project file, or a third party's package."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    at_import = {id(node) for node in run_at_import(tree.body)}
    return tuple(
        Arrow(named(file), target, id(node) in at_import)
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for target in targets(node, file)
    )


def run_at_import(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements that run when the module is imported: not those in functions or under TYPE_CHECKING."""
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
    # `from refit.reports import plots` imports a module, `from refit.reports.plots import DPI` a name of one.
    modules = {f"{node.module}.{alias.name}" for alias in node.names}
    return {target_of(module) if module_file(module) else target_of(node.module) for module in modules}


def target_of(module: str) -> str:
    file = module_file(module)
    return named(file) if file else module.partition(".")[0]


def module_file(module: str) -> Path | None:
    path = ROOT / module.replace(".", "/")
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


def room_of(file: str) -> str:
    """The room of a file in refit/, or its package."""
    package, room, *_ = Path(file).parts
    if package != "refit":
        return package
    return "commands" if room == COMMAND else room


def fault_of(arrow: Arrow) -> str | None:
    """What is wrong with an import; None if nothing is."""
    source, target = arrow.source, arrow.target
    here = room_of(source)
    if not target.endswith(".py"):
        if target in ("prefect", "dvc") and here != "pipelines":
            return f"only pipelines may import {target}"
        return None
    there = room_of(target)
    if here == there and here != "commands":
        return None
    if there in ("commands", *DOORS):
        return f"nothing imports {there}"
    if here in DOORS or ROOMS.index(here) > ROOMS.index(there):
        return None
    return f"{here} stands below {there}"


@pytest.mark.parametrize("package", PACKAGES)
def test_each_room_imports_only_from_the_rooms_below_it(package: str) -> None:
    arrows = [arrow for file in files(package) if file != ROOT / "refit/__init__.py" for arrow in arrows_of(file)]
    assert arrows
    faults = [f"{arrow.source} imports {arrow.target}: {fault}" for arrow in arrows
              if (fault := fault_of(arrow))]  # fmt: skip
    assert not faults, "\n".join(faults)


def test_the_rooms_are_the_folders_of_refit() -> None:
    folders = {path.name for path in (ROOT / "refit").iterdir() if path.is_dir() and any(path.glob("*.py"))}
    assert folders == set(ROOMS)
    assert {path.name for path in (ROOT / "refit").glob("*.py")} == {"__init__.py", COMMAND}


def test_a_wrong_import_is_named_with_both_of_its_ends() -> None:
    def fault(source: str, target: str) -> str | None:
        return fault_of(Arrow(source, target, True))

    assert fault("refit/training/x.py", "refit/tracking/y.py") == "training stands below tracking"
    assert fault("refit/tracking/y.py", "refit/training/x.py") is None
    assert fault("refit/commands/x.py", "refit/commands/y.py") == "nothing imports commands"
    assert fault("pipelines/x.py", "refit/commands/y.py") == "nothing imports commands"
    assert fault("pipelines/x.py", "stages/y.py") == "nothing imports stages"
    assert fault("refit/reports/x.py", "pipelines/y.py") == "nothing imports pipelines"
    assert fault("stages/x.py", "dvc") == "only pipelines may import dvc"
    assert fault("pipelines/tools/x.py", "pipelines/y.py") is None


def test_pipelines_and_promote_import_no_torch_and_nothing_that_does() -> None:
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
        ),  # the latter for a type of Lightning
        ("fcntl", set()),
    ],
)
def test_a_library_is_known_to_one_place(module: str, files_that_may: set[str]) -> None:
    arrows = [arrow for package in PACKAGES for file in files(package) for arrow in arrows_of(file)]
    assert {arrow.source for arrow in arrows if arrow.target == module} == files_that_may


def test_one_place_knows_the_names_of_the_loggers() -> None:
    """Besides refit/params, which says what may be chosen, and the environment that keeps them quiet."""
    knowing = {
        named(file)
        for package in PACKAGES
        for file in files(package)
        if re.search("tensorboard|wandb|CSVLogger", file.read_text(encoding="utf-8"), re.IGNORECASE)
    }
    others = {file for file in knowing if not file.startswith("refit/params/")}
    assert others == {"refit/tracking/loggers.py", "refit/runtime/environment.py"}


@pytest.mark.parametrize("package", PACKAGES)
def test_no_file_is_too_long_to_be_read_in_one_sitting(package: str) -> None:
    lengths = {named(file): len(file.read_text(encoding="utf-8").splitlines()) for file in files(package)}
    assert {file: lines for file, lines in lengths.items() if lines > LONGEST} == {}


@pytest.mark.parametrize("package", PACKAGES)
def test_a_path_below_data_is_spelled_in_artifacts_alone(package: str) -> None:
    spelled = [
        f"{named(file)}:{node.lineno}: {node.value!r} belongs into refit/artifacts/paths.py"
        for file in files(package)
        if not named(file).startswith((PATHS_MODULE, *SPELL_PATHS_TOO))
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("data/")
    ]
    assert not spelled, "\n".join(spelled)
