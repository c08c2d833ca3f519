"""What the prediction starts from: assumptions until a GPU was measured, or the phase times of a run."""

from __future__ import annotations

import json
import math
import statistics
from dataclasses import replace
from pathlib import Path

from benchmarks.scaling.model import Network, Workload

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
