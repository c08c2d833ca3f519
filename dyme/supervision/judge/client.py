"""The client of the judge: each question gets an answer or a reason, always in time.

    judge = open_judge(cfg, folder)
    future = judge.submit(question)       # at once; future.result() is an Answer
    answers = judge.ask(questions, 5.0)   # waits 5 seconds at most
    judge.close()

Nothing raises after `open_judge`, and nothing blocks beyond its deadline. The background thread starts with the first
question, also in a forked or spawned process.
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
from functools import partial
from pathlib import Path
from typing import Any

from dyme.data.paths import expand
from dyme.settings.judge import JudgeConfig, read_key
from dyme.supervision.judge.types import Answer, Call, Counters, JudgeCounts, Question
from dyme.supervision.judge.worker import Worker

FOLDER = "judge-cache"


def open_judge(cfg: JudgeConfig, folder: Path | None, say: Callable[[str], None] | None = None) -> Judge:
    """A judge; the server is not asked yet. `folder`: the run's, which holds the cache if `judge.cache` is empty (with
    None there is no cache). `say` gets messages for people, from another thread; default: stderr.

    Raises `ConfigError` if the environment lacks the variable of the key, `DataError` if it lacks one of `judge.cache`.
    """
    return Judge(cfg, read_key(cfg), folder, say)


class Judge:
    """See the module. Safe for threads; pickles as its settings."""

    def __init__(self, cfg: JudgeConfig, key: str, folder: Path | None, say: Callable[[str], None] | None) -> None:
        self.cfg, self._key = cfg, key
        self._folder, self._say = folder, say
        self._cache = expand(cfg.cache) if cfg.cache else folder and folder / FOLDER
        self._counters, self._lock = Counters(), threading.Lock()
        self._worker: Worker | None = None
        self._closed = False
        _JUDGES.add(self)

    def __reduce__(self) -> Any:
        return open_judge, (self.cfg, self._folder)

    def submit(self, question: Question, deadline_s: float | None = None) -> Future[Answer]:
        """Asks. The answer arrives within `deadline_s` seconds (default: `judge.timeout_s`); a longer deadline allows a
        longer wait in line, not a longer request. The future cannot be cancelled."""
        return self._submit(question, self._seconds(deadline_s)).future

    def ask(self, questions: Sequence[Question], deadline_s: float | None = None) -> list[Answer]:
        """Asks all at once and waits `deadline_s` seconds at most (default: `judge.timeout_s`); answers in order."""
        end = time.monotonic() + self._seconds(deadline_s)
        calls = [self._submit(question, end - time.monotonic()) for question in questions]
        wait([call.future for call in calls], timeout=max(0.0, end - time.monotonic()))
        for call in calls:
            self._counters.finish(call, None, "time_out")
        return [call.future.result() for call in calls]

    def counts(self) -> JudgeCounts:
        """Totals of this process until now."""
        worker = self._worker
        return self._counters.counts(worker.state() if worker else "closed")

    def close(self) -> None:
        """Ends within a second; pending and later calls get the reason `closed`."""
        with self._lock:
            self._closed = True
            worker, self._worker = self._worker, None
        for call in self._counters.unanswered():
            self._counters.finish(call, None, "closed")
        if worker:
            worker.stop()

    def _seconds(self, deadline_s: float | None) -> float:
        return self.cfg.timeout_s if deadline_s is None else deadline_s

    def _submit(self, question: Question, seconds: float) -> Call:
        call = Call(question, time.monotonic() + max(0.0, seconds))
        self._counters.begin(call)
        if not self.cfg.endpoints:
            self._counters.finish(call, None, "no_judge")
            return call
        with self._lock:
            if not self._closed:
                self._worker = self._worker or self._start()
            worker = self._worker
            if worker:
                worker.submit(call)
        if worker is None:
            self._counters.finish(call, None, "closed" if self._closed else "connection")
        return call

    def _start(self) -> Worker | None:
        say = self._say or partial(print, file=sys.stderr, flush=True)
        try:
            return Worker(self.cfg, self._key, self._cache, self._counters, say)
        except (OSError, RuntimeError) as error:  # an edge: no thread or file descriptor left
            say(f"judge: cannot start: {error}")
            return None

    def _forked(self) -> None:
        """In a new child: thread, sockets and the cache's connection belong to the parent and must not be closed."""
        _ABANDONED.append((self._worker, self._counters))
        self._counters, self._lock, self._worker = Counters(), threading.Lock(), None


_JUDGES: weakref.WeakSet[Judge] = weakref.WeakSet()
_ABANDONED: list[Any] = []


def _on_all(method: Callable[[Judge], None]) -> None:
    for judge in list(_JUDGES):
        method(judge)


os.register_at_fork(after_in_child=lambda: _on_all(Judge._forked))
atexit.register(_on_all, Judge.close)
