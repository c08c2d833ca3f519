"""The model: what a step costs on n GPUs, from phase times of one GPU and an alpha-beta model of the network.
It starts from assumptions until a GPU was measured, or from the phase times of a run.

A message of S bytes takes alpha + S / beta. Collectives are rings inside a node and between nodes (Thakur,
Rabenseifner, Gropp: Optimization of collective communication operations in MPICH, 2005). Volumes of ZeRO: Rajbhandari
and others, ZeRO, arXiv 1910.02054, section 7; of hpZ: Wang and others, ZeRO++, arXiv 2306.10209, section 3.2.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

STRATEGIES = ("zero2", "zero3", "hpz")


@dataclass(frozen=True)
class Network:
    """alpha: seconds of a message; beta: bytes a second of one GPU in one direction, inside a node and between
    nodes."""

    name: str
    gpus_per_node: int
    alpha_intra: float
    beta_intra: float
    alpha_inter: float
    beta_inter: float


@dataclass(frozen=True)
class Workload:
    """One step of one GPU; with more GPUs each has as many prompts (weak scaling). parameters_bytes: as gathered.
    layers: modules gathered one after the other in a forward, and again in a backward. small: all-reduces of a few
    numbers in a step. lengths: of replies, the equally likely values of one; rows: replies a GPU decodes at once."""

    parameter_bytes: float
    layers: int
    micro_batches: int
    rollout_s: float
    update_s: float
    other_s: float
    small: int
    rows: int
    lengths: tuple[float, ...]


@dataclass(frozen=True)
class Step:
    """Seconds of a step: `rollout` of the slowest rank, `compute` of the rest, `gather` and `reduce` of the update,
    `refresh` of the rollout copy, `small` collectives."""

    rollout: float
    compute: float
    gather: float
    reduce: float
    refresh: float
    small: float

    @property
    def communication(self) -> float:
        return self.gather + self.reduce + self.refresh + self.small

    @property
    def exposed(self) -> float:
        """Nothing of the communication hides behind the computation: the upper end."""
        return self.rollout + self.compute + self.communication

    def hidden(self, update_s: float) -> float:
        """Gathers and reductions hide behind the update as far as it lasts: the lower end."""
        shown = max(0.0, self.gather + self.reduce - update_s)
        return self.rollout + self.compute + shown + self.refresh + self.small


NETWORKS = (
    Network("NVLink, InfiniBand", 8, 5e-6, 370e9, 15e-6, 40e9),
    Network("NVLink, 100 Gb/s Ethernet a node", 8, 5e-6, 370e9, 40e-6, 1.4e9),
)
"""Assumed, not measured: NVLink 4 has 450 GB/s a GPU and direction, NDR InfiniBand 50 GB/s a GPU, 100 Gb/s Ethernet
1.56 GB/s a GPU where eight share it (vendors' figures); taken are 80 to 90 % of them. The alphas are of the usual
order."""


def lognormal(median: float, sigma: float, cap: float, values: int = 199) -> tuple[float, ...]:
    """Quantiles of capped lengths: what is cut off ends at the cap."""
    normal = statistics.NormalDist()
    return tuple(min(cap, median * math.exp(sigma * normal.inv_cdf((i + 0.5) / values))) for i in range(values))


ASSUMED = Workload(
    parameter_bytes=2 * 0.9e9,
    layers=25,
    micro_batches=4,
    rollout_s=6.0,
    update_s=4.0,
    other_s=0.5,
    small=9,
    rows=64,
    lengths=lognormal(100.0, 0.4, 256.0),
)
"""Assumed, not measured: LLaVA-OneVision-0.5B in bfloat16 (0.9e9 parameters with its vision tower, 24 decoder layers
and the rest), 8 prompts and K = 8 a GPU; the three times are a guess of their order."""


def with_phases(work: Workload, metrics: Path) -> Workload:
    """`work` with the phase times of a run on one GPU: medians of time/* over the steps of its metrics.jsonl but the
    first. Raises ValueError where it has none."""
    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines() if line.strip()]
    steps = [line for line in lines if "time/update" in line][1:]
    if not steps:
        raise ValueError(f"{metrics}: no steps with time/update after the first: name the metrics.jsonl of a run")

    def median(phase: str) -> float:
        return statistics.median(line.get(f"time/{phase}", 0.0) for line in steps)

    others = ("score", "gather", "refine", "plan", "refresh")
    return replace(
        work, rollout_s=median("rollout"), update_s=median("update"), other_s=sum(median(name) for name in others)
    )


def ring(size: float, ranks: int, alpha: float, beta: float) -> float:
    """An all-gather to `size` bytes, or a reduce-scatter of them: (n - 1) alpha + size (n - 1) / n / beta."""
    return (ranks - 1) * alpha + size * (ranks - 1) / ranks / beta


def two_levels(size: float, gpus: int, network: Network) -> float:
    """The same in two levels, one after the other: GPUs of equal place in their nodes exchange size / g in a ring over
    the nodes, then each node's g GPUs size."""
    inside = min(gpus, network.gpus_per_node)
    if gpus % inside:
        raise ValueError(f"{gpus} GPUs do not fill nodes of {network.gpus_per_node}: name a multiple")
    between = ring(size / inside, gpus // inside, network.alpha_inter, network.beta_inter)
    return between + ring(size, inside, network.alpha_intra, network.beta_intra)


def in_messages(size: float, messages: int, gpus: int, network: Network) -> float:
    """`size` bytes in equal messages, one after the other."""
    return messages * two_levels(size / messages, gpus, network)


def expected_longest(lengths: Sequence[float], draws: int) -> float:
    """The mean of the largest of `draws` independent values: sum of x_i (F(x_i)^draws - F(x_(i-1))^draws)."""
    held, n = sorted(lengths), len(lengths)
    return sum(x * (((i + 1) / n) ** draws - (i / n) ** draws) for i, x in enumerate(held))


def predict(strategy: str, gpus: int, work: Workload, network: Network) -> Step:
    """A step on `gpus` GPUs.

    zero3: each micro-batch gathers the parameters in its forward and in its backward, reduces the gradients; the
    refresh gathers them once more. hpz: the backward gathers inside the node. zero2: a micro-batch only reduces, the
    step gathers once, and the refresh copies what is there.
    """
    if strategy not in STRATEGIES:
        raise ValueError(f"no strategy '{strategy}': {', '.join(STRATEGIES)}")
    slower = expected_longest(work.lengths, gpus * work.rows) / expected_longest(work.lengths, work.rows)
    whole = in_messages(work.parameter_bytes, work.layers, gpus, network)
    inside = in_messages(work.parameter_bytes, work.layers, min(gpus, network.gpus_per_node), network)
    gathers = {
        "zero2": whole,
        "zero3": work.micro_batches * 2 * whole,
        "hpz": work.micro_batches * (whole + inside),
    }
    return Step(
        rollout=work.rollout_s * slower,
        compute=work.update_s + work.other_s,
        gather=gathers[strategy],
        reduce=work.micro_batches * whole,
        refresh=0.0 if strategy == "zero2" else whole,
        small=2 * work.small * two_levels(8.0, gpus, network),
    )


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
