"""StepClock: which step a run is in and how long its phases take, for the log, the watchdog and the profile."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

from dyme.engine.train_engine import TrainEngine
from dyme.fault_tolerance.watchdog import Watchdog
from dyme.metrics.profile import Profile


class StepClock:
    """The time of this rank. `step`: the current one, from 0. `profile`: None without `run.profile`."""

    def __init__(self, watchdog: Watchdog, profile: Profile | None, step: int = 0, before_s: float = 0.0) -> None:
        """`before_s`: seconds of training in earlier starts of the run."""
        self.watchdog, self.profile, self.step = watchdog, profile, step
        self._before_s = before_s
        self._started = time.monotonic()
        self._seconds: defaultdict[str, float] = defaultdict(float)

    def watch(self, engine: TrainEngine) -> None:
        """From here on the profile and the watchdog see the calls of the engine."""
        if self.profile:
            self.profile.watch(engine, lambda: self.step)
        self.watchdog.watch(engine)

    def start(self) -> None:
        """Training begins now: `elapsed` leaves out what came before."""
        self._started = time.monotonic()

    def elapsed(self) -> float:
        """Seconds of training so far, over all starts of the run."""
        return self._before_s + time.monotonic() - self._started

    @contextmanager
    def stepping(self, step: int, records: Sequence[str]) -> Iterator[None]:
        """Around everything that belongs to a step. `records`: ids of those that this rank has rows of."""
        self.step = step
        self.watchdog.beat(step=step + 1, records=tuple(records))
        with self.profile.span("step", "step", step) if self.profile else nullcontext():
            yield

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Around a phase of the step."""
        self.watchdog.beat(phase=name)
        begin = time.monotonic()  # outside the span: where it waits for the device that counts
        with self.profile.span(name, "phase", self.step) if self.profile else nullcontext():
            yield
        self._seconds[name] += time.monotonic() - begin

    @contextmanager
    def background(self, track: str) -> Iterator[None]:
        """Around the work of a thread beside the step, see `profile.BESIDE`."""
        with self.profile.background(track, self.step) if self.profile else nullcontext():
            yield

    def end_step(self, tokens: float) -> dict[str, float]:
        """Metrics of the time of a finished step, in which `tokens` were sampled or trained; the next one starts at 0
        seconds."""
        seconds = sum(self._seconds.values())
        parts = {**self._seconds, **(self.profile.end_step() if self.profile else {})}
        self._seconds.clear()
        return {
            **{f"time/{part}": s for part, s in parts.items()},
            **{f"time_share/{part}": s / max(seconds, 1e-9) for part, s in parts.items()},
            "time_s": self.elapsed(),
            "tokens_per_s": tokens / max(seconds, 1e-9),
        }
