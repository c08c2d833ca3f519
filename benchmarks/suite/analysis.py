"""Statistics over items and seeds: means with bootstrap intervals, and paired differences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LEVEL = 0.95
RESAMPLES = 2_000


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval, over `seeds` runs and `items` items each; no interval below 2 items."""

    value: float
    low: float | None
    high: float | None
    seeds: int
    items: int

    @property
    def excludes_zero(self) -> bool:
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def estimate(scores: Sequence[Sequence[float]], resamples: int = RESAMPLES, seed: int = 0) -> Estimate:
    """The mean of scores[s][i], run s and item i; the percentile interval of a bootstrap that draws runs and items.

    All runs answer the same items, so a resample draws one set of items for all runs it holds (a crossed design; drawn
    anew in each run the items' own spread would shrink with the number of runs). With one run the interval is over
    items alone and says nothing about seeds. Raises `ValueError` where runs differ in their number of items.
    """
    if not scores or len({len(run) for run in scores}) != 1:
        raise ValueError(f"runs must hold the same items, got {[len(run) for run in scores]}")
    table = np.asarray(scores, dtype=np.float64)
    runs, items = table.shape
    if items < 2:
        return Estimate(float(table.mean()), None, None, runs, items)
    rng = np.random.default_rng(seed)
    means = np.empty(resamples)
    for start in range(0, resamples, 500):  # bounds memory: 500 x items weights at once
        n = min(500, resamples - start)
        of_runs = rng.multinomial(runs, np.full(runs, 1 / runs), size=n) / runs
        of_items = rng.multinomial(items, np.full(items, 1 / items), size=n) / items
        means[start : start + n] = np.einsum("rs,si,ri->r", of_runs, table, of_items, optimize=True)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(float(table.mean()), float(low), float(high), runs, items)


def difference(
    ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]], resamples: int = RESAMPLES
) -> Estimate:
    """ours - theirs over the same runs (by seed) and items, in pairs."""
    if len(ours) != len(theirs):
        raise ValueError(f"runs come in pairs: got {len(ours)} and {len(theirs)}")
    pairs = [[a - b for a, b in zip(mine, other, strict=True)] for mine, other in zip(ours, theirs)]
    return estimate(pairs, resamples)


def ratio(parts: Sequence[int], wholes: Sequence[int]) -> float | None:
    """Sum of the parts over the sum of the wholes; None where there is nothing to divide by."""
    return sum(parts) / sum(wholes) if sum(wholes) else None
