"""Health: whether a run can still succeed. Every answer comes from gathered numbers and is the same on all ranks."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from dyme.rewards.calls import Failures
from dyme.settings.rewards import RewardConfig

IN_A_ROW = 2
"""Steps in a row in which a reward fails on every completion before the run ends."""
VERIFIER = "verifier"
WINDOW = 20
"""Steps over which the groups whose prompt could not be read are counted."""
UPDATED = "updated"
UNREAD = "no prompt could be read"
UNSCORED = "no completion was scored"
ALIKE = "nothing to learn: no demonstration, and the rewards of each group were alike"
MASTERED = "nothing left to learn: every answer was right"
NOT_FINITE = "a loss or gradient was not finite"
FEW = 10
"""A run of fewer steps than this tells nothing by rewards that were alike."""


class StoppedError(RuntimeError):
    """A run that ends because it cannot succeed; the message is one line with the reason and the mend."""


@dataclass
class Health:
    """`failing`: steps in a row in which a user's reward, or the verifier, failed on every completion it was given.
    `lost`: groups of the newest steps whose prompt could not be read. `steps`: of the whole run, by what became of
    them."""

    failing: Counter[str] = field(default_factory=Counter)
    lost: deque[int] = field(default_factory=lambda: deque(maxlen=WINDOW))
    steps: Counter[str] = field(default_factory=Counter)

    def state_dict(self) -> dict[str, Any]:
        return {"steps": dict(self.steps)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.steps.update(state.get("steps", {}))

    def ended(self, readable: Tensor, columns: Mapping[str, Tensor], trained: bool, applied: bool) -> None:
        """Takes what became of a step. `readable`: bool [G]; `columns`: empty without rollouts; `trained`: it had
        sequences to train; `applied`: it ended in an update."""
        self.lost.append(int((~readable).sum()))
        if trained:
            reason = UPDATED if applied else NOT_FINITE
        elif not readable.any():
            reason = UNREAD
        else:
            reason = _unrewarding(columns) if columns else ALIKE
        self.steps[reason] += 1

    def bad_rows(self, fraction: float, groups: int) -> str:
        """Why the run loses too many rows, "" if it does not. `fraction`: data.max_bad_fraction; `groups`: of a step.

        Three standard deviations above the fraction are allowed, as chance may bring that many into a window.
        """
        lost, expected = sum(self.lost), fraction * groups * WINDOW
        if lost <= expected + 3 * math.sqrt(expected):
            return ""
        return (
            f"the pictures or prompts of {lost} of {groups * len(self.lost)} rows of the last {len(self.lost)} steps "
            f"could not be read, more than data.max_bad_fraction={fraction:g} allows"
        )

    def idle(self) -> str:
        """Why a run at its end trained too little, "" if most of its steps had an update or nothing left to learn."""
        total = self.steps.total()
        without = {reason: count for reason, count in self.steps.most_common() if reason not in (UPDATED, MASTERED)}
        counted = sum(count for reason, count in without.items() if reason != ALIKE or total >= FEW)
        if 2 * counted <= total:
            return ""
        told = "; ".join(f"{count}: {reason}" for reason, count in without.items())
        return f"{sum(without.values())} of {total} steps had no update ({told})"

    def scored(self, columns: Mapping[str, Tensor], cfg: RewardConfig, step: int) -> None:
        """Takes the gathered columns of a step (`rollout_columns`, float64 [R] on the host). A step without rollouts
        says nothing and is not given. A reward whose weight is and stays 0 is measured only: it may fail."""
        failed = {}
        written = columns["length"] > 0
        for reward in cfg.user:
            if reward.weight.at(step) or reward.weight.end:
                failed[reward.title] = columns[f"user_failed/{reward.title}"][written] > 0.5
        judged = written & (columns["format"] > 0.5)  # a reply in no valid format may never reach the verifier
        failed[VERIFIER] = columns["accuracy"][judged].isnan()
        for name, rows in failed.items():
            if len(rows):
                self.failing[name] = self.failing[name] + 1 if bool(rows.all()) else 0

    def hopeless(self, cfg: RewardConfig, failures: Failures) -> str:
        """Why no later step can succeed, "" if it can. `failures`: has the newest failure of each reward."""
        for name, steps in self.failing.items():
            if steps >= IN_A_ROW:
                spec = {reward.title: f"reward.user {reward.function}" for reward in cfg.user}
                what = spec.get(name, f"reward.verifier {cfg.verifier}")
                return f"{what} failed on every completion of {steps} steps in a row: {failures.newest(name)}"
        return ""


def _unrewarding(columns: Mapping[str, Tensor]) -> str:
    """Why the rewards of a step trained nothing."""
    scored = columns["scored"] > 0.5
    if not scored.any():
        return UNSCORED
    return MASTERED if bool((columns["correct"][scored] > 0.5).all()) else ALIKE
