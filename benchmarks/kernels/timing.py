"""Times of single calls, on the device's own clock."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

FLUSH_BYTES = 512 << 20  # several times the L2 of any GPU
HEAD_START = 200_000  # GPU cycles during which the host queues the work that is timed


@dataclass(frozen=True)
class Spread:
    """Median and quartiles in milliseconds, of `runs` calls."""

    median_ms: float
    q1_ms: float
    q3_ms: float
    runs: int


def quartiles(values: Sequence[float]) -> list[float]:
    return statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3


def spread(times: Sequence[float]) -> Spread:
    q1, median, q3 = quartiles(times)
    return Spread(median, q1, q3, len(times))


class Clock:
    """Milliseconds of a call: CUDA events on a GPU, where launches are queued behind a short wait so that the host is
    not what is measured unless the call synchronises; the wall clock elsewhere."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.cuda = device.type == "cuda"
        self._flush = torch.empty((FLUSH_BYTES if self.cuda else 1 << 20) // 4, dtype=torch.int32, device=device)

    def flush(self) -> None:
        """Drop what the last call left in the cache."""
        self._flush.zero_()

    def synchronize(self) -> None:
        if self.cuda:
            torch.cuda.synchronize(self.device)

    def time(self, call: Callable[[], Any]) -> float:
        self.synchronize()
        if not self.cuda:
            begin = time.perf_counter()
            call()
            return (time.perf_counter() - begin) * 1e3
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda._sleep(HEAD_START)
        start.record()
        kept = call()
        end.record()
        end.synchronize()
        del kept
        return start.elapsed_time(end)


@dataclass(frozen=True)
class Effort:
    """How long to measure: `warmup` calls, then rounds until each of provider, mode and cache has `most` calls, or
    `seconds` of calls and at least `least` of them."""

    warmup: int = 3
    least: int = 5
    most: int = 20
    seconds: float = 0.4


def interleave(
    clock: Clock,
    calls: dict[Any, tuple[Callable[[], Any], Callable[[], None]]],
    effort: Effort,
    failed: Callable[[Any, Exception], None],
) -> dict[tuple[Any, str], Spread]:
    """key -> (call, reset): times of every call with a hot cache (the same call just before) and a cold one (flushed),
    by (key, cache). Rounds go through all keys, so that a drift of the clock rate meets all alike. A call that raises
    is reported to `failed` and left out."""
    times: dict[tuple[Any, str], list[float]] = {}
    going = dict(calls)
    while going:
        for key, (call, reset) in list(going.items()):
            try:
                for cache in ("cold", "hot"):
                    reset()
                    if cache == "cold":
                        clock.flush()
                    times.setdefault((key, cache), []).append(clock.time(call))
            except Exception as error:  # a provider's, whatever it is
                failed(key, error)
                del going[key]
                for cache in ("cold", "hot"):
                    times.pop((key, cache), None)
                continue
            done = times[key, "hot"]
            if len(done) >= effort.most or (len(done) >= effort.least and sum(done) > effort.seconds * 1e3):
                del going[key]
    return {name: spread(values) for name, values in times.items()}
