"""RunFolder: the folder of a run and everything that is written into it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import torch.distributed as dist

from dyme.checkpoint import store
from dyme.checkpoint.recipe import Recipe
from dyme.checkpoint.space import SaveError
from dyme.checkpoint.store import CheckpointError, TrainState
from dyme.clock import StepClock
from dyme.config import RunConfig
from dyme.data import RecordSet
from dyme.engine.train_engine import TrainEngine
from dyme.evaluation.held_out import Evaluation
from dyme.fault_tolerance.lock import Lock
from dyme.fault_tolerance.preemption import MARKER
from dyme.health import StoppedError
from dyme.metrics.cut_replies import CutReplies
from dyme.metrics.logger import MetricsLogger, SilentLogger
from dyme.metrics.profile import EVERY
from dyme.metrics.progress import ProgressLine
from dyme.position import Position
from dyme.provenance.contents import changed_data
from dyme.provenance.history import DONE, Change, changes, record, written
from dyme.provenance.origin import origin
from dyme.run_summary import draw_profile, report_on, write_summary
from dyme.settings.errors import ConfigError


def checkpoints_of(folder: Path) -> Path:
    return folder / "checkpoints"


def check_unused(folder: Path, resume: str) -> None:
    """Raises `ConfigError` where the folder holds a run and `run.resume` is never. Collective: nobody writes before all
    have looked."""
    used = (folder / "metrics.jsonl").exists() or checkpoints_of(folder).exists()
    if used and resume == "never":
        raise ConfigError(f"run.dir: {folder} already holds a run: choose another folder, or run.resume=auto")
    dist.barrier()


def claim(folder: Path, cfg: RunConfig, state: TrainState | None, data: dict[str, Any], ranks: int) -> list[str]:
    """Takes the folder over, once nothing can fail any more (rank 0 only). Returns the settings that a resumed run
    changes. `data`: the records' fingerprints."""
    changed: list[Change] = []
    if state is not None:
        before = written(folder) or state.config  # checkpoints may have been copied without their config.yaml
        changed = changes(before, cfg) if before else []
        changed += changed_data(state.data, data)
    for marker in (DONE, MARKER):
        (folder / marker).unlink(missing_ok=True)
    start = {**origin(ranks), "versions": store.versions(), "data": data}
    record(folder, cfg, state.step if state else 0, changed, start)
    return [change.key for change in changed]


@dataclass
class RunFolder:
    """A claimed folder `path`. All ranks call the methods together; rank 0 writes, but for the checkpoints."""

    path: Path
    cfg: RunConfig
    engine: TrainEngine
    position: Position
    clock: StepClock
    logger: MetricsLogger | SilentLogger
    progress: ProgressLine
    cut_replies: CutReplies = field(default_factory=CutReplies)
    lock: Lock | None = None
    """Rank 0's, until the run ends."""

    @property
    def checkpoints(self) -> Path:
        return checkpoints_of(self.path)

    def log_step(self, step: int, metrics: dict[str, float], bad_rows: int) -> None:
        """The line of `step` finished steps. `bad_rows`: records whose prompt could not be encoded, on this rank."""
        metrics |= self.position.supervisor.metrics(self.engine.all_reduce, self.engine.world_size)
        metrics |= self.clock.end_step(metrics.get("rollout/tokens", 0.0) + metrics.get("effective_tokens", 0.0))
        metrics["bad_rows"] = float(bad_rows)
        self.logger.log(step, metrics)
        self.progress.step(step, metrics)
        if told := self.cut_replies.step(metrics, self.cfg):
            self.progress.say(f"warning: {told}")
        if self.clock.profile and step % EVERY == 0:
            draw_profile(self.clock.profile)

    def log_eval(self, step: int, result: Evaluation) -> None:
        """The line of an evaluation after `step` finished steps, and a checkpoint where it is the best so far."""
        position = self.position
        position.schedule.evaluated = step
        self.logger.log_eval(step, {"time_s": self.clock.elapsed(), **result.metrics()})
        self.progress.say(
            f"step {step}: held-out accuracy {result.accuracy:.3f}, valid format {result.format_rate:.3f} "
            f"({result.n} records)"
        )
        if step and result.accuracy > position.best and not position.schedule.skipped_in_a_row:
            if not self.save(step):
                return
            position.best = result.accuracy
            if self.engine.rank == 0:
                store.mark_best(self.checkpoints, step, result.accuracy)

    def save(self, step: int, *, last: bool = False) -> bool:
        """A checkpoint of `step` finished steps. Where it cannot be written the run goes on with the one before and
        tries again later: False. Raises `CheckpointError` where there is none before, or where this is the run's
        `last`."""
        self.clock.watchdog.beat(phase="checkpoint")
        state = self.position.state(step, self.clock.elapsed(), self.engine)
        try:
            store.save(self.engine, self.checkpoints, state, self.cfg.run.keep_last)
        except SaveError as error:
            held = self.newest()
            if held == 0:
                raise CheckpointError(f"{error}; there is no earlier one: free space, or move run.dir") from error
            if last:
                raise CheckpointError(f"{error}; free space and start again, which goes on at step {held}") from error
            self.progress.say(f"{error}; the run goes on, with that of step {held} to go back to, and tries again")
            self.position.schedule.save_failed()
            return False
        self.position.schedule.saved()
        return True

    def newest(self) -> int:
        """Step of the newest checkpoint as rank 0 sees it, 0 without one. Collective."""
        return self.engine.gather_json(max(store.steps(self.checkpoints), default=0))[0]

    def leave(self, step: int) -> None:
        """Leaves before the end: writes a checkpoint and the marker PREEMPTED."""
        schedule = self.position.schedule
        if step and not schedule.skipped_in_a_row and not self.save(step):
            step = self.newest()
        self._close()
        if self.engine.rank == 0:
            asked = schedule.preemption.asked or "a signal to another rank"
            (self.path / MARKER).write_text(json.dumps({"step": step, "asked_by": asked}), encoding="utf-8")
            self.progress.say(f"left at step {step} for {asked}: start again to go on")
        self._unlock()
        self.engine.barrier()

    def give_up(self, step: int, why: str) -> NoReturn:
        """Ends a run that cannot succeed: writes a checkpoint, so that nothing is lost once the cause is mended, and
        raises `StoppedError`."""
        if not self.position.schedule.skipped_in_a_row:
            self.save(step)
        held = self.newest()
        self._close()
        goes_on = f"start again, which goes on at step {held}" if held else "start again"
        raise StoppedError(f"{why}; mend the cause and {goes_on}")

    def finish(
        self, records: RecordSet, eval_records: RecordSet | None, unreadable: Mapping[str, str], idle: str = ""
    ) -> None:
        """Export, summary, profile and report; the DONE marker last. `unreadable`: ids of the records whose prompt
        could not be encoded, and why. `idle`: why the run trained too little; then there is no marker, and all ranks
        raise `StoppedError`."""
        if self.cfg.run.export:
            aside = store.export(self.engine, self.path / "export", self._recipe())
            if aside:
                self.progress.say(f"export was not as this run had written it: it is kept as {aside.name}")
        self._close()
        if self.engine.rank == 0:
            write_summary(
                self.path,
                self.cfg,
                records,
                eval_records,
                unreadable,
                parameters=self.engine.parameters,
                ranks=self.engine.world_size,
                reward_errors=self.position.failures.counts,
                supervision=self.position.supervisor.totals,
            )
            if self.clock.profile:
                draw_profile(self.clock.profile)
            if self.cfg.run.report:
                report_on(self.path)
            if not idle:
                (self.path / DONE).write_text("", encoding="utf-8")
                self.progress.say(f"done in {self.clock.elapsed():.0f} s of training: {self.path}")
        self._unlock()
        self.engine.barrier()
        if idle:
            raise StoppedError(
                f"{idle}: the run is not DONE; mend the cause and start again with a larger train.max_steps, which "
                f"goes on at step {self.newest()}, or in a new run.dir"
            )

    def _recipe(self) -> Recipe:
        return Recipe(
            prompt=self.cfg.prompt,
            max_new_tokens=self.cfg.rollout.max_new_tokens,
            family=self.engine.family.name,
            max_pixels=self.cfg.model.max_pixels,
            image_backend=self.engine.family.image_backend,
        )

    def _close(self) -> None:
        self.logger.close()
        self.position.supervisor.close()

    def _unlock(self) -> None:
        if self.lock:
            self.lock.release()
