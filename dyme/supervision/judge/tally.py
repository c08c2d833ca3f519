"""Counting what questions took, and handing out their answers, from any thread."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from dyme.supervision.judge.types import Answer, JudgeCounts, Question, Reason

_MONEY = ("money", "seconds")


@dataclass(eq=False)
class Waiter:
    """One who asked. `deadline`: seconds of time.monotonic()."""

    question: Question
    deadline: float
    asked: float = field(default_factory=time.monotonic)
    future: Future[Answer] = field(default_factory=Future)
    timer: asyncio.TimerHandle | None = field(default=None, init=False)
    # a caller's cancel() would make the later result an error
    running: bool = field(init=False)

    def __post_init__(self) -> None:
        self.running = self.future.set_running_or_notify_cancel()


class Tally:
    """Totals, and those who still wait. Each waiter is answered once, by whoever comes first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._totals: Counter[str] = Counter()
        self._sums = dict.fromkeys(_MONEY, 0.0)
        self._failed: Counter[str] = Counter()
        self._purposes: Counter[str] = Counter()
        self._waiting: set[Waiter] = set()

    def ask(self, waiter: Waiter) -> None:
        with self._lock:
            self._waiting.add(waiter)
            self._totals["asked"] += 1

    def add(self, money: float = 0.0, **totals: int) -> None:
        with self._lock:
            self._sums["money"] += money
            self._totals.update(totals)

    def sent(self, purpose: str) -> None:
        with self._lock:
            self._totals["sent"] += purpose != "ping"
            self._purposes[purpose] += 1

    def settle(self, waiter: Waiter, value: dict[str, Any] | None, reason: Reason, cached: bool = False) -> None:
        seconds = time.monotonic() - waiter.asked
        with self._lock:
            if waiter not in self._waiting:
                return
            self._waiting.discard(waiter)
            self._sums["seconds"] += seconds
            if value is None:
                self._failed[reason] += 1
            else:
                self._totals.update(answered=1, cached=int(cached))
        waiter.future.set_result(Answer(value, "" if value is not None else reason, cached, seconds))

    def waiting(self) -> list[Waiter]:
        with self._lock:
            return list(self._waiting)

    def counts(self, endpoints: dict[str, str]) -> JudgeCounts:
        with self._lock:
            totals: dict[str, Any] = {**self._totals, **self._sums}
            return JudgeCounts(
                **totals,
                failed=dict(self._failed),
                by_purpose=dict(self._purposes),
                endpoints=endpoints,
            )
