"""Import what params.yaml names by a dotted path: a class or a function of the user's own."""

import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from refit.params.spelling import nearest
from refit.runtime.errors import UserError


def user_object(path: str, key: str, expected: str, fits: Callable[[Any], bool]) -> Any:
    """The object at the dotted path `path`, the value of `key`. `expected` names its kind, such as class, and `fits`
    tells whether an object is of this kind. Raises UserError if there is no such object."""
    module_name, _, name = path.rpartition(".")
    if not all(part.isidentifier() for part in path.split(".")):
        raise UserError(f"{key} = {path!r} is no dotted path, such as package.module.{expected}")
    if importlib.util.find_spec(module_name.partition(".")[0]) is None:
        raise UserError(f"{key} = {path!r}: there is no package {module_name.partition('.')[0]!r}")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if not module_name.startswith(error.name or " "):
            raise  # raised inside the user's module, by an import of its own
        raise UserError(f"{key} = {path!r}: there is no module {error.name!r}") from None
    except SyntaxError as error:
        where = f"{Path(error.filename or module_name).name}, line {error.lineno}"
        raise UserError(f"{key} = {path!r}: {where}: {error.msg}") from None
    found = getattr(module, name, None)
    if not fits(found):
        close = nearest(name, [other for other, value in vars(module).items() if fits(value)])
        raise UserError(f"{key} = {path!r}: {module_name} has no {expected} {name!r}{close}")
    return found
