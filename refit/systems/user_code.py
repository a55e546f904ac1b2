"""Find the user's own systems and networks by dotted path, and check their arguments against their signature."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from refit.params import nearest
from refit.params.user_code import user_object
from refit.runtime.errors import UserError

Provided = Mapping[str, Callable[[], Any]]
"""The arguments that Refit provides to a constructor, by name; each is created only if the signature names it."""


def user_class(path: str, key: str) -> type:
    """The class at the dotted path `path`, the value of `key`. Raises UserError if there is none."""
    if "." not in path:
        raise UserError(f"{key} = {path!r} is unknown; expected one of Refit's own, or a dotted path to a class")
    found: type = user_object(path, key, "class", lambda value: isinstance(value, type))
    return found


def check_arguments(target: type, provided: set[str], arguments: Mapping[str, Any], key: str) -> None:
    """Raises UserError unless `target` can be called with `arguments`, the value of `key`, and what Refit provides."""
    accepted = inspect.signature(target).parameters
    call = f"{target.__name__}({', '.join(accepted)})"
    accepts_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in accepted.values())
    for name in arguments:
        if name in provided:
            raise UserError(f"{key}.{name}: Refit provides {name} to {call}; remove it")
        if name not in accepted and not accepts_any:
            raise UserError(f"{key}.{name}: {call} has no such argument{nearest(name, list(accepted))}")
    for name, parameter in accepted.items():
        needed = parameter.default is parameter.empty and parameter.kind not in (
            parameter.VAR_POSITIONAL,
            parameter.VAR_KEYWORD,
        )
        if needed and name not in provided and name not in arguments:
            raise UserError(
                f"{key} lacks {name!r}, which {call} needs; Refit itself provides only {', '.join(sorted(provided))}"
            )


def construct(target: type, provided: Provided, arguments: Mapping[str, Any], key: str) -> Any:
    """Call `target` with `arguments` and the provided arguments that its signature names. Raises as check_arguments."""
    check_arguments(target, set(provided), arguments, key)
    accepted = inspect.signature(target).parameters
    given = {name: make() for name, make in provided.items() if name in accepted}
    try:
        return target(**given, **arguments)
    except Exception as error:
        error.add_note(f"{target.__name__} was called with {', '.join(given)} from Refit and {key} = {dict(arguments)}")
        raise
