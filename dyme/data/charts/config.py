"""Settings of the generated charts."""

from __future__ import annotations

from typing import Any, Literal, get_args

from pydantic import Field, model_validator

from dyme.data.charts.chart import ChartKind, Split
from dyme.settings.schema import Schema

QuestionKind = Literal["value", "maximum", "minimum", "count", "sum", "difference", "comparison"]
Trace = Literal["high", "medium", "low"]
Colour = Literal["red", "green", "blue", "yellow", "pink", "cyan"]

_SCALE_DEFAULTS = {
    "tiny": {"size": 32, "max_items": 4, "max_value": 9},
    "full": {"size": 640, "max_items": 6, "max_value": 100},
}
_SCALE_RANGES = {
    "tiny": {"size": (32, 64), "max_items": (2, 6), "max_value": (4, 15)},
    "full": {"size": (320, 1600), "max_items": (2, 8), "max_value": (20, 10_000)},
}


class ChartSettings(Schema):
    """Generated charts with questions, answers and demonstrations; a pure function of these settings."""

    source: Literal["charts"] = "charts"
    scale: Literal["tiny", "full"] = "tiny"
    """`tiny`: 32x32 pixels, nothing to read; `full`: 640x480 with axes, title and words."""
    split: Split = "train"
    """No chart content is ever in both splits, whatever the seeds."""
    count: int = Field(ge=1)
    """Number of records. Record i does not depend on it."""
    seed: int = 0
    """Another seed draws other charts of the same split."""
    task: Literal["qa", "captions", "base"] = "qa"
    """`qa`: question, hint and answer; `captions`: the answer lists all readings; `base`: captions and bare answers."""
    caption_fraction: float = Field(default=0.5, ge=0.0, le=1.0)
    """Share of captions in the `base` task."""
    captions_first: int = Field(default=0, ge=0)
    """The first records of the `base` task are captions, all of them; with data.shuffle=false a curriculum."""
    charts: tuple[ChartKind, ...] = Field(default=("bar", "line", "pie"), min_length=1)
    """Kinds of chart, drawn with equal probability."""
    kinds: tuple[QuestionKind, ...] = Field(
        default=("value", "maximum", "minimum", "count", "sum", "difference", "comparison"), min_length=1
    )
    """Kinds of question, drawn with equal probability."""
    trace: Trace = "high"
    """Quality of `hint`; changes nothing else in a record."""
    wrong_reading_probability: float = Field(default=0.3, ge=0.0, le=1.0)
    """Probability that a `low` trace misreads one value."""
    size: int = 32
    """Width in pixels: 32 to 64 at tiny scale (square), 320 to 1600 at full scale (4:3). Default 32 and 640."""
    max_items: int = 4
    """Largest number of categories; the smallest is 2. Default 4 (tiny) and 6 (full)."""
    max_value: int = 9
    """Largest value of bars and lines; pies always sum to 10 (tiny) or 100 (full). Default 9 (tiny) and 100 (full)."""
    values: tuple[int, int] | None = None
    """Smallest and largest value drawn, for bars and lines; the scale of the picture stays that of max_value."""
    colours: tuple[Colour, ...] = Field(default=get_args(Colour), min_length=2)
    """Colours that occur, at tiny scale."""

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_scale(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        scale = values.get("scale", "tiny")
        return {**(_SCALE_DEFAULTS.get(scale, {}) if isinstance(scale, str) else {}), **values}

    @model_validator(mode="after")
    def _ranges(self) -> ChartSettings:
        for name, (low, high) in _SCALE_RANGES[self.scale].items():
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name} is {getattr(self, name)}; scale {self.scale} takes {low} to {high}")
        if self.scale == "tiny" and self.size // self.max_items < 6:
            raise ValueError(f"{self.max_items} columns do not fit {self.size} pixels; raise size or lower max_items")
        if self.scale == "full" and self.max_value % 20:
            raise ValueError(f"max_value is {self.max_value}; scale full takes multiples of 20")
        if self.scale == "full" and self.colours != get_args(Colour):
            raise ValueError("colours are those of scale tiny; leave them out at scale full")
        if len(set(self.colours)) < len(self.colours):
            raise ValueError(f"colours names one twice: {', '.join(self.colours)}")
        if self.values is None:
            return self
        if "pie" in self.charts:
            raise ValueError("values do not hold for pies, which have a fixed sum; set charts to bar, line or both")
        low, high = self.values
        step = 1 if self.scale == "tiny" else self.max_value // 20
        if not step <= low < high <= self.max_value:
            raise ValueError(f"values are {low} to {high}; they must rise and lie in {step} to {self.max_value}")
        if high // step - -(-low // step) < 1:
            raise ValueError(f"values {low} to {high} hold less than two marks of the axis, which are {step} apart")
        return self

    @property
    def value_range(self) -> tuple[int, int]:
        """Smallest and largest value of bars and lines."""
        return self.values or (1 if self.scale == "tiny" else self.max_value // 20, self.max_value)
