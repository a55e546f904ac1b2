"""Values of params.yaml for people: under dotted keys, as in `optimizer.learning_rate`, and as YAML writes them."""

import json
from collections.abc import Mapping
from typing import Any


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of nested mappings, each under its dotted key, in their order."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def as_in_yaml(value: object) -> str:
    """A value as params.yaml writes it."""
    return value if isinstance(value, str) else json.dumps(value, default=str)
