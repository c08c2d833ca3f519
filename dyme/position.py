"""Position: how far a run has come, which is what a checkpoint keeps besides DeepSpeed's files."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from dyme.checkpoint.store import TrainState
from dyme.data import Record
from dyme.engine.train_engine import TrainEngine
from dyme.health import Health
from dyme.metrics.step_metrics import MemorizeLog
from dyme.rewards.calls import Failures
from dyme.schedule import Schedule
from dyme.selectors.base import ModeSelector
from dyme.supervision.supervisor import Supervisor


@dataclass
class Position:
    """The parts of a run that have a state of their own, and the few numbers that have no other place.

    `selector`: that of the configuration. `first_step`, `elapsed_s`: finished steps and seconds of training before this
    start of the run. `best`: the best held-out accuracy so far, -1 before the first one. `memorized`: share of the
    groups of the last step that memorized. `config`, `data`: config.yaml and fingerprints of the records of this start.
    """

    selector: ModeSelector
    schedule: Schedule
    failures: Failures
    supervisor: Supervisor
    memorize_log: MemorizeLog = field(default_factory=MemorizeLog)
    health: Health = field(default_factory=Health)
    first_step: int = 0
    elapsed_s: float = 0.0
    best: float = -1.0
    memorized: float = 1.0
    config: str = ""
    data: dict[str, Any] = field(default_factory=dict)

    def load(self, state: TrainState) -> None:
        """Goes on from a checkpoint."""
        self.selector.load_state_dict(state.selector)
        self.memorize_log.load_state_dict(state.memorize_log)
        self.first_step, self.elapsed_s = state.step, state.elapsed_s
        self.schedule.skipped_in_a_row, self.schedule.evaluated = state.skipped_in_a_row, state.evaluated
        self.failures.counts.update(state.reward_errors)
        self.health.load_state_dict(state.health)
        self.supervisor.load_state_dict(state.supervision)

    def state(self, step: int, elapsed_s: float, engine: TrainEngine) -> TrainState:
        """What a checkpoint after `step` finished steps keeps. Collective."""
        return TrainState(
            step=step,
            elapsed_s=elapsed_s,
            world_size=engine.world_size,
            selector=self.selector.state_dict(),
            memorize_log=self.memorize_log.state_dict(),
            skipped_in_a_row=self.schedule.skipped_in_a_row,
            reward_errors=dict(self.failures.counts),
            supervision=self.supervisor.state_dict(engine.gather_json),
            health=self.health.state_dict(),
            evaluated=self.schedule.evaluated,
            config=self.config,
            data=self.data,
        )

    def likely_memorized(self, record: Record, epoch: float) -> bool:
        """Whether a record of the next step, which has rollouts, will likely be memorized: it was at its last visit, or
        most others that come for the first time are too."""
        return (epoch <= 1.0 and self.memorized > 0.5) or record.id in self.memorize_log.pending
