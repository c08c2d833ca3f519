"""The model against the CPU ranks of tests.stress.network: step time under latency, predicted from the step without
it."""

from __future__ import annotations

import math
from typing import Any

HANDSHAKE = 2
"""gloo's receiver tells the sender that it is ready, then the message comes: two one-way trips for each message of a
ring. Bare collectives measured alone show it (`probe_slopes`: twice `one_way_trips`)."""


def one_way_trips(name: str, ranks: int) -> int:
    """Messages that wait for one another in a collective of `ranks`, by the algorithm it is expected to use.

    Ring: all-gather and reduce-scatter n - 1, all-reduce 2 (n - 1) (Thakur, Rabenseifner, Gropp: Optimization of
    collective communication operations in MPICH, 2005, sections 4.1 to 4.5). Broadcast and reduce: a binomial tree,
    ceil(log2 n). Barrier: dissemination, ceil(log2 n).
    """
    if ranks == 1:
        return 0
    if name == "all_reduce":
        return 2 * (ranks - 1)
    if name in ("broadcast", "reduce", "barrier"):
        return math.ceil(math.log2(ranks))
    return ranks - 1


def trips(collectives: dict[str, int], ranks: int) -> int:
    """One-way trips of a step if no collective overlaps another. gloo makes a reduce-scatter of an all-reduce."""
    of = {"reduce_scatter_tensor": "all_reduce"}
    return HANDSHAKE * sum(n * one_way_trips(of.get(name, name), ranks) for name, n in collectives.items())


def compare(part: dict[str, Any]) -> list[dict[str, float]]:
    """Points with latency and without loss: measured ms, predicted ms, and the error of the prediction as a share of
    the measured. Nothing but the step without latency is taken from the steps' times."""
    dry = [p for p in part["points"] if not p["loss"]]
    start = next(p["step_ms"] for p in dry if p["delay_ms"] == 0)
    slope = trips(part["collectives"], part["ranks"])
    found = []
    for point in dry:
        if point["delay_ms"]:
            measured, said = point["step_ms"], start + slope * point["delay_ms"]
            times = {"delay_ms": point["delay_ms"], "measured_ms": measured, "predicted_ms": said}
            found.append({**times, "error": said / measured - 1})
    return found
