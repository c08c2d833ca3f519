"""Section `optim`: the optimizer and its learning rates."""

from __future__ import annotations

from typing import Literal, get_args

from pydantic import Field, model_validator

from dyme.settings.numbers import BelowOne, Fraction, NonNegativeFloat, NonNegativeInt, PositiveFloat
from dyme.settings.schema import Schema

Part = Literal["vision", "connector", "language", "head"]


class OptimConfig(Schema):
    """AdamW and its learning-rate schedule."""

    lr: PositiveFloat = 1e-5
    """Peak learning rate."""
    part_lr: dict[str, PositiveFloat] = Field(default_factory=dict)
    """Peak learning rate of single parts, e.g. {vision: 1e-6}."""
    betas: tuple[BelowOne, BelowOne] = (0.9, 0.95)
    """AdamW betas."""
    eps: PositiveFloat = 1e-8
    """AdamW epsilon."""
    weight_decay: NonNegativeFloat = 0.0
    """On matrices only; biases, norms and other vectors are never decayed."""
    warmup_steps: NonNegativeInt = 0
    """Linear warm-up."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Decay from the peak to lr * min_lr_ratio at train.max_steps."""
    min_lr_ratio: Fraction = 0.0
    """Floor of the decay."""
    grad_clip: NonNegativeFloat = 1.0
    """Global gradient norm clip; 0 is off."""
    modulation: NonNegativeFloat = 0.0
    """alpha of OGM, which slows down vision or language in each step, whichever learns faster; 0 is off."""

    @model_validator(mode="after")
    def _parts_exist(self) -> OptimConfig:
        if unknown := sorted(set(self.part_lr) - set(get_args(Part))):
            raise ValueError(f"optim.part_lr: no part '{unknown[0]}'; allowed: {', '.join(get_args(Part))}")
        return self
