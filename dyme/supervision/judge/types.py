"""Questions to the judge, answers, and counters."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Literal

Purpose = Literal["facts", "check", "refine", "template", "compare", "ping"]
Reason = Literal[
    "",
    "no_judge",
    "time_out",
    "rate_limited",
    "server_error",
    "connection",
    "bad_answer",
    "refused",
    "breaker_open",
    "closed",
]


@dataclass(frozen=True)
class Question:
    """One question; questions that differ only in `record` are the same one.

    `version`: of the prompt, part of the cache key. `images`: encoded pictures (PNG, JPEG, WebP, GIF), sent before the
    text. `schema`: JSON schema of the answer, an object. `record`: the id of the record, for messages; it is not sent.
    """

    purpose: Purpose
    version: str
    system: str
    user: str
    schema: Mapping[str, Any]
    images: tuple[bytes, ...] = ()
    record: str = ""
    max_tokens: int | None = None


@dataclass(frozen=True)
class Answer:
    """`value` fits the question's schema; None with the reason: no_judge (none is set), time_out, rate_limited,
    server_error (5xx), connection, bad_answer (nothing that fits the schema), refused (another 4xx), breaker_open (the
    server is not asked for now), closed. `seconds` since the question was asked.
    """

    value: dict[str, Any] | None
    reason: Reason = ""
    cached: bool = False
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        return self.value is not None


@dataclass(frozen=True)
class JudgeCounts:
    """Totals of one process since its judge was opened.

    asked = answered + failed + under way; `cached` and `deduplicated` (joined an identical question under way) are
    among the answered or failed. `sent`: HTTP requests with a question of the run, `retries` among them. `probes`: test
    requests to a broken server. Tokens and money as the server counts them, else 0. `seconds`: sum over questions.
    `cache_errors`: failed reads and writes. `by_purpose`: HTTP requests, probes among them. `state` of the server:
    "closed" (asked), "busy" (pause by Retry-After), "open" (not asked) or "half_open" (a probe is under way).
    """

    asked: int = 0
    sent: int = 0
    answered: int = 0
    cached: int = 0
    deduplicated: int = 0
    retries: int = 0
    probes: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    money: float = 0.0
    seconds: float = 0.0
    cache_errors: int = 0
    failed: Mapping[str, int] = field(default_factory=dict)
    by_purpose: Mapping[str, int] = field(default_factory=dict)
    state: str = "closed"


@dataclass(eq=False)
class Call:
    """One caller's question. `deadline`: seconds of time.monotonic()."""

    question: Question
    deadline: float
    asked: float = field(default_factory=time.monotonic)
    future: Future[Answer] = field(default_factory=Future)

    def __post_init__(self) -> None:
        self.future.set_running_or_notify_cancel()  # a caller's cancel() would make the later result an error


class Counters:
    """Totals, and the calls without an answer yet."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._totals: Any = Counter()  # of ints, but for money and seconds
        self._failed: Counter[str] = Counter()
        self._purposes: Counter[str] = Counter()
        self._open: set[Call] = set()

    def begin(self, call: Call) -> None:
        with self._lock:
            self._open.add(call)
            self._totals["asked"] += 1

    def add(self, **totals: float) -> None:
        with self._lock:
            self._totals.update(totals)

    def sent(self, purpose: str) -> None:
        with self._lock:
            self._totals["sent"] += purpose != "ping"
            self._purposes[purpose] += 1

    def finish(self, call: Call, value: dict[str, Any] | None, reason: Reason, cached: bool = False) -> None:
        """Answers the call, unless it was answered before."""
        seconds = time.monotonic() - call.asked
        with self._lock:
            if call not in self._open:
                return
            self._open.remove(call)
            self._totals["seconds"] += seconds
            if value is None:
                self._failed[reason] += 1
            else:
                self._totals.update(answered=1, cached=int(cached))
        call.future.set_result(Answer(value, "" if value is not None else reason, cached, seconds))

    def unanswered(self) -> list[Call]:
        with self._lock:
            return list(self._open)

    def counts(self, state: str) -> JudgeCounts:
        with self._lock:
            return JudgeCounts(**self._totals, failed=dict(self._failed), by_purpose=dict(self._purposes), state=state)
