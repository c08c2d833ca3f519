"""Profile: where the time of a step goes, as spans and as a Chrome trace (`run.profile`).

profile.json opens in Perfetto (ui.perfetto.dev) or chrome://tracing. It has a track of steps, one of their phases,
one of what happens inside the update, and one for each thread beside it. Only here the host waits for the device at the
borders of spans (not those of threads); without `run.profile` none of this exists.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

from deepspeed.accelerator import get_accelerator

STEPS = 1000
"""Steps that are kept: the newest."""
EVERY = 50
"""Steps between two writings of the files."""
SHOWN = 12
"""Steps of the picture: the last."""
PARTS = ("forward", "backward", "optimizer")
"""What is told apart inside the update."""
BESIDE = ("scoring", "prompts")
"""Threads beside the step: scoring of what is decoded, and the prompts of the next step."""
TRACKS = ("step", "phase", "update", *BESIDE)


@dataclass(frozen=True)
class Span:
    """Something that took time on this rank. `start` and `seconds` on the clock of time.perf_counter; `track` is one of
    `TRACKS`. Spans of one track do not overlap."""

    track: str
    name: str
    step: int
    start: float
    seconds: float


class Profile:
    """The spans of the newest steps of this rank, and their files in `folder`."""

    def __init__(self, folder: Path, synchronize: Callable[[], object] | None = None) -> None:
        """`synchronize` waits for the device; by default that of DeepSpeed's accelerator."""
        self.folder = folder
        self._synchronize = synchronize or get_accelerator().synchronize
        self._steps: deque[list[Span]] = deque(maxlen=STEPS)
        self._open: list[Span] = []
        self._origin = time.perf_counter()

    @property
    def spans(self) -> list[Span]:
        """Those of finished steps, by the time they ended; the step itself comes last."""
        return [span for step in self._steps for span in step]

    @contextmanager
    def span(self, name: str, track: str, step: int) -> Iterator[None]:
        start = self._now()
        yield
        self._open.append(Span(track, name, step, start, self._now() - start))

    @contextmanager
    def background(self, track: str, step: int) -> Iterator[None]:
        """A span of one of the threads `BESIDE`; it must end before the step does."""
        start = time.perf_counter()
        yield
        self._open.append(Span(track, track, step, start, time.perf_counter() - start))

    def watch(self, engine: Any, step: Callable[[], int]) -> None:
        """From here on every forward, backward and optimizer step of the engine is a span. `step`: the current one."""
        for owner, method, name in ((engine.ds, "forward", 0), (engine.ds, "backward", 1), (engine, "step", 2)):
            setattr(owner, method, self._timed(getattr(owner, method), PARTS[name], step))

    def _timed(self, function: Callable[..., Any], name: str, step: Callable[[], int]) -> Callable[..., Any]:
        @wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.span(name, "update", step()):
                return function(*args, **kwargs)

        return timed

    def end_step(self) -> dict[str, float]:
        """Closes a step; seconds of each of `PARTS` in it."""
        seconds = defaultdict[str, float](float)
        for span in self._open:
            if span.track == "update":
                seconds[span.name] += span.seconds
        self._steps.append(self._open)
        self._open = []
        return {part: seconds[part] for part in PARTS if part in seconds}

    def newest(self) -> list[Span]:
        """The spans of the last `SHOWN` finished steps."""
        return [span for step in list(self._steps)[-SHOWN:] for span in step]

    def write(self) -> None:
        """Writes profile.json."""
        (self.folder / "profile.json").write_text(json.dumps(self.trace()), encoding="utf-8")

    def trace(self) -> dict[str, Any]:
        """The spans as Chrome's trace events: complete events, microseconds since the run was opened."""
        events: list[dict[str, Any]] = [
            {"ph": "M", "pid": 0, "tid": number, "name": "thread_name", "args": {"name": track}}
            for number, track in enumerate(TRACKS)
        ]
        for span in self.spans:
            events.append(
                {
                    "ph": "X",
                    "pid": 0,
                    "tid": TRACKS.index(span.track),
                    "name": span.name,
                    "cat": span.track,
                    "ts": (span.start - self._origin) * 1e6,
                    "dur": span.seconds * 1e6,
                    "args": {"step": span.step},
                }
            )
        return {"traceEvents": events, "displayTimeUnit": "ms"}

    def _now(self) -> float:
        self._synchronize()
        return time.perf_counter()
