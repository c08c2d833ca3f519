"""Statistics of evaluated items: bootstrap intervals, pass@k, and the exact McNemar test."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LEVEL = 0.95
_CHUNK = 1 << 22  # drawn numbers held at once


@dataclass(frozen=True)
class Interval:
    """A 95 % interval, in the unit of the values."""

    low: float
    high: float


def bootstrap_interval(values: Sequence[float], resamples: int = 10_000, seed: int = 0) -> Interval | None:
    """The percentile bootstrap interval of the mean (Efron and Tibshirani 1993, chapter 13); None below 2 values.

    The same values, in any order, give the same interval. Raises `ValueError` for a value that is not finite.
    """
    array = np.asarray(values, dtype=np.float64)
    if not np.isfinite(array).all():
        raise ValueError("an interval needs finite values: leave out items that were not scored")
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {resamples}")
    n = len(array)
    if n < 2:
        return None
    # the counts of distinct values are multinomial: two numbers per resample for right and wrong instead of n
    distinct, counts = np.unique(array, return_counts=True)
    rng = np.random.default_rng(seed)
    rows = max(1, _CHUNK // len(distinct))
    means = np.concatenate(
        [
            rng.multinomial(n, counts / n, size=min(rows, resamples - start)) @ distinct / n
            for start in range(0, resamples, rows)
        ]
    )
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(low), float(high))


def paired_interval(a: Sequence[float], b: Sequence[float], resamples: int = 10_000, seed: int = 0) -> Interval | None:
    """The bootstrap interval of mean(b) - mean(a), where a[i] and b[i] belong to the same item; None below 2 items."""
    if len(a) != len(b):
        raise ValueError(f"paired values come in pairs: got {len(a)} and {len(b)}")
    return bootstrap_interval(np.subtract(b, a, dtype=np.float64).tolist(), resamples, seed)


def pass_at_k(n: int, correct: int, k: int) -> float:
    """The unbiased estimate that one of k samples is right when `correct` of n were: 1 - C(n - c, k) / C(n, k).

    Chen et al. 2021, arXiv 2107.03374, equation 1. Raises `ValueError` unless 0 <= correct <= n and 1 <= k <= n.
    """
    if not (0 <= correct <= n and 1 <= k <= n):
        raise ValueError(f"pass@k needs 0 <= correct <= n and 1 <= k <= n, got n={n}, correct={correct}, k={k}")
    return 1.0 - math.comb(n - correct, k) / math.comb(n, k)


def mcnemar(only_a: int, only_b: int) -> float:
    """The two-sided exact p-value that A and B are equally often right.

    `only_a` and `only_b` count the items that one of them alone got right (McNemar 1947; exact binomial form).
    """
    if only_a < 0 or only_b < 0:
        raise ValueError(f"counts must not be negative, got {only_a} and {only_b}")
    n = only_a + only_b
    term = tail = 1  # C(n, 0); integers, so that no tail is too small to be exact
    for i in range(min(only_a, only_b)):
        term = term * (n - i) // (i + 1)
        tail += term
    return min(1.0, 2 * tail / 2**n)
