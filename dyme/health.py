"""Health: whether a run can still succeed. Every answer comes from gathered numbers and is the same on all ranks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from dyme.rewards.calls import Failures
from dyme.settings.rewards import RewardConfig

IN_A_ROW = 2
"""Steps in a row in which a reward fails on every completion before the run ends."""
VERIFIER = "verifier"


class StoppedError(RuntimeError):
    """A run that ends because it cannot succeed; the message is one line with the reason and the mend."""


@dataclass
class Health:
    """`failing`: steps in a row in which a user's reward, or the verifier, failed on every completion it was given."""

    failing: Counter[str] = field(default_factory=Counter)

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
