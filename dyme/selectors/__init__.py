"""Selectors: how statistics of groups become modes, one family of rules per file.

gates.py: one mode per group. joint.py: both parts in each group, by a schedule or by entropy. difficulty.py: explored
groups weighed by their accuracy. buffered.py: records that wait. replay.py: modes that were recorded. Each rule is a
pure function of gathered float64 numbers (and, buffered, of the steps before), so every rank decides the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from dyme.data.paths import expand
from dyme.selectors import difficulty, gates, joint
from dyme.selectors.base import GroupStats, ModeDecision, ModeSelector
from dyme.selectors.buffered import Buffered
from dyme.selectors.replay import Replay
from dyme.settings.errors import ConfigError
from dyme.settings.selector import SelectorConfig

Rule = Callable[[GroupStats, float], ModeDecision]
"""Statistics and progress (finished steps / train.max_steps, in [0, 1)) to a decision."""


@dataclass(frozen=True)
class StatelessSelector:
    """A rule; nothing to save."""

    rule: Rule

    def select(self, stats: GroupStats, progress: float) -> ModeDecision:
        return self.rule(stats, progress)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state:
            raise ConfigError(
                "selector.name has changed since the checkpoint, which holds what its selector keeps "
                f"({', '.join(state)}): set it back, or start in a new run.dir"
            )


def make_selector(config: SelectorConfig) -> ModeSelector:
    """The selector a configuration asks for."""
    if config.name == "buffered":
        return Buffered(config.buffer_size)
    if config.name == "replay":
        return Replay(expand(config.path or ""))
    rules: dict[str, Rule] = {
        "variance": partial(gates.variance, threshold=config.threshold),
        "any_correct": gates.any_correct,
        "accuracy_gate": partial(gates.accuracy_gate, gamma=config.gamma),
        "reward_threshold": partial(gates.reward_threshold, threshold=config.threshold),
        "always_explore": gates.always_explore,
        "always_memorize": gates.always_memorize,
        "annealed": joint.annealed,
        "scheduled": partial(
            joint.scheduled,
            peak=config.peak,
            valley=config.valley,
            warmup=config.warmup,
            decay=config.decay,
            token_shaping=config.token_shaping,
        ),
        "entropy_weighted": joint.entropy_weighted,
        "difficulty_weighted": difficulty.difficulty_weighted,
    }
    return StatelessSelector(rules[config.name])


def mixed_selector() -> ModeSelector:
    """The selector of method mixed."""
    return StatelessSelector(gates.alternate)
