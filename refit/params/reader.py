"""The one reader of params.yaml: it returns valid parameters, or explains each fault to the user."""

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from refit.params import strict_yaml
from refit.params.params import Params
from refit.params.rules import broken_rules
from refit.params.spelling import nearest
from refit.params.types import Section
from refit.runtime.errors import UserError

PARAMS_FILE = Path("params.yaml")


def load_params(path: Path = PARAMS_FILE) -> Params:
    """Read and check a whole parameter file. Keys that it does not have take their defaults.

    Raises UserError with one line per fault: the file, the dotted key, what was expected.
    """
    try:
        text = path.read_text(encoding="utf-8")
        values = strict_yaml.load(text)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; run from the root of the repository") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: {error}; save it as UTF-8") from None
    except yaml.MarkedYAMLError as error:
        where = f" (line {error.problem_mark.line + 1})" if error.problem_mark else ""
        raise UserError(f"{path} is not valid YAML: {error.problem}{where}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise UserError(f"{path} is nested too deeply; expected sections of keys and values") from None
    return check_params(values, str(path), text)


def check_params(values: Any, where: str = str(PARAMS_FILE), text: str = "") -> Params:
    """Check parsed parameters. Raises UserError with one line per fault, each led by `where`; if the `text` that was
    parsed is given, an unknown key comes with its line."""
    if not isinstance(values, dict):
        found = "nothing" if values is None else repr(values)
        raise UserError(f"{where}: expected sections of keys and values, found {textwrap.shorten(found, 60)}")
    try:
        params = Params.model_validate(values)
        faults = list(broken_rules(params))
    except ValidationError as error:
        faults = _explain(error, strict_yaml.lines_of_keys(text) if text else {})
    if faults:
        raise UserError("\n".join(f"{where}: {fault}" for fault in faults))
    return params


def _explain(error: ValidationError, places: Mapping[str, tuple[int, int]]) -> list[str]:
    """One line for each faulty key. Pydantic reports one fault for each type that the key may have."""
    lines: dict[str, str] = {}
    rules: dict[str, list[str]] = {}
    for fault in error.errors():
        section, keys = _resolve(fault["loc"])
        path = ".".join(keys)
        if fault["type"] in ("extra_forbidden", "invalid_key"):
            suggestion = nearest(keys[-1], list(section.model_fields), path.removesuffix(keys[-1]))
            lines[path] = f"{path} is not a known key{suggestion}{_remedy(suggestion, places.get(path))}"
        elif fault["type"] == "value_error":
            lines[path] = f"{path}: {fault['ctx']['error']}"
        else:
            lines.setdefault(path, f"{path} = {fault['input']!r}")
            rules.setdefault(path, []).append(_rule(fault))
    for path, found in rules.items():
        must = " or ".join(dict.fromkeys(found)).replace(" or be ", " or ")
        lines[path] = f"{lines[path]} must {must}. {_description(path)}".rstrip()
    return list(lines.values())


def _remedy(suggestion: str, place: tuple[int, int] | None) -> str:
    """How to take an unknown key out of the file: a failed `dvc exp run -S` leaves it there."""
    if place is None:
        return ""
    first, last = place
    lines = f"line {first}" if first == last else f"lines {first} to {last}"
    return f" Rename it or delete {lines}" if suggestion else f"; delete {lines}"


def _rule(fault: ErrorDetails) -> str:
    """What the value must do or be, such as `be greater than 0`."""
    if fault["type"] == "model_type":
        return "be a section of keys"
    return fault["msg"].partition(" should ")[2].partition(", unable")[0]


def _description(path: str) -> str:
    section, keys = _resolve(tuple(path.split(".")))
    return " ".join((section.model_fields[keys[-1]].description or "").split())


def _resolve(loc: tuple[int | str, ...]) -> tuple[type[Section], list[str]]:
    """The section that owns the faulty key, and the path to the key, without what pydantic adds for unions."""
    section: type[Section] = Params
    keys: list[str] = []
    for part in loc:
        keys.append(str(part))
        field = section.model_fields.get(str(part))
        if field is None or not (isinstance(field.annotation, type) and issubclass(field.annotation, Section)):
            break
        if len(keys) < len(loc):
            section = field.annotation
    return section, keys
