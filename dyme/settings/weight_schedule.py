"""WeightSchedule: the weight of a reward, or of the KL term, as a function of the training step."""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from dyme.settings.schema import Schema


class WeightSchedule(Schema):
    """A weight that goes from `start` to `end` over training steps; a plain number stands for a constant weight."""

    start: float = Field(allow_inf_nan=False)
    """Weight until step `begin`; negative is allowed for rewards."""
    end: float | None = Field(default=None, allow_inf_nan=False)
    """Weight from step `begin` + `steps` on; without it the weight stays `start`."""
    steps: int | None = Field(default=None, gt=0)
    """Steps from `start` to `end`."""
    begin: int = Field(default=0, ge=0)
    """Steps before the weight begins to change."""
    shape: Literal["linear", "cosine"] = "linear"
    """A straight line, or half a cosine wave: slow, fast, slow."""

    @model_validator(mode="before")
    @classmethod
    def _number(cls, value: Any) -> Any:
        return value if isinstance(value, dict | WeightSchedule) else {"start": value}

    @model_validator(mode="after")
    def _whole(self) -> WeightSchedule:
        if (self.end is None) != (self.steps is None):
            raise ValueError("a weight schedule needs both end and steps: {start: 1.0, end: 0.0, steps: 200}")
        if self.end is None and self.model_fields_set & {"begin", "shape"}:
            raise ValueError("begin and shape of a weight schedule need end and steps: {start: 1, end: 0, steps: 200}")
        return self

    @model_serializer(mode="wrap")
    def _plain(self, handler: SerializerFunctionWrapHandler) -> Any:
        return handler(self) if self.changes else self.start

    @property
    def changes(self) -> bool:
        return self.end is not None

    @property
    def peak(self) -> float:
        """The highest weight of all steps."""
        return self.start if self.end is None else max(self.start, self.end)

    def at(self, step: int) -> float:
        """The weight after `step` finished steps: exactly `start` at first, exactly `end` from `begin` + `steps` on."""
        if self.end is None or self.steps is None:
            return self.start
        progress = min(1.0, max(0, step - self.begin) / self.steps)
        if progress == 1.0:
            return self.end
        share = progress if self.shape == "linear" else (1 - math.cos(math.pi * progress)) / 2
        return self.start + share * (self.end - self.start)
