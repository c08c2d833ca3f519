"""group_advantages, both backends, against loops over numpy."""

from __future__ import annotations

import itertools
import math
from dataclasses import fields
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dyme_kernels import GroupAdvantages, group_advantages

BACKENDS = ("torch", pytest.param("triton", marks=pytest.mark.skipif(find_spec("triton") is None, reason="no triton")))
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
REWARD = st.one_of(st.sampled_from([0.0, 1.0, 0.1, 2.3, math.nan]), st.floats(-3, 3))
ROW = st.tuples(REWARD, st.sampled_from([0.0, 0.3, 0.6, 1.0, math.nan]), st.sampled_from([True, True, True, False]))


def by_hand(groups, scale, epsilon):
    rows, stats = [], []
    for group in groups:
        kept = [(r, a) for r, a, s in group if s and not math.isnan(r) and not math.isnan(a)]
        r, a = np.array([x for x, _ in kept]), np.array([x for _, x in kept])
        n = len(kept)
        mean, std = (r.mean(), r.std(ddof=1)) if n > 1 else (r.sum(), 0.0)
        same = n == 0 or a.max() - a.min() < 1e-9
        accuracy, var = (a.mean() if n else 0.0), (0.0 if same else a.var())
        stats.append((mean, r.var() if n else 0.0, std, accuracy, var, n))
        for x, y, s in group:
            counts = s and not math.isnan(x) and not math.isnan(y)
            rows.append(0.0 if not counts else (x - mean) / (std + epsilon if scale == "std" else 1.0))
    return np.array(rows), np.array(stats).reshape(len(groups), 6)


def advantages(backend, rewards, offsets, **options) -> GroupAdvantages:
    """group_advantages where the tests run, its results on the CPU."""
    options = {k: x.to(DEVICE) if isinstance(x, torch.Tensor) else x for k, x in options.items()}
    out = group_advantages(rewards.to(DEVICE), offsets.to(DEVICE), **options, backend=backend)
    return GroupAdvantages(**{f.name: getattr(out, f.name).cpu() for f in fields(out)})


CASES = given(
    groups=st.lists(st.lists(ROW, max_size=6), max_size=5),
    scale=st.sampled_from(["std", "none"]),
)


@settings(max_examples=150, deadline=None)
@CASES
def test_equals_loops(groups, scale):
    check("torch", groups, scale)


@pytest.mark.skipif(find_spec("triton") is None, reason="no triton")
@settings(max_examples=25, deadline=None)
@CASES
def test_triton_equals_loops(groups, scale):
    check("triton", groups, scale)


def check(backend, groups, scale):
    flat = [row for group in groups for row in group]
    offsets = torch.tensor([0, *np.cumsum([len(g) for g in groups])], dtype=torch.int64)
    rewards = torch.tensor([r for r, _, _ in flat], dtype=torch.float64)
    accuracy = torch.tensor([a for _, a, _ in flat], dtype=torch.float64)
    scored = torch.tensor([s for _, _, s in flat], dtype=torch.bool)
    out = advantages(backend, rewards, offsets, accuracy=accuracy, scored=scored, scale=scale)
    rows, stats = by_hand(groups, scale, 1e-4)
    # Equal rewards: the loop's mean is off by an ulp, which 1e-4 in the divisor raises to 1e-11.
    np.testing.assert_allclose(out.advantages, rows, atol=1e-10)
    columns = (out.mean, out.variance, out.std, out.accuracy_mean, out.accuracy_var, out.num_scored)
    for i, column in enumerate(columns):
        np.testing.assert_allclose(column, stats[:, i], atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_groups_by_hand(backend):
    accuracy = torch.tensor([0, 0, 0, 1, 0, 1, 1, 1, 1, 0.3, 0.3, 0.3], dtype=torch.float64)
    out = advantages(backend, accuracy, torch.tensor([0, 3, 5, 8, 9, 9, 12]))
    assert out.accuracy_mean[[0, 1, 2]].tolist() == [0, 0.5, 1] and out.num_scored.tolist() == [3, 2, 3, 1, 0, 3]
    assert out.accuracy_var[[0, 2, 5]].eq(0).all() and out.accuracy_var[1] == 0.25
    expected = torch.tensor([0.5, -0.5], dtype=torch.float64) / (math.sqrt(0.5) + 1e-4)
    assert torch.allclose(out.advantages[3:5], expected) and out.advantages[[0, 1, 2, 5, 8, 9]].eq(0).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
def test_equal_rewards_have_no_advantage_in_a_narrow_dtype(dtype, backend):
    out = advantages(backend, torch.full((7,), 2.3, dtype=dtype), torch.tensor([0, 7]))
    assert out.advantages.eq(0).all() and out.advantages.dtype == torch.float32 and out.std.eq(0).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scale", ("std", "none"))
def test_groups_of_any_length(scale, backend):
    """Longer than a block of the kernel, exactly one, empty, of one row, and without a scored row."""
    g = torch.Generator().manual_seed(0)
    sizes = [300, 128, 0, 1, 129, 127, 5, 256, 0, 8]
    offsets = torch.tensor([0, *np.cumsum(sizes)])
    rewards, accuracy = (torch.rand(sum(sizes), generator=g, dtype=torch.float64) for _ in range(2))
    rewards[::7], accuracy[3::11] = math.nan, math.nan
    scored = torch.rand(sum(sizes), generator=g) < 0.8
    scored[offsets[6] : offsets[7]] = False
    out = advantages(backend, rewards, offsets, accuracy=accuracy, scored=scored, scale=scale)
    flat = list(zip(rewards.tolist(), accuracy.tolist(), scored.tolist(), strict=True))
    rows, stats = by_hand([flat[a:b] for a, b in itertools.pairwise(offsets)], scale, 1e-4)
    np.testing.assert_allclose(out.advantages, rows, atol=1e-10)
    columns = (out.mean, out.variance, out.std, out.accuracy_mean, out.accuracy_var, out.num_scored)
    for i, column in enumerate(columns):
        np.testing.assert_allclose(column, stats[:, i], atol=1e-12)


@pytest.mark.skipif(find_spec("triton") is None, reason="no triton")
def test_both_backends_agree_in_float32_and_repeat_their_bits():
    g = torch.Generator().manual_seed(0)
    offsets = torch.tensor([0, *np.cumsum([300, 0, 1, 8, 8, 8])])
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        rewards = torch.randint(5, (325,), generator=g).to(dtype) / 4
        first, second, other = (advantages(name, rewards, offsets) for name in ("triton", "triton", "torch"))
        for f in fields(first):
            assert torch.equal(getattr(first, f.name), getattr(second, f.name))
            torch.testing.assert_close(getattr(first, f.name), getattr(other, f.name), rtol=1e-6, atol=1e-6)


@pytest.mark.skipif(find_spec("triton") is None, reason="no triton")
@pytest.mark.parametrize("scale", ("std", "none"))
def test_both_backends_agree_to_four_ulp_in_float64(scale):
    g = torch.Generator().manual_seed(0)
    sizes = torch.randint(0, 17, (200,), generator=g).tolist()
    offsets = torch.tensor([0, *np.cumsum(sizes)])
    rewards, accuracy = (torch.rand(sum(sizes), generator=g, dtype=torch.float64) for _ in range(2))
    accuracy[::3] = 1.0
    rewards[::29], accuracy[5::31] = math.nan, math.nan
    options = {"accuracy": accuracy, "scale": scale, "epsilon": 1e-4}
    mine, other = (advantages(name, rewards, offsets, **options) for name in ("triton", "torch"))
    flat = mine.accuracy_var == 0
    assert flat.any() and torch.equal(flat, other.accuracy_var == 0) and torch.equal(mine.num_scored, other.num_scored)
    for name in ("mean", "variance", "std", "accuracy_mean", "accuracy_var"):
        assert (getattr(mine, name) - getattr(other, name)).abs().max() <= 4 * math.ulp(1.0), name
    largest = other.advantages.abs().max().item()
    assert (mine.advantages - other.advantages).abs().max() <= 4 * math.ulp(largest)


@pytest.mark.skipif(find_spec("triton") is None, reason="no triton")
@pytest.mark.parametrize("offsets", ([0], [0, 0], [0, 0, 0]))
def test_no_rows(offsets):
    out = advantages("triton", torch.zeros(0), torch.tensor(offsets))
    assert len(out.mean) == len(offsets) - 1 and out.num_scored.eq(0).all() and out.mean.eq(0).all()


def test_errors_name_the_fix(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    x, offsets = torch.zeros(4), torch.tensor([0, 4])
    for change, words in (
        (dict(rewards=torch.zeros(4, dtype=torch.int64)), "x.float"),
        (dict(group_offsets=torch.tensor([0, 3])), "rise from 0 to 4"),
        (dict(group_offsets=torch.tensor([0, 5, 4])), "rise from 0 to 4"),
        (dict(group_offsets=torch.tensor([0.0, 4.0])), "int64"),
        (dict(accuracy=torch.zeros(3)), "accuracy has shape"),
        (dict(scored=torch.zeros(4)), r"scored\.bool"),
        (dict(scale="batch"), "'std', 'none'"),
        (dict(epsilon=0.0), "epsilon"),
    ):
        with pytest.raises(ValueError, match=words):
            group_advantages(**(dict(rewards=x, group_offsets=offsets) | change))
    with pytest.raises(RuntimeError, match="backend='auto'"):
        group_advantages(x, offsets, backend="triton")
