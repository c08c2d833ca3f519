"""UserRewards: concurrent calls of the user's reward functions, each with a time limit, and their results.

Every call runs in a daemon thread. A function that hangs cannot be stopped, so its thread is abandoned; a daemon thread
does not keep the process alive.
"""

from __future__ import annotations

import asyncio
import inspect
import itertools
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

import numpy as np
import torch

from dyme.rewards.compose import UserScores
from dyme.rewards.surroundings import Surroundings
from dyme.rewards.user import IMAGE, IMAGES, PICTURES, LoadedReward, told
from dyme.settings.rewards import Per
from dyme.supervision.futures import wait_for

AT_ONCE = 4
"""Calls of a function that run at the same time; the next one waits."""
MAX_HANGING = 3
"""A function with this many abandoned calls still running is not called until one of them ends."""
MAX_REWARD = 1e9
"""Larger values are refused, since their squares would spoil the statistics of a group."""

Columns = Mapping[str, Any]
Pictures = Callable[[], list[list[Any]]]


@dataclass(frozen=True)
class UserOutcome:
    """`errors` counts the failed rows by "name: kind"; `examples` has the first message of each kind."""

    scores: UserScores
    errors: dict[str, int]
    examples: dict[str, str]


@dataclass(frozen=True)
class _Values:
    """One call: `values` float64 [R], NaN for None and failed rows; `kinds` [R], "" if the row did not fail."""

    values: np.ndarray
    kinds: list[str]
    example: Mapping[str, str]


class Failures:
    """`counts`: failed rows of all ranks by "name: kind"."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._noted: dict[str, tuple[int, str]] = {}
        self._newest: dict[str, str] = {}

    def newest(self, name: str) -> str:
        """The newest failure of a reward (or of the "verifier") on any rank, "" if none was shared."""
        return self._newest.get(name, "")

    def note(self, errors: Mapping[str, int], examples: Mapping[str, str]) -> None:
        """Keeps failures of this rank, with an example of each kind, for `share`."""
        for kind, count in errors.items():
            before, example = self._noted.get(kind, (0, examples.get(kind, "")))
            self._noted[kind] = before + count, example

    def share(self, gather: Callable[[Any], list[Any]], say: Callable[[str], None]) -> None:
        """Collective, through `TrainEngine.gather_json`. Counts the noted failures of all ranks and reports the first
        of each kind."""
        for part in gather(self._noted):
            for kind, (count, example) in part.items():
                if kind not in self.counts:
                    told = f" ({example})" if example else ""
                    say(f"reward failed, {kind}{told}: its rows stay unscored (said once)")
                self.counts[kind] += count
                self._newest[kind.partition(": ")[0]] = example or kind
        self._noted.clear()


class UserRewards:
    """The user's reward functions of this rank. Calls are started and collected by one thread at a time."""

    def __init__(self, rewards: Sequence[LoadedReward]) -> None:
        self.rewards = tuple(rewards)
        self._workers: list[list[_Worker]] = [[] for _ in self.rewards]
        self._ended = threading.Condition()
        self._surroundings = Surroundings()
        self.harmless = False
        """Whether a step has passed in which no call changed the state of the process: then calls may run beside the
        decoding."""

    def begin(self) -> None:
        """Takes the state of the process for the right one. Called before the calls of a step, by the thread that
        collects the results."""
        if self.rewards and not any(worker.call for workers in self._workers for worker in workers):
            self._surroundings.note()

    def end(self) -> None:
        """Puts back what functions changed of the process, seeds included, when their results are there."""
        if self.rewards:
            self._surroundings.restore()
            self.harmless |= not self._surroundings.changed

    @property
    def titles(self) -> tuple[str, ...]:
        return tuple(reward.title for reward in self.rewards)

    def start(self, columns: Columns, pictures: Pictures, rows: int, per: Per | None = None) -> Started:
        """Calls every function, or those of one `per`, with what it takes of `columns` (lists of `rows` entries, or
        single values). Waits only if a function has `AT_ONCE` calls under way.

        `pictures` gives the column of pictures to functions that name it. Errors of a function are in its outcome,
        never raised.
        """
        asked = [j for j, reward in enumerate(self.rewards) if rows and per in (None, reward.per)]
        return Started(self.titles, rows, {j: self._start(j, columns, pictures, rows) for j in asked})

    def _start(self, j: int, columns: Columns, pictures: Pictures, rows: int) -> _Call | None:
        """The call under way, None if too many earlier ones hang."""
        workers = self._workers[j]
        with self._ended:
            while (worker := next((worker for worker in workers if worker.call is None), None)) is None:
                left = [call.left() for each in workers if (call := each.call)]
                late = left.count(0.0)
                if late >= MAX_HANGING:
                    return None
                if len(left) - late < AT_ONCE:
                    worker = _Worker(f"reward {self.rewards[j].title}", self._ended, self._surroundings)
                    workers.append(worker)
                    break
                self._ended.wait(min(seconds for seconds in left if seconds))
            call = _Call(self.rewards[j], columns, pictures, rows)
            worker.take(call)
        return call


@dataclass(frozen=True)
class Started:
    """Calls under way, by the number of their function; None: it is not called, because too many earlier ones hang."""

    titles: tuple[str, ...]
    rows: int
    calls: Mapping[int, _Call | None]

    def outcome(self, weights: Sequence[float]) -> UserOutcome:
        """Waits for all of them. Functions that were not called have NaN values and no failures."""
        values = np.full((self.rows, len(self.titles)), math.nan)
        failed = np.zeros((self.rows, len(self.titles)), dtype=np.bool_)
        errors: Counter[str] = Counter()
        examples: dict[str, str] = {}
        for j, call in self.calls.items():
            busy = f"{MAX_HANGING} calls that timed out still run"
            outcome = call.outcome() if call else _failed(self.rows, "busy", busy)
            values[:, j] = outcome.values
            failed[:, j] = [bool(kind) for kind in outcome.kinds]
            for kind in filter(None, outcome.kinds):
                key = f"{self.titles[j]}: {kind}"
                errors[key] += 1
                examples.setdefault(key, outcome.example[kind])
        return UserOutcome(UserScores(values, failed, tuple(weights)), dict(errors), examples)


class _Call:
    """One call of one function. `result` is set at its end, by the worker."""

    def __init__(self, reward: LoadedReward, columns: Columns, pictures: Pictures, rows: int) -> None:
        self.reward, self.rows = reward, rows
        self.result: Future[_Values] = Future()
        self._columns, self._pictures = columns, pictures
        self._deadline = time.monotonic() + reward.timeout_s

    def outcome(self) -> _Values:
        """Waits until the call ends or its time is over."""
        return wait_for(self.result, self.left(), self._late())

    def left(self) -> float:
        return max(0.0, self._deadline - time.monotonic())

    def make(self, loop: asyncio.AbstractEventLoop) -> _Values:
        """Runs in the worker's thread."""
        try:
            return self._made(loop)
        except BaseException as error:  # an edge: the user's code, which may even call sys.exit
            return _failed(self.rows, type(error).__name__, told(error, self.reward.path))

    def _made(self, loop: asyncio.AbstractEventLoop) -> _Values:
        given = {name: _copied(self._columns[name]) for name in self.reward.arguments if name not in PICTURES}
        if self.reward.arguments & set(PICTURES):
            pictures = self._pictures()
            columns = {IMAGES: pictures, IMAGE: [row[0] if row else None for row in pictures]}
            given |= {name: column for name, column in columns.items() if name in self.reward.arguments}
        result = self.reward.function(**given)
        if inspect.isawaitable(result):
            try:
                result = loop.run_until_complete(asyncio.wait_for(result, self.left()))
            except (TimeoutError, asyncio.TimeoutError):
                if self.left():  # a timeout raised by the user's code
                    raise
                return self._late()
        return _read(result, self.rows)

    def _late(self) -> _Values:
        return _failed(self.rows, "time_out", f"took longer than {self.reward.timeout_s:g} s")


class _Worker:
    """A daemon thread that makes one call after another. Its event loop stays, with any clients bound to it."""

    def __init__(self, name: str, ended: threading.Condition, surroundings: Surroundings) -> None:
        self.call: _Call | None = None
        self._ended, self._surroundings = ended, surroundings
        self._calls: SimpleQueue[_Call] = SimpleQueue()
        # the current device belongs to the thread; a user's model goes on the rank's device
        self._device = torch.cuda.current_device() if torch.cuda.is_initialized() else None
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def take(self, call: _Call) -> None:
        self.call = call
        self._calls.put(call)

    def _run(self) -> None:
        if self._device is not None:
            torch.cuda.set_device(self._device)
        loop = asyncio.new_event_loop()
        asyncio.set_event_loop(loop)
        while True:
            call = self._calls.get()
            with self._surroundings.call():
                values = call.make(loop)
            with self._ended:
                self.call = None  # before the next call can be queued
                self._ended.notify_all()
            call.result.set_result(values)
            del call, values


def _copied(column: Any) -> Any:
    """A copy, because functions may change their arguments and several run at once."""
    return [list(item) if isinstance(item, list) else item for item in column] if isinstance(column, list) else column


def _failed(rows: int, kind: str, example: str) -> _Values:
    """A call that failed for all its rows."""
    return _Values(np.full(rows, math.nan), [kind] * rows, {kind: example})


def _read(result: Any, rows: int) -> _Values:
    """The values that a function returned."""
    if isinstance(result, str | bytes | Mapping) or not isinstance(result, Iterable):
        return _failed(rows, "not_a_list", f"returned a {type(result).__name__} in place of a list of numbers")
    given = list(itertools.islice(result, rows + 1))
    if len(given) != rows:
        told_length = f"{len(given)}" if len(given) < rows else f"more than {rows}"
        return _failed(rows, "wrong_length", f"returned {told_length} values for {rows} completions")
    values, kinds, example = np.full(rows, math.nan), [""] * rows, dict[str, str]()
    for row, value in enumerate(given):
        values[row], kinds[row] = _number(value)
        if kinds[row]:
            example.setdefault(kinds[row], f"returned {value!r:.40} for a completion")
    return _Values(values, kinds, example)


def _number(value: Any) -> tuple[float, str]:
    """A value as a number, NaN for None and failures, and the kind of failure."""
    if value is None:
        return math.nan, ""
    if isinstance(value, str | bytes):
        return math.nan, "not_a_number"
    try:
        number = float(value)
    except Exception:  # an edge: objects of the user's code
        return math.nan, "not_a_number"
    if abs(number) > MAX_REWARD:
        return math.nan, "out_of_range"
    return number, "nan" if math.isnan(number) else ""
