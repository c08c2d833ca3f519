"""The background thread of a judge: an event loop that asks, retries, gives up and finds out which servers are back."""

from __future__ import annotations

import asyncio
import json
import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dyme.settings.judge import JudgeConfig
from dyme.supervision.judge.answers import parse_answer
from dyme.supervision.judge.cache import AnswerCache, answer_key, question_key
from dyme.supervision.judge.endpoint import MENDS, PING, Endpoint
from dyme.supervision.judge.rotation import Rotation
from dyme.supervision.judge.tally import Tally, Waiter
from dyme.supervision.judge.types import Question, Reason
from dyme.supervision.judge.wire import Reply

BACKOFF_S, LONGEST_BACKOFF_S = 0.5, 8.0
CACHE_WAIT_S = 2.0
"""How long a question waits for the cache before it is sent all the same."""
WORTH_A_LOOK_S = 0.05
"""A question that waited longer than this for its turn is looked up again."""
Outcome = tuple[dict[str, Any] | None, Reason, bool]


@dataclass(eq=False)
class _Flight:
    """One question under way and all who wait for it."""

    key: bytes
    question: Question
    waiters: list[Waiter]
    reason: Reason = "time_out"
    """What it failed with so far."""
    started: float | None = None
    task: asyncio.Task[None] | None = field(default=None, init=False)

    def deadline(self, timeout_s: float) -> float:
        last = max((waiter.deadline for waiter in self.waiters), default=0.0)
        return last if self.started is None else min(last, self.started + timeout_s)


class Worker:
    """Lives from the first question to `stop`. `keys`: API key of each endpoint."""

    def __init__(
        self, cfg: JudgeConfig, keys: Sequence[str], folder: Path | None, tally: Tally, say: Callable[[str], None]
    ) -> None:
        self._cfg, self._tally, self._say = cfg, tally, say
        self._endpoints = [Endpoint(cfg, i, key, tally, say) for i, key in enumerate(keys)]
        self.lines = [endpoint.line for endpoint in self._endpoints]
        self._rotation = Rotation(self.lines, random.randrange(len(self.lines)))
        self._flights: dict[bytes, _Flight] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._slots = asyncio.Semaphore(cfg.concurrency)
        self._cache = AnswerCache(folder, say, lambda: tally.add(cache_errors=1)) if folder else None
        self._told_odd = False
        self._stuck: Future[str | None] | None = None
        self._loop = asyncio.new_event_loop()
        self._loop.set_default_executor(_Daemons())
        self._thread = threading.Thread(target=self._run, name="judge", daemon=True)
        self._thread.start()

    def states(self) -> list[str]:
        """Of each endpoint, as in `JudgeCounts`."""
        now = time.monotonic()
        return ["busy" if line.state == "closed" and line.busy_until > now else line.state for line in self.lines]

    def take(self, waiter: Waiter) -> None:
        """From any thread; the answer goes to `waiter` through the tally."""
        self._loop.call_soon_threadsafe(self._accept, waiter)

    def stop(self) -> None:
        """Within a second, whatever is under way; those who wait are not answered."""
        self._loop.call_soon_threadsafe(lambda: self._begin(self._shut_down()))
        self._thread.join(0.5)
        if self._cache:
            self._cache.close(0.4)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
        self._loop.close()

    async def _shut_down(self) -> None:
        tasks = [task for task in self._tasks if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=0.2)
        await asyncio.wait([asyncio.ensure_future(endpoint.close()) for endpoint in self._endpoints], timeout=0.2)
        self._loop.stop()

    def _begin(self, work: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # ---- questions

    def _accept(self, waiter: Waiter) -> None:
        try:
            key = question_key(waiter.question, self._cfg.max_tokens, self._cfg.temperature)
        except Exception as error:  # an edge: what no JSON can say; nobody may wait in vain
            self._odd(error)
            self._tally.settle(waiter, None, "bad_answer")
            return
        flight = self._flights.get(key)
        if flight:
            self._tally.add(deduplicated=1)
            flight.waiters.append(waiter)
        else:
            flight = self._flights[key] = _Flight(key, waiter.question, [waiter])
            flight.task = self._begin(self._fly(flight))
        left = max(0.0, waiter.deadline - time.monotonic())
        waiter.timer = self._loop.call_later(left, self._expire, flight, waiter)

    def _expire(self, flight: _Flight, waiter: Waiter) -> None:
        if waiter not in flight.waiters:
            return
        flight.waiters.remove(waiter)
        self._tally.settle(waiter, None, flight.reason)
        if not flight.waiters and flight.task:
            self._flights.pop(flight.key, None)
            flight.task.cancel()

    async def _fly(self, flight: _Flight) -> None:
        try:
            outcome = await self._answer(flight)
        except Exception as error:  # an edge: nobody may wait in vain, whatever went wrong here
            self._odd(error)
            outcome = (None, "bad_answer", False)
        if self._flights.get(flight.key) is flight:
            del self._flights[flight.key]
        waiters, flight.waiters = flight.waiters, []
        for waiter in waiters:
            if waiter.timer:
                waiter.timer.cancel()  # it would hold the pictures until a deadline that may be far
            value = json.loads(json.dumps(outcome[0])) if outcome[0] and len(waiters) > 1 else outcome[0]
            self._tally.settle(waiter, value, *outcome[1:])

    def _odd(self, error: Exception) -> None:
        """Says only the kind, since the text may hold anything."""
        if not self._told_odd:
            self._told_odd = True
            self._say(f"judge: a question that cannot be asked ({type(error).__name__}): bad_answer (said once)")

    async def _answer(self, flight: _Flight) -> Outcome:
        value = await self._cached(flight)
        if value is not None:
            return value, "", True
        if not any(line.state == "closed" for line in self.lines):
            return None, "breaker_open", False
        queued = time.monotonic()
        async with self._slots:
            flight.started = time.monotonic()
            if flight.started - queued > WORTH_A_LOOK_S:  # another rank may have asked meanwhile
                value = await self._cached(flight)
                if value is not None:
                    return value, "", True
            value, model, reason = await self._ask(flight)
        if value is not None and self._cache:
            self._cache.put(answer_key(flight.key, model), value, model, flight.question)
        return value, reason, False

    async def _cached(self, flight: _Flight) -> dict[str, Any] | None:
        if not self._cache:
            return None
        if self._stuck and not self._stuck.done():  # a file system that hangs must not cost every question its wait
            self._tally.add(cache_errors=1)
            return None
        models = dict.fromkeys(endpoint.model for endpoint in self._cfg.endpoints)
        found = self._cache.get([answer_key(flight.key, model) for model in models])
        try:
            text = await asyncio.wait_for(asyncio.wrap_future(found), CACHE_WAIT_S)
        except (TimeoutError, asyncio.TimeoutError):
            self._tally.add(cache_errors=1)
            self._stuck = found
            return None
        return parse_answer(text, flight.question.schema)

    async def _ask(self, flight: _Flight) -> tuple[dict[str, Any] | None, str, Reason]:
        """Value, model that gave it and reason; all tries of one question."""
        tried: set[int] = set()
        pause, told, started = 0.0, False, 0.0
        chosen: int | None = None
        for attempt in range(self._cfg.retries + 1):
            turn = await self._turn(flight, tried, pause)
            if turn is None:
                break
            chosen, started = turn, time.monotonic()
            self._tally.add(retries=int(attempt > 0))
            reply = await self._try(chosen, flight, told)
            tried.add(chosen)
            if not reply.reason:
                value = parse_answer(reply.text, flight.question.schema)
                if value is not None:
                    return value, self._endpoints[chosen].settings.model, ""
                flight.reason = "bad_answer"
                if told or reply.cut:  # once more, it would answer the same
                    self._note_bad(chosen, flight.question, reply)
                    break
                pause, told = 0.0, True
                continue
            flight.reason = reply.reason
            if reply.reason == "refused" and (reply.status not in MENDS or len(tried) == len(self.lines)):
                break
            pause = min(BACKOFF_S * 2**attempt, LONGEST_BACKOFF_S) * random.uniform(0.5, 1.0)
        if flight.reason == "rate_limited" and chosen is not None:
            # single refusals are how a server paces its clients; a question that found no turn at all is a failure
            self._failed(chosen, started, Reply(reason="rate_limited"))
        return None, "", flight.reason

    def _note_bad(self, chosen: int, question: Question, reply: Reply) -> None:
        length = question.max_tokens or self._cfg.max_tokens
        why = f"cut at {length} tokens; raise judge.max_tokens" if reply.cut else "check that the model can write JSON"
        told = f"an answer ({question.purpose}) does not fit its schema: {why} (said once)"
        self._endpoints[chosen].say(told, once="bad")

    async def _turn(self, flight: _Flight, tried: set[int], pause: float) -> int | None:
        """The server to ask, once it may be asked; None where there is none before the deadline.

        `pause` holds for servers that failed this question already.
        """
        while True:
            now = time.monotonic()
            chosen, wait = self._rotation.pick(now, tried)
            if chosen is None:
                flight.reason = flight.reason if tried else "breaker_open"
                return None
            if wait and not tried:
                flight.reason = "rate_limited"
            wait = max(wait, pause) if chosen in tried else wait
            if wait <= 0:
                return chosen
            if now + wait >= flight.deadline(self._cfg.timeout_s):
                return None
            # those who wait for the same moment must not all come at once
            await asyncio.sleep(wait + 0.1 * random.random() * min(wait, 1.0))
            pause = 0.0

    async def _try(self, chosen: int, flight: _Flight, told: bool) -> Reply:
        """One try with one server, its outcome noted."""
        started = time.monotonic()
        flight.reason = "time_out"  # until something else is known
        limit = max(0.001, flight.deadline(self._cfg.timeout_s) - started)
        if self._rotation.others(started, chosen):
            limit /= 2  # a silent server must leave time for another one
        try:
            reply = await asyncio.wait_for(self._endpoints[chosen].exchange(flight.question, told), limit)
        except (TimeoutError, asyncio.TimeoutError):
            reply = Reply(reason="time_out", detail=f"no answer for {limit:.3g} s")
        except asyncio.CancelledError:
            if not flight.waiters:  # the deadline, which its timer saw first
                self._failed(chosen, started, Reply(reason="time_out", detail=f"no answer for {limit:.3g} s"))
            raise
        now = time.monotonic()
        line = self.lines[chosen]
        if not reply.reason:
            line.answered(now)
        elif reply.reason in ("connection", "server_error", "time_out") or reply.status in MENDS:
            self._failed(chosen, started, reply)
        if reply.wait_s is not None:
            line.busy_until = max(line.busy_until, now + reply.wait_s)
        return reply

    # ---- servers

    def _failed(self, chosen: int, started: float, reply: Reply) -> None:
        cfg, line, now = self._cfg, self.lines[chosen], time.monotonic()
        silent = reply.reason == "time_out" and now - started >= 0.9 * cfg.timeout_s
        weight = cfg.breaker_failures if silent else 1
        if line.failed(started, now, weight, cfg.breaker_failures):
            mend = f"; {MENDS[reply.status]}" if reply.status in MENDS else ""
            told = f" ({reply.detail})" if reply.detail else ""
            self._endpoints[chosen].say(f"left alone for now, {reply.reason}{told}{mend}")
            self._begin(self._revive(chosen))

    async def _revive(self, chosen: int) -> None:
        """Asks a server that left the rotation, from time to time, until it answers."""
        line, wait_s = self.lines[chosen], 0.0
        while line.state != "closed":
            pause = line.next_pause(self._cfg.breaker_pause_s) * random.uniform(0.9, 1.1)
            await asyncio.sleep(max(pause, wait_s))
            line.state = "half_open"
            self._tally.add(probes=1)
            try:
                reply = await asyncio.wait_for(self._endpoints[chosen].exchange(PING), self._cfg.timeout_s)
            except (TimeoutError, asyncio.TimeoutError):
                reply = Reply(reason="time_out")
            except Exception as error:  # an edge: else nobody would ever look again
                self._odd(error)
                reply = Reply(reason="connection")
            if reply.reason:
                wait_s = reply.wait_s or 0.0
                line.state = "open"
            else:
                line.close()
                self._endpoints[chosen].say(f"back after {time.monotonic() - line.opened_at:.0f} s")


class _Daemons(ThreadPoolExecutor):
    """A daemon thread for each job (look-ups of host names): a resolver that hangs must not hold the process at its
    end, as the threads of the standard pool do."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                result = fn(*args, **kwargs)
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(result)

        threading.Thread(target=run, name="judge names", daemon=True).start()
        return future
