"""What the code of a stage means: a digest of each project file that it imports, and the version of each package.

A comment, a docstring or another formatting changes no digest, and every version of Python makes the same.
"""

import ast
import hashlib
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from importlib import metadata
from pathlib import Path

from refit.runtime.errors import UserError

PROJECT = Path(__file__).resolve().parents[2]

_WATCHED = ("refit/", "stages/")  # what dvc.yaml has `check` depend on
# These change no result. The keys in params/operations.py do not, the rules only refuse values, and what a stage reads
# is recorded beside its code.
_WATCHERS = (
    "refit/runtime/", "refit/tracking/", "refit/params/operations.py", "refit/params/reads.py",
    "refit/params/rules.py", "refit/params/spelling.py", "stages/__init__.py",
)  # fmt: skip
_SYSTEM_BUILDER = "refit/systems/build.py"
_SOURCE_OPENER = "refit/data/sources/open.py"
_DISTRIBUTIONS = {  # named otherwise than their import
    "PIL": "pillow", "lightning_fabric": "pytorch-lightning", "sklearn": "scikit-learn", "yaml": "PyYAML",
}  # fmt: skip
_BLOCKS = ("body", "orelse", "handlers", "finalbody", "cases")  # where statements hold statements


def code_of(stage: str, own: Sequence[str] = (), root: Path = PROJECT, source: str = "") -> dict[str, str]:
    """The code that decides the results of `stage`: its module and all that it imports, except for the watchers.

    By the path of a project file the sha256 of its meaning, by the name of a package its version. `own` are the values
    of model.system and model.network: a class named there by dotted path counts for a stage that builds a system.
    `source` is that of data.source: a function of the user's own counts for a stage that reads the raw images. Raises
    UserError where a file is not Python, or an edit of it would go unnoticed.
    """
    code: dict[str, str] = {}
    todo = [f"stages.{stage}"]
    known: set[str] = set()
    for module in todo:  # which grows meanwhile
        if module in known:
            continue
        known.add(module)
        files = list(_files_of(module, root))
        package = module.partition(".")[0]
        if not files and package not in sys.stdlib_module_names and package not in code:
            code[package] = _version(package)
        for file in reversed(files):  # an error names the module, not its package
            name = file.relative_to(root).as_posix()
            if name in code or name.startswith(_WATCHERS):
                continue
            if not name.startswith(_WATCHED):
                raise UserError(f"{name}, which the stage {stage} uses, is in no folder that dvc.yaml watches, so an "
                                "edit of it would go unnoticed; move it into refit/systems/")  # fmt: skip
            try:
                code[name], imports = _read(file.read_bytes())
            except (SyntaxError, ValueError) as error:
                raise UserError(f"{name}, which the stage {stage} uses, is not Python: {error}") from None
            folders = name.split("/")[:-1]
            for level, imported in imports:
                todo.append(".".join([*folders[: len(folders) + 1 - level], imported]) if level else imported)
            if name == _SYSTEM_BUILDER:
                todo += [path for path in own if "." in path]
            if name == _SOURCE_OPENER and "." in source and ":" not in source:
                todo.append(source)
    return dict(sorted(code.items()))


def own_code(own: Sequence[str], root: Path = PROJECT) -> dict[str, str]:
    """For each class in `own`, by its dotted path: the sha256 of what its file means, or the version of its package."""
    code = {}
    for path in own:
        if "." in path:
            files = list(_files_of(path.rpartition(".")[0], root))
            code[path] = _read(files[-1].read_bytes())[0] if files else _version(path.partition(".")[0])
    return code


def _files_of(module: str, root: Path) -> Iterator[Path]:
    """The project's files that run when `module` is imported: its own, and the `__init__.py` of each package above."""
    path = root
    for part in module.split("."):
        path = path / part
        yield from (file for file in (path.with_name(f"{part}.py"), path / "__init__.py") if file.is_file())
        if not path.is_dir():  # most imports are of packages, which this spares a look for each of their parts
            return


def _version(package: str) -> str:
    try:
        return metadata.version(_DISTRIBUTIONS.get(package, package))
    except metadata.PackageNotFoundError:  # named otherwise too; this way takes 0.3 s
        names = sorted(set(metadata.packages_distributions().get(package, [])))
        return ", ".join(map(metadata.version, names)) or "not installed"


@cache
def _read(source: bytes) -> tuple[str, list[tuple[int, str]]]:
    """The sha256 of what a source file means, and what it imports, each as its number of leading dots and its name."""
    tree, text = ast.parse(source), list[str]()
    _write_meaning(tree, text)
    return hashlib.sha256("".join(text).encode()).hexdigest(), list(_imports(tree))


def _imports(block: ast.AST) -> Iterator[tuple[int, str]]:
    if isinstance(block, ast.Import):
        yield from ((0, alias.name) for alias in block.names)
    elif isinstance(block, ast.ImportFrom):
        for alias in block.names:  # which may be a module too
            yield block.level, f"{block.module}.{alias.name}" if block.module else alias.name
    types_only = isinstance(block, ast.If) and ast.unparse(block.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
    for field in _BLOCKS[1:] if types_only else _BLOCKS:
        for inner in getattr(block, field, []):
            yield from _imports(inner)


def _write_meaning(node: object, text: list[str]) -> None:
    """Append a syntax tree as text. `ast.dump` writes the same tree in other ways from one Python to the next."""
    if isinstance(node, list):
        for item in node:
            _write_meaning(item, text)
            text.append(",")
    elif not isinstance(node, ast.AST):
        # repr refuses long numbers, and depends on Unicode's age
        text.append(hex(node) if type(node) is int else ascii(node))
    else:
        text.append(f"{type(node).__name__}(")
        for name in node._fields:
            value = getattr(node, name, None)
            if isinstance(value, list):
                value = [item for item in value if not _means_nothing(item, node)]
            empty = value is None or value == [] or (name == "format_spec" and getattr(value, "values", None) == [])
            if not empty and name not in ("ctx", "kind"):  # the place says the former; the latter is the u of u"text"
                text.append(f"{name}=")
                _write_meaning(value, text)
        text.append(")")


def _means_nothing(item: object, within: ast.AST) -> bool:
    if isinstance(within, ast.JoinedStr):  # Python 3.12.1 adds empty texts
        return isinstance(item, ast.Constant) and item.value == ""
    text = isinstance(item, ast.Expr) and isinstance(item.value, ast.Constant) and isinstance(item.value.value, str)
    return text or isinstance(item, ast.Pass)
