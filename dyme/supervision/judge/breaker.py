"""Circuit breaker: whether the judge's server is asked. Pure bookkeeping; the clock is passed in.

Some failures in a row open the circuit. After a pause the client sends a probe, a question of its own (half open). An
answer closes the circuit, a failure doubles the pause. So no question of a run is spent on a server that is down.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

LONGEST = 16
"""Pauses double up to this many times the first."""


@dataclass
class CircuitBreaker:
    """Opens after `limit` failures in a row; the first pause is `pause_s`. Times are seconds of a monotonic clock."""

    limit: int
    pause_s: float
    state: Literal["closed", "open", "half_open"] = "closed"
    failures: int = 0
    """In a row."""
    pauses: int = 0
    """Since the last answer to a question of the run."""
    opened_at: float = 0.0
    busy_until: float = 0.0
    """End of a pause that the server asked for (Retry-After)."""
    last_answer: float = -1.0
    last_failure: float = -1.0

    def answered(self, now: float) -> None:
        self.failures, self.pauses, self.last_answer = 0, 0, now

    def failed(self, started: float, now: float, weight: int = 1) -> bool:
        """Counts a failed request that began at `started`. True if the circuit opens.

        Requests under way at the same time show the same fault: of failures that overlap only the first counts, and
        none counts if the server answered another request since `started`.
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
