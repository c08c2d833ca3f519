"""The base of every configuration model: unknown keys are errors, values do not change after parsing."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Schema(BaseModel):
    """Immutable settings; an unknown key or a value of another type is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, use_attribute_docstrings=True)
