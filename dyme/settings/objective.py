"""Sections `objective` and `memorize`: the loss of a step."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from dyme.settings.numbers import NonNegativeFloat
from dyme.settings.schema import Schema
from dyme.settings.weight_schedule import WeightSchedule


class MemorizeConfig(Schema):
    """How demonstrations are memorized."""

    on_missing_trace: Literal["answer", "skip"] = "answer"
    """For a record without a hint: memorize its answer alone, or skip it."""
    temperature: Literal["one", "sampling"] = "one"
    """Temperature of a demonstration's log-probabilities: 1, or that of sampling as in the published code."""


class ObjectiveConfig(Schema):
    """The loss: a surrogate per token and a normalization of its sum."""

    preset: Literal["grpo", "dapo", "dr_grpo", "bnpo", "cispo", "sapo", "gspo"] | None = None
    """TRL's name for a surrogate and a normalization; replaces both settings."""
    surrogate: Literal["clip", "cispo", "gspo", "sapo"] = "clip"
    """Per-token policy loss."""
    normalization: Literal["group", "row", "token", "component", "constant"] = "group"
    """How token losses are averaged; see docs/method.md."""
    scale: Literal["std", "none"] = "std"
    """Divide advantages by the group's standard deviation of rewards, or not (Dr. GRPO)."""
    epsilon_low: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Lower clip range."""
    epsilon_high: NonNegativeFloat = 0.2
    """Upper clip range."""
    beta: WeightSchedule = WeightSchedule(start=0.0)
    """Weight of the k3 estimate of the KL divergence from the initial model (the reference policy); 0: no reference."""
    entropy_coef: Annotated[float, Field(allow_inf_nan=False)] = 0.0
    """Weight of the entropy bonus on explored tokens."""
    memorize_weight: NonNegativeFloat = 1.0
    """lambda of the `component` normalization."""

    @model_validator(mode="after")
    def _no_reward_for_distance(self) -> ObjectiveConfig:
        if min(self.beta.start, self.beta.end or 0.0) < 0:
            raise ValueError("objective.beta must not be negative: a KL weight below 0 would reward distance")
        return self
