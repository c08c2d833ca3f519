"""Intervals, pass@k and McNemar's test against brute force and closed forms."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from dyme.evaluation.statistics import bootstrap_interval, mcnemar, paired_interval, pass_at_k


def test_the_interval_of_a_share_is_the_normal_one_where_items_are_many():
    interval = bootstrap_interval([1.0] * 300 + [0.0] * 700)
    half = 1.96 * math.sqrt(0.3 * 0.7 / 1000)
    assert interval.low == pytest.approx(0.3 - half, abs=0.002)
    assert interval.high == pytest.approx(0.3 + half, abs=0.002)


def test_the_interval_agrees_with_plain_resampling():
    values = np.random.default_rng(5).random(40)
    drawn = values[np.random.default_rng(6).integers(0, 40, (20_000, 40))].mean(1)
    interval = bootstrap_interval(values.tolist(), 20_000)
    assert [interval.low, interval.high] == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.003)


def test_95_of_100_intervals_hold_the_truth():
    rng = np.random.default_rng(1)
    held = 0
    for seed in range(300):
        interval = bootstrap_interval((rng.random(200) < 0.6).astype(float).tolist(), 1000, seed)
        held += interval.low <= 0.6 <= interval.high
    assert 0.91 <= held / 300 <= 0.98


def test_the_interval_depends_on_values_and_seed_alone():
    values = [0.0, 1.0, 0.5, 1.0, 0.0, 0.25]
    assert bootstrap_interval(values) == bootstrap_interval(sorted(values))
    assert bootstrap_interval(values, 100, seed=1) != bootstrap_interval(values, 100, seed=2)


def test_few_or_equal_values():
    assert bootstrap_interval([]) is None and bootstrap_interval([1.0]) is None
    same = bootstrap_interval([1.0, 1.0])
    assert (same.low, same.high) == (1.0, 1.0)


def test_a_resample_larger_than_a_chunk_is_drawn_in_parts(monkeypatch):
    values = np.random.default_rng(0).random(50).tolist()
    whole = bootstrap_interval(values, 1000)
    monkeypatch.setattr("dyme.evaluation.statistics._CHUNK", 777)
    parted = bootstrap_interval(values, 1000)
    assert [parted.low, parted.high] == pytest.approx([whole.low, whole.high], rel=1e-12)


def test_what_cannot_be_resampled_is_refused():
    with pytest.raises(ValueError, match="finite"):
        bootstrap_interval([1.0, math.nan])
    with pytest.raises(ValueError, match="pairs"):
        paired_interval([1.0], [1.0, 0.0])


def test_pairs_cancel_what_both_share():
    """b is a plus one right item in ten: the paired interval is narrow although both vary much."""
    rng = np.random.default_rng(2)
    a = (rng.random(400) < 0.5).astype(float)
    b = a.copy()
    b[:40] = 1.0
    paired = paired_interval(a.tolist(), b.tolist())
    gain = float((b - a).mean())
    assert 0 < paired.low < gain < paired.high
    assert paired.high - paired.low < 0.05
    swapped = paired_interval(b.tolist(), a.tolist())
    assert swapped.low < -gain < swapped.high < 0


@pytest.mark.parametrize("n", range(1, 7))
def test_pass_at_k_counts_the_subsets_that_hold_a_right_one(n):
    for correct, k in itertools.product(range(n + 1), range(1, n + 1)):
        subsets = list(itertools.combinations([True] * correct + [False] * (n - correct), k))
        assert pass_at_k(n, correct, k) == pytest.approx(sum(map(any, subsets)) / len(subsets), abs=1e-12)


@pytest.mark.parametrize(("n", "correct", "k"), [(4, 5, 1), (4, -1, 1), (4, 2, 5), (4, 2, 0)])
def test_pass_at_k_refuses_impossible_counts(n, correct, k):
    with pytest.raises(ValueError, match="pass@k needs"):
        pass_at_k(n, correct, k)


@pytest.mark.parametrize(("a", "b"), [(0, 0), (1, 0), (5, 0), (0, 6), (3, 3), (10, 2), (7, 11)])
def test_mcnemar_is_the_binomial_test(a, b):
    n = a + b
    outcomes = [math.comb(n, i) * 0.5**n for i in range(n + 1)]
    expected = min(1.0, 2 * sum(outcomes[: min(a, b) + 1]))
    assert mcnemar(a, b) == pytest.approx(expected, rel=1e-12)
    assert mcnemar(a, b) == mcnemar(b, a)


def test_mcnemar_of_many_items():
    # the normal approximation with continuity correction
    z = (abs(5200 - 4800) - 1) / math.sqrt(10_000)
    assert mcnemar(5200, 4800) == pytest.approx(math.erfc(z / math.sqrt(2)), rel=0.01)
    assert 0 < mcnemar(900, 0) < 1e-200
    with pytest.raises(ValueError, match="negative"):
        mcnemar(-1, 3)
