"""A user's own systems and networks, by dotted path: found, and their arguments checked against their signature."""

import importlib
import importlib.util
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from refit.params import nearest
from refit.runtime.errors import UserError

Offers = Mapping[str, Callable[[], Any]]
"""What Refit has to give to a constructor, by the name of its argument; each is made only if it is asked for."""


def user_class(path: str, key: str) -> type:
    """The class at the dotted path `path`, the value of `key`. Raises UserError where there is none."""
    module_name, _, name = path.rpartition(".")
    if not module_name:
        raise UserError(f"{key} = {path!r} is unknown; expected one of Refit's own, or a dotted path to a class")
    if importlib.util.find_spec(module_name.partition(".")[0]) is None:
        raise UserError(f"{key} = {path!r}: there is no package {module_name.partition('.')[0]!r}")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if not module_name.startswith(error.name or " "):
            raise  # the user's module imports what is not there
        raise UserError(f"{key} = {path!r}: there is no module {error.name!r}") from None
    except SyntaxError as error:
        where = f"{Path(error.filename or module_name).name}, line {error.lineno}"
        raise UserError(f"{key} = {path!r}: {where}: {error.msg}") from None
    found = getattr(module, name, None)
    if not isinstance(found, type):
        close = nearest(name, [other for other, value in vars(module).items() if isinstance(value, type)])
        raise UserError(f"{key} = {path!r}: {module_name} holds no class {name!r}{close}")
    return found


def check_arguments(made: type, offers: set[str], arguments: Mapping[str, Any], key: str) -> None:
    """Raises UserError unless `made` can be called with `arguments`, the value of `key`, and what Refit offers."""
    takes = inspect.signature(made).parameters
    call = f"{made.__name__}({', '.join(takes)})"
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in takes.values())
    for name in arguments:
        if name in offers:
            raise UserError(f"{key}.{name}: Refit itself gives {call} its {name}; remove it")
        if name not in takes and not takes_any:
            raise UserError(f"{key}.{name}: {call} takes no such argument{nearest(name, list(takes))}")
    for name, parameter in takes.items():
        needed = parameter.default is parameter.empty and parameter.kind not in (
            parameter.VAR_POSITIONAL,
            parameter.VAR_KEYWORD,
        )
        if needed and name not in offers and name not in arguments:
            raise UserError(
                f"{key} lacks {name!r}, which {call} needs; Refit itself can give {', '.join(sorted(offers))}"
            )


def construct(made: type, offers: Offers, arguments: Mapping[str, Any], key: str) -> Any:
    """`made` called with `arguments` and those of the offers that its signature names. Raises as check_arguments."""
    check_arguments(made, set(offers), arguments, key)
    takes = inspect.signature(made).parameters
    given = {name: make() for name, make in offers.items() if name in takes}
    try:
        return made(**given, **arguments)
    except Exception as error:
        error.add_note(f"{made.__name__} was made with {', '.join(given)} of Refit's and {key} = {dict(arguments)}")
        raise
