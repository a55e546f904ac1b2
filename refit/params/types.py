"""The base class of every section, and the kinds of values that several keys share."""

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError


class Section(BaseModel):
    """Immutable, without conversions between types, and without unknown keys. The docstring below each field is its
    description in docs/params.schema.json, which editors show."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _may_be_empty(cls, values: Any) -> Any:
        return {} if values is None else values  # `section:` with no keys below it is null in YAML


def _reject_bool(value: Any) -> Any:
    if isinstance(value, bool):  # in Python a bool is an int
        raise PydanticCustomError("bool", "Input should be a number, not true or false")
    return value


NOT_BOOL = BeforeValidator(_reject_bool)


def real(**bounds: Any) -> Any:
    """The field of a float within `bounds`; NOT_BOOL comes after it, so that the JSON schema has the bounds too."""
    # Not strict, because YAML 1.1 reads 1e-3 as text.
    return Field(strict=False, allow_inf_nan=False, **bounds)


Fraction = Annotated[float, real(ge=0, lt=1), NOT_BOOL]
Positive = Annotated[float, real(gt=0), NOT_BOOL]
Count = Annotated[int, Field(ge=1)]
Limit = Annotated[int, Field(ge=1)] | Annotated[float, real(gt=0, le=1), NOT_BOOL]
"""As in Lightning: the integer 1 is one batch, 1.0 is all batches."""
