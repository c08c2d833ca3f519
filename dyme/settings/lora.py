"""Settings of LoRA (`model.lora`). Light: read before any model loads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field, model_validator

from dyme.settings.schema import Schema


class LoraConfig(Schema):
    """Low-rank adapters (LoRA) are trained, every weight of the model itself is frozen."""

    r: Annotated[int, Field(gt=0, le=100_000)] = 16
    """Rank of an adapter."""
    alpha: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 32
    """An adapter changes its weight by alpha / r times B A."""
    targets: tuple[str, ...] = ()
    """Ends of the names of the Linears that get an adapter, e.g. [q_proj, v_proj]; empty: all of the decoder layers.
    The head has none."""
    vision: bool = False
    """Also the Linears of vision tower and connector."""

    @model_validator(mode="after")
    def _named(self) -> LoraConfig:
        if not all(target.strip(". ") for target in self.targets):
            raise ValueError(
                "model.lora.targets holds an empty name: write ends of module names, e.g. [q_proj, v_proj]"
            )
        return self

    def check_freeze(self, freeze: Sequence[str]) -> None:
        """Raises ValueError where `model.freeze` names a part that is to have adapters."""
        held = ("vision", "connector", "language") if self.vision else ("language",)
        if clash := [part for part in freeze if part in held]:
            mend = "model.lora.vision=false" if clash[0] != "language" else "no model.lora"
            raise ValueError(
                f"model.freeze names '{clash[0]}', to which model.lora adds adapters: take it out of model.freeze "
                f"(LoRA freezes the model's own weights anyway), or set {mend}"
            )
