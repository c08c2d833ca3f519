"""Section `reward`: how completions are scored."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, model_validator

from dyme.settings.schema import Schema
from dyme.settings.weight_schedule import WeightSchedule

Per = Literal["step", "group"]
"""When a function is called: once for a step, or once for each group."""

FUNCTION = re.compile(r"(?P<file>.+\.py):(?P<function>[^\W\d]\w*)")


class UserReward(Schema):
    """A function `f(prompts, completions, **columns) -> list of numbers or None`, sync or async, as in TRL."""

    function: str
    """"file.py:function". `~` and environment variables are filled in; relative paths start at the working folder."""
    weight: WeightSchedule = WeightSchedule(start=1.0)
    """A number (1.0 by default), or {start: 1.0, end: 0.0, steps: 200}. With weight 0 the function is only measured."""
    name: str = ""
    """Name in metrics and messages (default: the name of the function)."""
    timeout_s: float = Field(default=30.0, gt=0, le=600)
    """Seconds a call may take; after that its rows are unscored."""
    per: Per = "step"
    """step: one call with all completions of the rank. group: one for each prompt, while others are still decoded."""

    @model_validator(mode="after")
    def _names(self) -> UserReward:
        if not FUNCTION.fullmatch(self.function):
            raise ValueError(
                f"reward.user: function {self.function!r} must be written file.py:function, "
                "for example rewards/short.py:short_enough"
            )
        if not re.fullmatch(r"[\w-]+", self.title) or self.title == "verifier":
            raise ValueError(
                f"reward.user: name '{self.title}' must be of letters, digits, '_' and '-', and not 'verifier'"
            )
        return self

    @property
    def title(self) -> str:
        """The name under which it is logged."""
        return self.name or self.function.rpartition(":")[2]


class RewardWeights(Schema):
    """Weights of the reward parts: non-negative, not all zero unless there are user rewards."""

    format: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    """Weight of the answer format."""
    thinking: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    """Weight of the thinking checker; counts 0 for records that have neither hint nor facts."""
    accuracy: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    """Weight of the verifier's accuracy."""


class RewardConfig(Schema):
    """How completions are scored."""

    weights: RewardWeights = RewardWeights()
    """Weights of format, thinking and accuracy."""
    verifier: Literal[
        "auto", "exact", "numeric", "choice", "relaxed", "vqa", "yes_no", "math", "multi", "mathvista", "tabmwp"
    ] = "auto"
    """How the answer is compared with the gold answers; auto chooses by the record, see docs/rewards.md."""
    relative_tolerance: float = Field(default=1e-6, ge=0, lt=1)
    """Error allowed to a number, as a fraction of the gold value; the default allows for rounding of floats only."""
    require_format: bool = False
    """Reward 0 for a completion in an invalid format."""
    min_thinking_chars: int = Field(default=0, ge=0)
    """Characters that must precede the answer flag for the format to be valid."""
    length: WeightSchedule = WeightSchedule(start=0.0)
    """Weight of the dynamic length reward, a number or a schedule like those of `user`; see docs/rewards.md."""
    user: tuple[UserReward, ...] = ()
    """Your functions that add to the reward, see docs/rewards.md."""

    @model_validator(mode="after")
    def _possible(self) -> RewardConfig:
        own = any(reward.weight.start or reward.weight.end for reward in self.user)
        if not (self.weights.format or self.weights.thinking or self.weights.accuracy or own):
            raise ValueError(
                "every reward weight is 0: set at least one of format, thinking, accuracy in reward.weights above 0, "
                "or give an entry of reward.user a weight"
            )
        titles = [reward.title for reward in self.user]
        if twice := sorted({title for title in titles if titles.count(title) > 1}):
            raise ValueError(f"reward.user: two rewards are called '{twice[0]}'; give one of them another name")
        return self
