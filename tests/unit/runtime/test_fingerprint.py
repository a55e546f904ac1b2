"""A source file's digest depends only on its meaning; a stage's code is all that it imports, except the observers."""

from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from refit.runtime import fingerprint
from refit.runtime.errors import UserError
from refit.runtime.fingerprint import PROJECT, code_of

STAGES = ("prepare", "scale_batch", "find_lr", "features", "fit", "test", "predict")
OURS = ("classifier", "cnn")

EVERY_SYNTAX = r'''"""Module."""

from __future__ import annotations

import os.path as path
from ..a import b as c, d
from . import *


@decorator(1, key="a" 'b' u"c")
class Shape(Base, metaclass=Meta):
    """A class."""

    side: int = 0x_ff
    """An attribute."""
    area: "Optional[int]"


@first
@second.third
async def work(a, /, b: int = 1, *args: str, c=None, **more: dict[str, "int"]) -> list[int]:
    """A function."""
    async with open(a) as file, lock:
        async for line in file:
            yield await line
    return


def texts(x, width, digits):
    first = f"plain" f" and {x}"
    second = "before " f"{x!r:>{width}.{digits}f} {{braces}} {x = } {x=!s:^10}" " after" f"" ""
    third = f"{f'{x:{width}}' + 'inner'}{'a' if x else 'b'}{x:}{x:%Y-%m-%d}" rf"\d{x}\n"
    fourth = f"{ x } é ß 漢字 \U0001F600 \N{BULLET} {x:\t>10}"
    return first, second, third, fourth, f"", f"{x}" f"{x}", f"{x!a}", f"{call(1)(lambda y: y)}", b"\x00\xff" b"raw"


def numbers():
    return 123_456_789_012_345_678_901_234_567_890, 1e999, -0.0, 1.1, 2j, 0b1010, True, None, ..., 10**400, LONG


def unicode():
    return "\ud800", "\u0378\U0001fae9", "it's", 'a "quote"', "", b""


def flow(value, *rest):
    global total
    try:
        while (n := len(rest)) > 1 and not value:
            continue
        else:
            pass
    except* (ValueError, TypeError) as error:
        raise RuntimeError from error
    finally:
        del value.attribute, rest[0]
    match value:
        case {"key": [first, *others, 3 | 4], **more} if first:
            "a string on its own"
        case Point(x=0, y=None) | Point(1, -2j):
            pass
        case None | True | "text" | b"bytes" as found:
            ...
        case [_, *_] | a.b.c:
            assert found, "message"
        case _:
            later = lambda *a, k=1, **kw: (yield)
    return [*rest, *({**value, 'a': 1} for value in rest if x)], rest[1:2, ::3, *value], {1, *x}, {k: v for k, v in x}


type_: Callable[[int], str] = print(*rest, not value is None, 1 < value <= 3 != 4, -value @ 2 // 3, sep="", **more)
with (open("a") as a, open("b") as b):
    x, *y = z = a; x += 1; x @= y; x: int
'''.replace("LONG", "0x" + "f" * 5000)  # Python refuses to convert such an int to decimal


def digest(source: str) -> str:
    return fingerprint._read(source.encode())[0]


def test_every_python_version_gives_this_digest() -> None:
    """Recorded with 3.11.7, 3.12.1 and 3.13.0. If versions differed, each new version would make every stage stale."""
    assert digest(EVERY_SYNTAX) == "c43949874a9ee42abf9a56c85e76abf3b0e9eec210e18e4ec056893c581740b4"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("x = 1", "# why\n\nx = 1  # how\n"),
        ("f(a, b)", "f(\n    a,\n    b,\n)"),
        ("x = 'a'", 'x = "a"'),
        ("x = 'ab'", "x = ('a'\n     'b')"),
        ("x = 1000", "x = 1_000"),
        ("x = (a) + (b)", "x = a + b"),
        ("def f():\n    return 1", 'def f():\n    """One."""\n    return 1'),
        ("class Fault(Exception): pass", 'class Fault(Exception):\n    """A fault."""'),
        ("class P:\n    x: int", 'class P:\n    x: int\n    """Pixels."""'),
        ("x = f'{y:}'", "x = f'{y}'"),
    ],
)
def test_code_with_the_same_meaning_has_the_same_digest(before: str, after: str) -> None:
    assert digest(before) == digest(after)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("x = 1", "x = 2"),
        ("x = 1", "x = 1.0"),
        ("x = 1", "x = True"),
        ("x = 'a'", "x = b'a'"),
        ("x = None", "x = 'None'"),
        ("x = ''", "x = f''"),
        ("f('')", "f()"),
        ("x = f'{y!r}'", "x = f'{y!s}'"),
        ("x = f'{y:2}'", "x = f'{y:3}'"),
        ("x: int", "x: float"),
        ("f(a)", "f(*a)"),
        ("x = [a, b]", "x = [[a], b]"),
        ("def f(a, b=None): return 1", "def f(a, *, b=None): return 1"),
        ("if a:\n    b()\nc()", "if a:\n    b()\n    c()"),
        ("'a'.upper()", "'b'.upper()"),
    ],
)
def test_code_with_another_meaning_has_another_digest(before: str, after: str) -> None:
    assert digest(before) != digest(after)


@pytest.fixture
def project(tmp_path: Path) -> Any:
    """Write the files of a small project with their imports; returns the code of its stage `fit`."""

    def code(files: dict[str, str], own: tuple[str, str] = OURS) -> set[str]:
        for name, source in {"stages/__init__.py": "import refit.runtime.warm", **files}.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(source)
        return set(code_of("fit", own, tmp_path))

    return code


def test_every_import_is_followed_and_package_init_files_count(project: Any) -> None:
    files = {
        "stages/fit.py": "import refit.a.one\ndef f():\n    try:\n        from refit.a import two\n    except E: pass",
        "refit/__init__.py": "",
        "refit/a/__init__.py": "from . import of_package",
        "refit/a/one.py": "from ..b import three",
        "refit/a/two.py": "match x:\n    case 1:\n        from .four import name",
        "refit/a/four.py": "",
        "refit/a/of_package.py": "",
        "refit/b/three.py": "if x:\n    pass\nelse:\n    import refit.b.five",
        "refit/b/five.py": "",
    }
    assert project({**files, "refit/a/unused.py": ""}) == files.keys()


def test_imports_only_for_type_checkers_do_not_count(project: Any) -> None:
    files = {
        "stages/fit.py": "if TYPE_CHECKING:\n    import refit.a, torch\nelse:\n    import refit.b",
        "refit/b.py": "",
    }
    assert project({**files, "refit/a.py": ""}) == files.keys()


def test_observers_and_their_imports_do_not_count(project: Any) -> None:
    watchers = {
        "refit/tracking/runs.py": "import mlflow, refit.of_watchers",
        "refit/runtime/warm.py": "import refit.of_watchers",
        "refit/of_watchers.py": "",
    }
    assert project({"stages/fit.py": "from refit.tracking.runs import log", **watchers}) == {"stages/fit.py"}


def test_installed_packages_count_by_import_name_and_the_standard_library_does_not(project: Any) -> None:
    source = "import os.path, torch.nn, PIL.Image, _pytest.fixtures, nowhere.at_all\nfrom yaml import safe_load"
    assert project({"stages/fit.py": source}) == {"stages/fit.py", "torch", "PIL", "_pytest", "yaml", "nowhere"}


OWN = {"refit/systems/mine.py": "from refit.systems.layers import Layer", "refit/systems/layers.py": "import timm"}
BUILDS = {"stages/fit.py": "import refit.systems.build", "refit/systems/build.py": "", **OWN}


def test_a_user_s_network_counts_with_its_imports_in_stages_that_build_a_system_with_it(project: Any) -> None:
    in_use = ("classifier", "refit.systems.mine.Net")
    assert project(BUILDS, in_use) == BUILDS.keys() | {"timm"}
    assert project(BUILDS) == BUILDS.keys() - OWN.keys()
    assert project(BUILDS | {"stages/fit.py": ""}, in_use) == {"stages/fit.py"}


def test_a_network_of_an_installed_package_counts_by_its_version(project: Any) -> None:
    assert project(BUILDS, ("classifier", "timm.models.resnet.ResNet")) == BUILDS.keys() - OWN.keys() | {"timm"}


def test_a_used_file_that_dvc_does_not_watch_fails_with_an_error_that_names_it(project: Any) -> None:
    with pytest.raises(UserError, match=r"^mine.py, which the stage fit uses, is in no folder that dvc.yaml watches"):
        project({**BUILDS, "mine.py": ""}, ("mine.System", "cnn"))


def test_a_file_that_is_not_python_fails_with_an_error_that_names_it(project: Any) -> None:
    with pytest.raises(UserError, match=r"^refit/a.py, which the stage fit uses, is not Python: .*line 1"):
        project({"stages/fit.py": "import refit.a", "refit/a.py": "def"})


@pytest.mark.parametrize("stage", STAGES)
def test_each_package_that_a_stage_uses_has_its_installed_version(stage: str) -> None:
    distributions = metadata.packages_distributions()
    packages = {name: found for name, found in code_of(stage, OURS).items() if not name.endswith(".py")}
    assert packages == {name: metadata.version(distributions[name][0]) for name in packages}
    assert {"torchvision", "pydantic"} <= packages.keys()
    assert not packages.keys() & {"mlflow", "wandb", "tensorboard", "prefect", "dvc"}


@pytest.mark.parametrize("stage", STAGES)
def test_no_package_of_the_stages_needs_the_slow_search_of_all_installed_packages(
    stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would take a third of a second in each fit."""
    monkeypatch.setattr(metadata, "packages_distributions", dict)
    assert "not installed" not in code_of(stage, OURS).values()


@pytest.mark.parametrize("stage", STAGES)
def test_the_report_code_counts_only_for_the_stages_that_write_reports(stage: str) -> None:
    code = code_of(stage, OURS)
    folders = {str(Path(name).parent) for name in code}
    assert ("refit/reports" in folders) == (stage in ("prepare", "test", "predict"))
    assert ("refit/reports/plots.py" in code) == (stage == "test"), "predict writes a page without plots"
    assert not folders & {"refit/tracking", "refit/runtime", "refit/commands"}


def test_a_digest_follows_edits_of_the_file(tmp_path: Path) -> None:
    """As in a long-running process while its files are edited."""
    file = tmp_path / "stages/fit.py"
    file.parent.mkdir()
    file.write_text("x = 1")
    before = code_of("fit", OURS, tmp_path)
    file.write_text("x = 2")
    assert code_of("fit", OURS, tmp_path) != before


def test_the_project_folder_is_the_root_of_this_repository() -> None:
    assert (PROJECT / "dvc.yaml").is_file()
