"""Values of params.yaml for people: under dotted keys, as in `optimizer.learning_rate`, and as YAML writes them."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel

_LITTLE = 4  # letters: name, size, flip, val


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of nested mappings, each under its dotted key, in their order."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def not_at_default(params: BaseModel) -> dict[str, Any]:
    """The values that are not at their defaults, by dotted key; of a part of the parameters, those that it has."""
    given = flatten(params.model_dump())
    defaults = flatten(type(params)().model_dump())
    return {key: value for key, value in given.items() if key not in defaults or value != defaults[key]}


def short_names(keys: Iterable[str]) -> dict[str, str]:
    """Each dotted key without its section, for narrow tables: `weight_decay`. It keeps its section if another key has
    the same name, or if the name says little alone, such as `batch.size`."""
    last = {key: key.rpartition(".")[2] for key in keys}
    count = Counter(last.values())
    return {key: name if count[name] == 1 and len(name) > _LITTLE else key for key, name in last.items()}


def as_in_yaml(value: object) -> str:
    """A value as params.yaml writes it."""
    return value if isinstance(value, str) else json.dumps(value, default=str)
