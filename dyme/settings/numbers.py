"""Numbers with limits, shared by the sections. `Schema` bounds all of them besides."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

PositiveInt = Annotated[int, Field(gt=0)]
NonNegativeInt = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]
UpToThousand = Annotated[int, Field(gt=0, le=1000)]
UpToMillion = Annotated[int, Field(gt=0, le=1_000_000)]
"""Sizes of what is held in memory at once."""
