"""Run: everything a training run holds. `dyme.opening` makes one from a configuration."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property

from dyme.clock import StepClock
from dyme.config import RunConfig
from dyme.data import RecordSet
from dyme.engine.train_engine import TrainEngine
from dyme.metrics.step_metrics import logged_kinds
from dyme.position import Position
from dyme.prompts import PromptCache
from dyme.rollout.engine import RolloutEngine
from dyme.run_folder import RunFolder
from dyme.sampler import StepBatch, batch_at
from dyme.schedule import Schedule
from dyme.scoring import Scorer
from dyme.selectors import fixed_selector
from dyme.selectors.base import ModeSelector
from dyme.supervision.supervisor import Supervisor


@dataclass(frozen=True)
class Run:
    """The parts of a run that is ready to train, on this rank."""

    cfg: RunConfig
    records: RecordSet
    eval_records: RecordSet | None
    engine: TrainEngine
    rollout_engine: RolloutEngine
    prompt_cache: PromptCache
    scorer: Scorer
    supervisor: Supervisor
    schedule: Schedule
    position: Position
    clock: StepClock
    folder: RunFolder

    @property
    def selector(self) -> ModeSelector:
        """The one that decides in this method."""
        if self.cfg.method == "dyme":
            return self.position.selector
        return fixed_selector(self.cfg.method)

    @cached_property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of question that have metrics of their own."""
        return logged_kinds(record.kind for record in self.records)

    def step_batch(self, step: int) -> StepBatch:
        """Records and rows of a step (0-based)."""
        return batch_at(self.cfg, step, len(self.records), self.engine.world_size)

    def stepping(self, step: int) -> AbstractContextManager[None]:
        """Around everything that belongs to a step."""
        groups = self.step_batch(step).groups_of(self.engine.rank)
        ids = self.step_batch(step).records
        return self.clock.stepping(step, list(dict.fromkeys(self.records[ids[group]].id for group in groups)))
