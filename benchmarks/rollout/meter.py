"""Time and memory of a piece of work."""

from __future__ import annotations

import ctypes
import re
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.kernels.timing import quartiles

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
"""Linux: the high-water mark of the resident set, and how to set it back."""


@dataclass(frozen=True)
class Cost:
    """wall_s; cpu_s: processor time of this process, all its threads. peak_mb: most memory during the work, of which
    before_mb were held when it began (MB of 10^6 bytes): allocated by torch on a GPU, resident on a CPU. None where
    the system does not say."""

    wall_s: float
    cpu_s: float
    peak_mb: float | None
    before_mb: float | None


class Meter:
    """Measures from here to `stop`."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._before = device, _begin(device)
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def stop(self) -> Cost:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        wall, cpu = time.perf_counter() - self._wall, time.process_time() - self._cpu
        return Cost(wall, cpu, _peak(self._device), self._before)


def measured(device: torch.device, work: Callable[[], Any]) -> tuple[Cost, Any]:
    """The cost of one call of `work`, and what it returned."""
    meter = Meter(device)
    result = work()
    return meter.stop(), result


def seconds(device: torch.device) -> float:
    """A clock for phases: the wall's on a GPU, whose work is waited for; on a CPU the processor time of this process,
    which other work on the machine does not lengthen."""
    if device.type != "cuda":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def medians(costs: Sequence[Cost]) -> dict[str, Any]:
    """Median wall and processor seconds with the quartiles of the wall's, and the largest memory."""
    q1, median, q3 = quartiles([cost.wall_s for cost in costs])
    peaks = [cost.peak_mb for cost in costs if cost.peak_mb is not None]
    extra = [c.peak_mb - c.before_mb for c in costs if c.peak_mb is not None and c.before_mb is not None]
    return {
        "wall_s": median,
        "wall_q1_s": q1,
        "wall_q3_s": q3,
        "cpu_s": statistics.median(cost.cpu_s for cost in costs),
        "peak_mb": max(peaks, default=None),
        "extra_mb": max(extra, default=None),
        "runs": len(costs),
    }


def _begin(device: torch.device) -> float | None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device) / 1e6
    if sys.platform != "linux":
        return None
    if hasattr(trim := ctypes.CDLL(None), "malloc_trim"):
        trim.malloc_trim(0)  # freed memory that stays resident would hide what the next call takes
    try:
        CLEAR.write_text("5")
    except OSError:  # a container may forbid it
        return None
    return _resident("VmRSS")


def _peak(device: torch.device) -> float | None:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    return _resident("VmHWM") if sys.platform == "linux" else None


def _resident(field: str) -> float | None:
    found = re.search(rf"^{field}:\s*(\d+)", STATUS.read_text(), re.MULTILINE)
    return int(found[1]) * 1024 / 1e6 if found else None
