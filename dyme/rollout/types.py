"""What a rollout engine takes and gives."""

from __future__ import annotations

from dataclasses import dataclass

from dyme.families.base import Prompt


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. temperature 0 is greedy; top_p 1 and top_k 0 are off; `max_new_tokens` cuts it off."""

    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    batch_size: int = 256

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0


@dataclass(frozen=True)
class RolloutRow:
    """One completion to sample: its prompt, and the key of its noise (see `row_key`)."""

    prompt: Prompt
    key: int = 0


@dataclass(frozen=True)
class Rollout:
    """One completion. `tokens` holds the end of turn when the model produced it; `truncated` when it did not."""

    tokens: tuple[int, ...]
    truncated: bool
