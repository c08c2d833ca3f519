"""Buffered: records that nobody got right wait, and are memorized together in a later step."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from dyme.selectors.base import GroupStats, ModeDecision, SelectorKind
from dyme.selectors.gates import GATED, memorize_nothing


@dataclass
class Buffered:
    """ReLIFT: a group explores where 0 < n < scored rows, else it is skipped. A record of which nobody was right
    (n = 0) enters a buffer. Once the buffer holds `size` records, the oldest `size` of them are memorized, beside the
    groups of the next step, and leave it.

    In the published code the memorized records have an optimizer step and a learning rate of their own. Here they join
    an explored step and its learning rate; each weighs what it would have weighed in its own step, so the buffer delays
    what `any_correct` does at once. Left open there, as far as seen: a record that fails again while it waits; here it
    waits once.
    """

    size: int
    waiting: list[int] = field(default_factory=list)
    """Numbers of records, oldest first."""

    def select(self, stats: GroupStats, progress: float) -> ModeDecision:
        due = self.waiting[: self.size] if len(self.waiting) >= self.size else []
        left = self.waiting[len(due) :]
        failed = (stats.num_correct == 0) & (stats.num_scored > 1) & stats.has_demonstration
        found = [record for record, hit in zip(stats.records, failed.tolist(), strict=True) if hit]
        self.waiting = list(dict.fromkeys(left + found))
        return replace(memorize_nothing(stats, progress), extra_records=tuple(due))

    def state_dict(self) -> dict[str, Any]:
        return {"waiting": list(self.waiting)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """A state without the buffer is that of a run which began with another selector."""
        self.waiting = list(state.get("waiting", ()))


SELECTORS = {"buffered": SelectorKind(lambda c: Buffered(c.buffer_size), GATED)}
