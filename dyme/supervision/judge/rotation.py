"""Which server is asked next: round robin over those whose circuit is closed. Pure bookkeeping; the clock is passed in.

A server that fails some times in a row leaves the rotation (its circuit opens). After a pause the client asks it a
question of its own (half open): answered, the circuit closes; else the pause doubles. So no question of a run is ever
spent on finding out whether a broken server is back.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

LONGEST = 16
"""Pauses double up to this many times the first."""


@dataclass
class Line:
    """The state of one server. Times are seconds of a monotonic clock."""

    name: str
    state: Literal["closed", "open", "half_open"] = "closed"
    failures: int = 0
    """In a row."""
    pauses: int = 0
    """Since a question of the run was last answered."""
    opened_at: float = 0.0
    busy_until: float = 0.0
    """It asked to be left alone until then (Retry-After)."""
    last_answer: float = -1.0
    last_failure: float = -1.0

    def answered(self, now: float) -> None:
        self.failures, self.pauses, self.last_answer = 0, 0, now

    def failed(self, started: float, now: float, weight: int, limit: int) -> bool:
        """A try that began at `started` came to nothing; True where the circuit opens with it.

        Tries under way at the same time tell one and the same thing: of failures that overlap the first one counts, and
        none counts where the server answered another question meanwhile.
        """
        if self.state != "closed" or self.last_answer >= started or self.last_failure >= started:
            return False
        self.failures += weight
        self.last_failure = now
        if self.failures >= limit:
            self.open(now)
        return self.state == "open"

    def open(self, now: float) -> None:
        if self.state == "closed":
            self.opened_at = now
        self.state = "open"

    def next_pause(self, first_s: float) -> float:
        self.pauses += 1
        return first_s * min(2 ** (self.pauses - 1), LONGEST)

    def close(self) -> None:
        """Back in the rotation; the pauses stay long until a question of the run is answered."""
        self.state, self.failures, self.busy_until = "closed", 0, 0.0


class Rotation:
    """Round robin; `first` is where it starts, so that the ranks do not all begin with the same server."""

    def __init__(self, lines: list[Line], first: int = 0) -> None:
        self.lines = lines
        self._next = first

    def pick(self, now: float, avoid: Iterable[int] = ()) -> tuple[int | None, float]:
        """Index of the server to ask, and the seconds until it may be asked; None where every circuit is open.

        Servers in `avoid` (that failed this question) come last, and busy ones after those that are not.
        """
        shunned = set(avoid)
        size = len(self.lines)
        order = [(self._next + k) % size for k in range(size)]
        ready = [i for i in order if self.lines[i].state == "closed"]
        if not ready:
            return None, 0.0
        waits = {i: max(0.0, self.lines[i].busy_until - now) for i in ready}
        # min keeps the round robin's order among equals
        chosen = min(ready, key=lambda i: (waits[i] > 0, waits[i], i in shunned))
        self._next = (chosen + 1) % size
        return chosen, waits[chosen]

    def others(self, now: float, than: int) -> bool:
        """Whether another server could be asked right away."""
        return any(i != than and line.state == "closed" and line.busy_until <= now for i, line in enumerate(self.lines))
