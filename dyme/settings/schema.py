"""The base of every configuration model: unknown keys are errors, numbers have bounds, values do not change after
parsing."""

from __future__ import annotations

import typing
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, ConfigDict, field_validator, model_validator
from pydantic_core import PydanticCustomError

MAX_INT = 2**32 - 1
MAX_FLOAT = 1e9
MIN_FLOAT = 1e-30


class Schema(BaseModel):
    """Immutable settings; an unknown key or a value of another type is an error.

    Bounds that hold for every number, besides those of its field: whole numbers up to `MAX_INT` in size, others 0 or
    from `MIN_FLOAT` to `MAX_FLOAT`; infinite ones and NaN are errors, as is a truth value in place of a number.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, use_attribute_docstrings=True, allow_inf_nan=False
    )

    @model_validator(mode="before")
    @classmethod
    def _no_truth_value(cls, given: Any) -> Any:
        """Pydantic takes true for the number 1. Of the model, since a field that tells models apart takes no such
        validator; `explain` reads the field from the error."""
        for name, value in given.items() if isinstance(given, dict) else ():
            if name not in cls.model_fields:
                continue
            types = set(_leaves(cls.model_fields[name].annotation))
            if not types & {bool, Any} and any(isinstance(each, bool) for each in _values(value, deep=_plain(types))):
                what = "a number, text or list" if _plain(types) else "settings below it (key: value)"
                raise PydanticCustomError("truth_value", "write {what}", {"what": what, "field": name, "value": value})
        return given

    @field_validator("*", mode="after")
    @classmethod
    def _bounded(cls, value: Any) -> Any:
        for each in _values(value, deep=True):
            if isinstance(each, int) and abs(each) > MAX_INT:
                raise PydanticCustomError("too_large", "must be at most {most} in size", {"most": MAX_INT})
            if isinstance(each, float) and each and not MIN_FLOAT <= abs(each) <= MAX_FLOAT:
                bounds = {"least": f"{MIN_FLOAT:g}", "most": f"{MAX_FLOAT:g}"}
                raise PydanticCustomError("too_large", "must be 0, or from {least} to {most} in size", bounds)
        return value


def _values(value: Any, *, deep: bool) -> Iterator[Any]:
    """The value itself, or, if it is a container, what it holds."""
    if deep and isinstance(value, list | tuple | dict):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _values(each, deep=True)
    else:
        yield value


def _leaves(annotation: Any) -> Iterator[Any]:
    """The types that an annotation is made of."""
    origin = typing.get_origin(annotation)
    if origin is typing.Literal:
        yield from (type(each) for each in typing.get_args(annotation))
    elif origin is typing.Annotated:
        yield from _leaves(typing.get_args(annotation)[0])
    elif origin is not None:
        for each in typing.get_args(annotation):
            yield from _leaves(each)
    else:
        yield annotation


def _plain(types: set[Any]) -> bool:
    """Whether no settings stand below a field of these types."""
    return not any(isinstance(each, type) and issubclass(each, BaseModel) for each in types)
