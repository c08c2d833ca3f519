"""Statistics over items and seeds: means with bootstrap intervals, and paired differences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

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


def estimate(scores: Sequence[Sequence[float]]) -> Estimate:
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
    means = [np.einsum("rs,si,ri->r", r, table, i, optimize=True) for r, i in _draws(runs, items)]
    low, high = np.quantile(np.concatenate(means), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(_exact(table.mean()), _exact(low), _exact(high), runs, items)


@lru_cache(maxsize=8)
def _draws(runs: int, items: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Weights of the runs [500, runs] and of the items [500, items] in every resample, in parts that bound memory."""
    rng = np.random.default_rng(0)

    def weights(count: int) -> np.ndarray:
        return rng.multinomial(count, np.full(count, 1 / count), size=500) / count

    return [(weights(runs), weights(items)) for _ in range(RESAMPLES // 500)]


def _exact(value: float) -> float:
    """Without the last digits, which differ between processors: a zero is a zero, without a sign."""
    return round(float(value), 9) + 0.0


def difference(ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]]) -> Estimate:
    """ours - theirs over the same runs (by seed) and items, in pairs."""
    if len(ours) != len(theirs):
        raise ValueError(f"runs come in pairs: got {len(ours)} and {len(theirs)}")
    return estimate([[a - b for a, b in zip(mine, other, strict=True)] for mine, other in zip(ours, theirs)])


def ratio(parts: Sequence[int], wholes: Sequence[int]) -> float | None:
    """Sum of the parts over the sum of the wholes; None where there is nothing to divide by."""
    return sum(parts) / sum(wholes) if sum(wholes) else None
