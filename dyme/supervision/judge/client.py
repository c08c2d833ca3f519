"""The judge as the rest of the run sees it: questions in, answers or reasons out, always in time.

    judge = open_judge(cfg, folder)
    future = judge.submit(question)       # at once; future.result() is an Answer
    answers = judge.ask(questions, 5.0)   # waits 5 seconds at most
    judge.close()

Nothing here raises after `open_judge` and nothing blocks beyond its deadline. The background thread starts with the
first question, anew in a forked or spawned process.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any

from dyme.data.paths import expand
from dyme.settings.judge import JudgeConfig, read_key
from dyme.supervision.judge.endpoint import endpoint_names
from dyme.supervision.judge.tally import Tally, Waiter
from dyme.supervision.judge.types import Answer, JudgeCounts, Question
from dyme.supervision.judge.worker import Worker

FOLDER = "judge-cache"


def open_judge(cfg: JudgeConfig, folder: Path | None, say: Callable[[str], None] | None = None) -> Judge:
    """A judge; the servers are not asked yet. `folder`: of the run, which holds the cache where `judge.cache` is empty
    (None, too: no cache). `say` takes messages for people, from another thread; by default they go to stderr.

    ConfigError where the environment lacks the variable of a key, DataError where it lacks one of `judge.cache`.
    """
    keys = [read_key(endpoint, f"judge.endpoints.{i}") for i, endpoint in enumerate(cfg.endpoints)]
    return Judge(cfg, keys, folder, say)


class Judge:
    """See the module. Safe for threads; pickles as its settings."""

    def __init__(
        self, cfg: JudgeConfig, keys: Sequence[str], folder: Path | None, say: Callable[[str], None] | None
    ) -> None:
        self.cfg, self._keys = cfg, tuple(keys)
        self._folder, self._say = folder, say
        self._cache = expand(cfg.cache) if cfg.cache else folder and folder / FOLDER
        self._tally, self._lock = Tally(), threading.Lock()
        self._worker: Worker | None = None
        self._closed = False
        _JUDGES.add(self)

    def __reduce__(self) -> Any:
        return open_judge, (self.cfg, self._folder)

    def submit(self, question: Question, deadline_s: float | None = None) -> Future[Answer]:
        """Asks. The answer is there `deadline_s` seconds from now at the latest (default: `judge.timeout_s`); a longer
        deadline leaves time to wait in line, not for a longer call. The future cannot be cancelled."""
        return self._submit(question, deadline_s).future

    def ask(self, questions: Sequence[Question], deadline_s: float | None = None) -> list[Answer]:
        """Asks all at once and waits `deadline_s` seconds at most (default: `judge.timeout_s`); answers in order."""
        end = time.monotonic() + self._seconds(deadline_s)
        waiters = [self._submit(question, max(0.0, end - time.monotonic())) for question in questions]
        wait([waiter.future for waiter in waiters], timeout=max(0.0, end - time.monotonic()))
        for waiter in waiters:
            self._tally.settle(waiter, None, "time_out")
        return [waiter.future.result() for waiter in waiters]

    def counts(self) -> JudgeCounts:
        """Totals of this process until now."""
        worker = self._worker
        states = worker.states() if worker else ["closed"] * len(self.cfg.endpoints)
        return self._tally.counts(dict(zip(endpoint_names(self.cfg), states, strict=True)))

    def close(self) -> None:
        """Ends within a second, whatever is under way; who still waits gets `closed`, as do all later questions."""
        with self._lock:
            self._closed = True
            worker, self._worker = self._worker, None
        for waiter in self._tally.waiting():
            self._tally.settle(waiter, None, "closed")
        if worker:
            worker.stop()

    def _seconds(self, deadline_s: float | None) -> float:
        return self.cfg.timeout_s if deadline_s is None else max(0.0, deadline_s)

    def _submit(self, question: Question, deadline_s: float | None) -> Waiter:
        waiter = Waiter(question, time.monotonic() + self._seconds(deadline_s))
        self._tally.ask(waiter)
        if not self.cfg.endpoints:
            self._tally.settle(waiter, None, "no_judge")
            return waiter
        with self._lock:
            worker = None if self._closed else self._worker or self._start()
            if worker:
                self._worker = worker
                worker.take(waiter)
        if worker is None:
            self._tally.settle(waiter, None, "closed" if self._closed else "connection")
        return waiter

    def _start(self) -> Worker | None:
        say = self._say or _to_stderr
        try:
            return Worker(self.cfg, self._keys, self._cache, self._tally, say)
        except (OSError, RuntimeError) as error:  # an edge: no thread or file descriptor left
            say(f"judge: cannot start: {error}")
            return None

    def _forked(self) -> None:
        """In a new child: thread, sockets and the cache's connection are the parent's and must not even be closed."""
        _ABANDONED.append((self._worker, self._tally))
        self._tally, self._lock, self._worker = Tally(), threading.Lock(), None


def _to_stderr(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


_JUDGES: weakref.WeakSet[Judge] = weakref.WeakSet()
_ABANDONED: list[Any] = []


def _in_child() -> None:
    for judge in list(_JUDGES):
        judge._forked()


def _at_exit() -> None:
    for judge in list(_JUDGES):
        judge.close()


os.register_at_fork(after_in_child=_in_child)
atexit.register(_at_exit)
