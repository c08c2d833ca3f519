"""Settings of the rollout (`rollout`). Light: read before any model loads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from dyme.settings.engines import ENGINES
from dyme.settings.numbers import NonNegativeInt, PositiveFloat, UpToMillion
from dyme.settings.schema import Schema

if TYPE_CHECKING:
    EngineName = str
else:
    EngineName = Literal[("auto", *ENGINES)]


class RolloutConfig(Schema):
    """How completions are sampled."""

    engine: EngineName = "auto"
    """shared_prefix: each prompt once per group, all completions in one batch; hf: transformers' generate; auto:
    shared_prefix where the family packs trees."""
    prompts_per_step: UpToMillion = 32
    """Groups G per optimization step, over all ranks."""
    group_size: Annotated[int, Field(ge=2, le=10_000)] = 8
    """Completions K per prompt."""
    max_new_tokens: UpToMillion = 256
    """Most tokens of a completion."""
    temperature: PositiveFloat = 1.0
    """Sampling temperature T; the policy's log-probabilities are taken at the same T."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Nucleus sampling; 1 is off."""
    top_k: NonNegativeInt = 0
    """Keep the k likeliest tokens; 0 is off."""
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Keep tokens at least min_p times as likely as the likeliest; 0 is off."""
    repetition_penalty: PositiveFloat = 1.0
    """Divides the logits of tokens in prompt and completion so far (multiplies negative ones); 1 is off. Training takes
    the log-probabilities of the policy without it."""
    batch_size: UpToMillion = 256
    """Completions decoded at once on a rank (bounds memory)."""
    offload: bool = False
    """Keep the rollout copy of the weights in pinned host memory while the model trains; no effect on a CPU."""
    truncated: Literal["wrong", "mask"] = "wrong"
    """A completion cut at max_new_tokens counts as wrong and trains, or is left out of the loss."""
