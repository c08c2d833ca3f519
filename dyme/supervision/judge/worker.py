"""The background thread of a judge: an event loop that asks, retries, gives up and probes a failed server."""

from __future__ import annotations

import asyncio
import json
import random
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from dyme.settings.judge import JudgeConfig
from dyme.supervision.judge.answers import parse_answer
from dyme.supervision.judge.cache import AnswerCache, question_key
from dyme.supervision.judge.endpoint import ADVICE, PING, Endpoint, Reply
from dyme.supervision.judge.types import Call, Counters, Question, Reason

BACKOFF_S, LONGEST_BACKOFF_S = 0.5, 8.0
CACHE_WAIT_S = 2.0
"""Longest wait of a question for the cache."""
CHECK_AGAIN_S = 0.05
"""A question that waited longer for its turn is looked up in the cache again."""
LONGEST = 16
"""Pauses double up to this many times the first."""
Value = dict[str, Any] | None
Outcome = tuple[Value, Reason, bool]
"""Value, reason if there is none, and whether the cache had it."""


@dataclass
class CircuitBreaker:
    """Whether the judge's server is asked. Pure bookkeeping; the clock is passed in, in seconds of a monotonic clock.

    `limit` failures in a row open the circuit. After a pause, at first `pause_s`, the client sends a probe (half open).
    An answer closes the circuit, a failure doubles the pause. So no question of a run is spent on a broken server.
    """

    limit: int
    pause_s: float
    state: Literal["closed", "open", "half_open"] = "closed"
    failures: int = 0  # in a row
    pauses: int = 0  # since the last answer to a question of the run
    opened_at: float = 0.0
    busy_until: float = 0.0  # end of a pause that the server asked for (Retry-After)
    last_answer: float = -1.0
    last_failure: float = -1.0

    def answered(self, now: float) -> None:
        self.failures, self.pauses, self.last_answer = 0, 0, now

    def failed(self, started: float, now: float, weight: int = 1) -> bool:
        """Counts a failed request that began at `started`. True if the circuit opens.

        Overlapping requests show the same fault: only the first of their failures counts, and none if the server
        answered another request since `started`.
        """
        if self.state != "closed" or self.last_answer >= started or self.last_failure >= started:
            return False
        self.failures += weight
        self.last_failure = now
        if self.failures < self.limit:
            return False
        self.state, self.opened_at = "open", now
        return True

    def next_pause(self) -> float:
        """Seconds until the next probe."""
        self.pauses += 1
        return self.pause_s * min(2 ** (self.pauses - 1), LONGEST)

    def close(self) -> None:
        """After an answered probe. The pauses stay long until a question of the run is answered."""
        self.state, self.failures, self.busy_until = "closed", 0, 0.0


@dataclass(eq=False)
class _PendingRequest:
    """A question under way and the calls that wait for its answer. Times are seconds of time.monotonic()."""

    key: bytes
    question: Question
    calls: list[Call] = field(default_factory=list)
    reason: Reason = "time_out"  # of the failure so far
    started: float | None = None  # start of its turn
    sent: float | None = None  # last sent

    def deadline(self, timeout_s: float) -> float:
        last = max((call.deadline for call in self.calls), default=0.0)
        return last if self.started is None else min(last, self.started + timeout_s)


class Worker:
    """Lives from the first question to `stop`. `folder`: of the cache, None without one."""

    def __init__(
        self, cfg: JudgeConfig, key: str, folder: Path | None, counters: Counters, say: Callable[[str], None]
    ) -> None:
        self._cfg, self._counters = cfg, counters
        self._endpoint = Endpoint(cfg, key, counters, say)
        self._breaker = CircuitBreaker(cfg.breaker_failures, cfg.breaker_pause_s)
        self._requests: dict[bytes, tuple[_PendingRequest, asyncio.Task[Outcome]]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._slots = asyncio.Semaphore(cfg.concurrency)
        self._cache = AnswerCache(folder, counters, say) if folder else None
        self._late_lookup: Future[str | None] | None = None  # an answer of the cache that took too long
        self._loop = asyncio.new_event_loop()
        self._loop.set_default_executor(_DaemonThreads())
        self._thread = threading.Thread(target=self._loop.run_forever, name="judge", daemon=True)
        self._thread.start()

    def state(self) -> str:
        """Of the server, as in `JudgeCounts`."""
        breaker = self._breaker
        return "busy" if breaker.state == "closed" and breaker.busy_until > time.monotonic() else breaker.state

    def submit(self, call: Call) -> None:
        """From any thread; the counters hand the answer to the call."""
        self._loop.call_soon_threadsafe(lambda: self._start_task(self._answer_call(call)))

    def stop(self) -> None:
        """Within a second, whatever is under way; calls under way are not answered."""
        self._loop.call_soon_threadsafe(lambda: self._start_task(self._shut_down()))
        self._thread.join(0.5)
        if not self._thread.is_alive():
            self._loop.close()
        if self._cache:
            self._cache.close(0.4)

    async def _shut_down(self) -> None:
        tasks = self._tasks - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=0.2)
        await asyncio.wait([asyncio.ensure_future(self._endpoint.close())], timeout=0.2)
        self._loop.stop()

    def _start_task(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        # an error that nobody fetches would be logged with its text, which may hold anything
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        return task

    def _unexpected_error(self, error: Exception) -> None:
        """Says only the kind, since the text may hold anything."""
        message = f"a question that cannot be asked ({type(error).__name__}): bad_answer (said once)"
        self._endpoint.say(message, once="unexpected")

    async def _answer_call(self, call: Call) -> None:
        """Answers one call, at its deadline at the latest."""
        outcome: Outcome = (None, "bad_answer", False)
        try:
            outcome = await self._join_request(call)
        except Exception as error:  # an edge: every caller gets an answer
            self._unexpected_error(error)
        self._counters.finish(call, *outcome)

    async def _join_request(self, call: Call) -> Outcome:
        """Joins the request with the same question, or begins it, and waits. The last call to give up cancels it."""
        key = question_key(call.question, self._cfg)
        self._counters.add(deduplicated=int(key in self._requests))
        if key not in self._requests:
            request = _PendingRequest(key, call.question)
            self._requests[key] = request, self._start_task(self._run_request(request))
        request, task = self._requests[key]
        request.calls.append(call)
        await asyncio.wait([task], timeout=max(0.0, call.deadline - time.monotonic()))
        request.calls.remove(call)
        if task.done():
            self._forget(request)
            value, reason, cached = task.result()
            return json.loads(json.dumps(value)), reason, cached  # the caller may change its own
        if not request.calls:
            self._forget(request)
            task.cancel()
        return None, request.reason, False

    def _forget(self, request: _PendingRequest) -> None:
        if request.key in self._requests and self._requests[request.key][0] is request:
            del self._requests[request.key]

    async def _run_request(self, request: _PendingRequest) -> Outcome:
        value = await self._look_up(request)
        if value is not None:
            return value, "", True
        if self._breaker.state != "closed":
            return None, "breaker_open", False
        queued = time.monotonic()
        async with self._slots:
            request.started = time.monotonic()
            if request.started - queued > CHECK_AGAIN_S:  # another rank may have asked meanwhile
                value = await self._look_up(request)
                if value is not None:
                    return value, "", True
            value = await self._ask_with_retries(request)
        if value is None:
            return None, request.reason, False
        if self._cache:
            self._cache.put(request.key, value, self._endpoint.settings.model, request.question)
        return value, "", False

    async def _look_up(self, request: _PendingRequest) -> Value:
        if not self._cache:
            return None
        # a file system that hangs must not delay every question
        if self._late_lookup and not self._late_lookup.done():
            self._counters.add(cache_errors=1)
            return None
        found = self._cache.get(request.key)
        try:
            text = await asyncio.wait_for(asyncio.wrap_future(found), CACHE_WAIT_S)
        except asyncio.TimeoutError:
            self._counters.add(cache_errors=1)
            self._late_lookup = found
            return None
        return parse_answer(text, request.question.schema)

    async def _ask_with_retries(self, request: _PendingRequest) -> Value:
        """All tries of one question: the value, or None with the reason in the request."""
        pause, told_schema = 0.0, False
        for attempt in range(self._cfg.retries + 1):
            if not await self._wait_turn(request, pause):
                break
            self._counters.add(retries=int(attempt > 0))
            reply = await self._send_once(request, told_schema)
            if reply.reason:
                request.reason = reply.reason
                if reply.reason == "refused":
                    break
                pause = min(BACKOFF_S * 2**attempt, LONGEST_BACKOFF_S) * random.uniform(0.5, 1.0)
                continue
            value = parse_answer(reply.text, request.question.schema)
            if value is not None:
                return value
            request.reason = "bad_answer"
            if told_schema or reply.cut:  # another try would bring the same answer
                advice = "it was cut; raise judge.max_tokens" if reply.cut else "check that the model can write JSON"
                about = f"an answer ({request.question.purpose}) does not fit its schema"
                self._endpoint.say(f"{about}: {advice} (said once)", once="bad_answer")
                break
            pause, told_schema = 0.0, True
        if request.reason == "rate_limited" and request.sent is not None:
            # a server paces its clients by single refusals; only a question that they used up is a failure
            self._count_failure(request.sent, Reply(reason="rate_limited"))
        return None

    async def _wait_turn(self, request: _PendingRequest, pause: float) -> bool:
        """Waits until the server may be asked, `pause` seconds at least; False if that is not before the deadline."""
        while True:
            now = time.monotonic()
            if self._breaker.state != "closed":
                request.reason = "breaker_open" if request.sent is None else request.reason
                return False
            busy = self._breaker.busy_until - now
            if busy > 0 and request.sent is None:
                request.reason = "rate_limited"
            wait = max(busy, pause)
            if wait <= 0:
                return True
            if now + wait >= request.deadline(self._cfg.timeout_s):
                return False
            # questions that wait for the same moment must not all come at once
            await asyncio.sleep(wait + 0.1 * random.random() * min(wait, 1.0))
            pause = 0.0

    async def _send_once(self, request: _PendingRequest, told_schema: bool) -> Reply:
        """Sends the question once and counts the outcome for the circuit breaker."""
        started = request.sent = time.monotonic()
        request.reason = "time_out"  # until something else is known
        left = request.deadline(self._cfg.timeout_s) - started
        try:
            reply = await self._endpoint.ask(request.question, left, told_schema)
        except asyncio.CancelledError:
            if not request.calls:  # they gave up at their deadline, a moment before this try did
                self._count_failure(started, Reply(reason="time_out", detail=f"no answer for {left:.3g} s"))
            raise
        now = time.monotonic()
        if not reply.reason:
            self._breaker.answered(now)
        elif reply.reason in ("connection", "server_error", "time_out") or reply.status in ADVICE:
            self._count_failure(started, reply)
        if reply.wait_s is not None:
            self._breaker.busy_until = max(self._breaker.busy_until, now + reply.wait_s)
        return reply

    def _count_failure(self, started: float, reply: Reply) -> None:
        cfg, now = self._cfg, time.monotonic()
        silent = reply.reason == "time_out" and now - started >= 0.9 * cfg.timeout_s
        if self._breaker.failed(started, now, cfg.breaker_failures if silent else 1):
            detail = f" ({reply.detail})" if reply.detail else ""
            advice = f"; {ADVICE[reply.status]}" if reply.status in ADVICE else ""
            self._endpoint.say(f"left alone for now, {reply.reason}{detail}{advice}")
            self._start_task(self._probe())

    async def _probe(self) -> None:
        """Asks a server whose circuit is open, from time to time, until it answers."""
        breaker, wait_s = self._breaker, 0.0
        while breaker.state != "closed":
            await asyncio.sleep(max(breaker.next_pause() * random.uniform(0.9, 1.1), wait_s))
            breaker.state = "half_open"
            self._counters.add(probes=1)
            try:
                reply = await self._endpoint.ask(PING, self._cfg.timeout_s)
            except Exception as error:  # an edge: else there would be no further probe
                self._unexpected_error(error)
                reply = Reply(reason="connection")
            if reply.reason:
                wait_s = reply.wait_s or 0.0
                breaker.state = "open"
            else:
                breaker.close()
                self._endpoint.say(f"back after {time.monotonic() - breaker.opened_at:.0f} s")


class _DaemonThreads(ThreadPoolExecutor):
    """A daemon thread for each job (look-ups of host names). The threads of the standard pool would keep a process with
    a hanging resolver from ending."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_running_or_notify_cancel()

        def run() -> None:
            try:
                future.set_result(fn(*args, **kwargs))
            except BaseException as error:
                future.set_exception(error)

        threading.Thread(target=run, name="judge names", daemon=True).start()
        return future
