"""Settings of the selector (`selector`). Light: read before any model loads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from dyme.settings.numbers import Fraction, NonNegativeFloat
from dyme.settings.schema import Schema

SELECTORS = {
    "variance": "gates",
    "any_correct": "gates",
    "accuracy_gate": "gates",
    "reward_threshold": "gates",
    "always_explore": "gates",
    "always_memorize": "gates",
    "annealed": "joint",
    "scheduled": "joint",
    "difficulty_weighted": "difficulty",
    "entropy_weighted": "joint",
    "buffered": "buffered",
    "replay": "replay",
}
"""Every selector by name, and its file in dyme/selectors/. A new selector is a line here and a file there."""

if TYPE_CHECKING:
    SelectorName = str
else:
    SelectorName = Literal[tuple(SELECTORS)]  # a type checker takes no names that are computed


class SelectorConfig(Schema):
    """Which groups memorize and which explore (method dyme)."""

    name: SelectorName = "variance"
    """The rule; see docs/method.md for each formula."""
    threshold: NonNegativeFloat = 0.0
    """tau of `variance`; threshold of `reward_threshold` on the mean reward."""
    gamma: Fraction = 0.0
    """`accuracy_gate`: groups with an accuracy of at most gamma memorize."""
    peak: Fraction = 0.9
    """`scheduled`: the highest mu, the share of the memorized part of the loss."""
    valley: Fraction = 0.05
    """`scheduled`: mu after its decay."""
    warmup: Fraction = 0.0
    """`scheduled`: share of the steps in which mu rises from 0 to its peak."""
    decay: Fraction = 1.0
    """`scheduled`: share of the steps, after the warm-up, in which mu falls to its valley."""
    token_shaping: Literal["none", "p(1-p)"] = "p(1-p)"
    """`scheduled`: factor of each memorized token, p its probability."""
    buffer_size: Annotated[int, Field(gt=0, le=1_000_000)] = 32
    """`buffered`: records that nobody got right wait until there are this many, and are then memorized together."""
    path: str | None = None
    """`replay`: the modes.jsonl of a run with `run.modes`; `~` and environment variables are filled in."""

    @model_validator(mode="after")
    def _has_modes(self) -> SelectorConfig:
        if (self.path is None) == (self.name == "replay"):
            raise ValueError("selector.path is the modes.jsonl that selector.name=replay takes: set both or neither")
        return self

    @model_validator(mode="after")
    def _falls(self) -> SelectorConfig:
        if self.valley > self.peak:
            raise ValueError(
                f"selector.valley={self.valley} is above selector.peak={self.peak}: mu falls from peak to valley"
            )
        return self
