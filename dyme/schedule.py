"""Schedule: when a run evaluates, saves and stops. Every answer is the same on all ranks."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any

import torch.distributed as dist

from dyme.config import RunConfig
from dyme.fault_tolerance.preemption import Preemption


class Stop(Enum):
    """Why a run ends before train.max_steps."""

    TIME = "run.max_minutes"
    BROKEN = "run.max_skipped_updates"
    PREEMPTED = "a signal"


RETRY_S = 60.0
_VOTES = (None, Stop.TIME, Stop.PREEMPTED)  # the gravest of all ranks counts


class Schedule:
    """`evaluated`: step of the last evaluation; `skipped_in_a_row`: updates skipped since the last one that was
    applied."""

    def __init__(self, cfg: RunConfig) -> None:
        self._cfg = cfg
        self.preemption = Preemption()
        self.evaluated = -1
        self.skipped_in_a_row = 0
        self._save_due = False
        self._next_save = self._in_minutes()

    def must_stop(self, elapsed_s: float, all_reduce: Callable[[Sequence[float], Any], list[float]]) -> Stop | None:
        """None to go on. One collective, in which the ranks also agree on a checkpoint that is due by time."""
        limit = self._cfg.run.max_minutes
        late = Stop.TIME if limit is not None and elapsed_s > 60 * limit else None
        vote = Stop.PREEMPTED if self.preemption.asked else late
        by_time = [float(time.monotonic() >= self._next_save)] if self._next_save < math.inf else []
        gravest, *due = all_reduce([_VOTES.index(vote), *by_time], dist.ReduceOp.MAX)
        self._save_due |= any(due)
        broken = self.skipped_in_a_row >= self._cfg.run.max_skipped_updates
        return Stop.BROKEN if broken else _VOTES[int(gravest)]

    def updated(self, *, applied: bool) -> None:
        """Counts an update."""
        self.skipped_in_a_row = 0 if applied else self.skipped_in_a_row + 1

    def measures_components(self, step: int) -> bool:
        """Whether the gradients of explored and memorized completions are measured apart in a step (0-based)."""
        every = self._cfg.train.component_norms_every
        return every > 0 and step % every == 0

    def must_evaluate(self, step: int) -> bool:
        """Whether an evaluation is due after `step` finished steps, which are not the last ones."""
        every = self._cfg.run.eval_every
        return every > 0 and step % every == 0

    def lacks_evaluation(self, step: int) -> bool:
        """Whether a run that starts at `step` has to evaluate first: at the beginning, and where an evaluation that was
        due was given up for a signal."""
        due = self.must_evaluate(step) or step == self._cfg.train.max_steps
        return step == 0 or (due and self.evaluated < step)

    def must_save(self, step: int) -> bool:
        """Whether a checkpoint is due by steps or time; `saved` is called after it. None is written while updates are
        skipped, so that the newest one is from before."""
        every = self._cfg.run.save_every
        self._save_due |= every > 0 and step % every == 0
        return self._save_due and not self.skipped_in_a_row

    def saved(self) -> None:
        self._save_due, self._next_save = False, self._in_minutes()

    def save_failed(self) -> None:
        """A checkpoint could not be written: the next try is in a minute, or when one is due by steps."""
        self._save_due, self._next_save = False, time.monotonic() + RETRY_S

    def _in_minutes(self) -> float:
        return time.monotonic() + (60 * self._cfg.run.save_every_minutes or math.inf)
