"""What a rollout engine takes and gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from dyme.families.base import Prompt
from dyme.settings.rollout import RolloutConfig


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. temperature 0 is greedy; top_p 1, top_k 0, min_p 0 and repetition_penalty 1 are off;
    `max_new_tokens` cuts it off. batch_size: rows that an engine of this process decodes at once."""

    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    batch_size: int = 256
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0


def sampling_of(rollout: RolloutConfig, max_new_tokens: int | None = None, *, greedy: bool = False) -> Sampling:
    """What the configuration says, or its greedy counterpart: the policy's arg-max, without penalty and cuts."""
    tokens = rollout.max_new_tokens if max_new_tokens is None else max_new_tokens
    if greedy:
        return Sampling(tokens, temperature=0.0, batch_size=rollout.batch_size)
    return Sampling(
        tokens,
        rollout.temperature,
        rollout.top_p,
        rollout.top_k,
        rollout.batch_size,
        rollout.min_p,
        rollout.repetition_penalty,
    )


@dataclass(frozen=True)
class RolloutRequest:
    """One completion to sample: its prompt, encoded and as text and pictures, and the key of its noise (see `row_key`).
    The completions of a group share the `Prompt` object. Its text may quote control tokens, which are split in its
    `input_ids` and must be in those of an engine that encodes by itself."""

    prompt: Prompt
    key: int = 0


@dataclass(frozen=True)
class Rollout:
    """One completion. `tokens` holds the end of turn when the model produced it; `truncated` when it did not.
    logprobs: of each token, as training would take it at the sampling temperature; () from an engine that tells
    none."""

    tokens: tuple[int, ...]
    truncated: bool
    logprobs: tuple[float, ...] = field(default=(), compare=False)  # rounding depends on the batch, tokens do not


Finished = Callable[[int, Rollout], None]
"""Callback for a completed request: its index and its completion. It returns at once."""


def ignore(row: int, rollout: Rollout) -> None:
    """The `Finished` of callers who wait for all rows."""
