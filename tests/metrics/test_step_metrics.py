"""Signals of a step against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from dyme.metrics.step_metrics import (
    COLUMNS,
    MemorizeLog,
    any_failed,
    column_names,
    group_entropy,
    mode_metrics,
    rollout_metrics,
    table_columns,
)
from dyme.selectors.base import GroupStats, Mode, ModeDecision, group_stats, memorize_all

# three groups of three rows: some right, all wrong (one row unscored), one scored row only
#        format thinking accuracy reward correct scored truncated length stopped entropy
ROWS = [
    [1, 0.5, 1, 2.5, 1, 1, 0, 10, 1, 0.3],
    [1, 0.0, 0, 1.0, 0, 1, 0, 20, 1, 0.6],
    [0, 0.1, 1, 1.1, 0, 1, 1, 30, 0, 0.9],
    [0, 0.0, 0, 0.0, 0, 1, 0, 5, 1, 1],
    [0, 0.0, 0, 0.0, 0, 1, 0, 5, 1, 1],
    [1, 0.9, math.nan, math.nan, math.nan, 0, 0, 5, 1, 1],
    [1, 1.0, 1, 3.0, 1, 1, 0, 5, 1, 1],
    [0, 0.0, math.nan, math.nan, math.nan, 0, 0, 5, 1, 1],
    [0, 0.0, math.nan, math.nan, math.nan, 0, 0, 5, 1, 1],
]
OFFSETS = [0, 3, 6, 9]


def measure(rows: list[list[float]], offsets: list[int]) -> tuple[dict[str, float], GroupStats]:
    columns = table_columns(torch.tensor(rows, dtype=torch.float64))
    groups = torch.ones(len(offsets) - 1, dtype=torch.bool)
    scored = columns["scored"] > 0.5
    stats = group_stats(
        columns["reward"], columns["correct"], columns["format"], scored, groups, torch.tensor(offsets), "std"
    )
    return rollout_metrics(columns, stats, offsets), stats


def test_columns():
    columns = table_columns(torch.tensor(ROWS, dtype=torch.float64))
    assert tuple(columns) == COLUMNS and columns["length"].tolist() == [r[7] for r in ROWS]


def test_rollout_signals():
    got, _ = measure(ROWS, OFFSETS)
    expected = {
        "accuracy": 2 / 6,  # right answers in a valid format, over scored rows
        "format_rate": 4 / 9,
        "rollout/length_mean": 10.0,
        "rollout/truncated": 1 / 9,
        "rollout/eos": 8 / 9,
        "rollout/unscored": 3 / 9,
        "rollout/tokens": 90.0,
        "rollout/entropy": (10 * 0.3 + 20 * 0.6 + 30 * 0.9 + 6 * 5) / 90,  # over tokens
        "reward/total_mean": (2.5 + 1.0 + 1.1 + 3.0) / 6,
        "reward/accuracy_mean": 3 / 6,
        # groups with two scored rows: 2.5, 1.0, 1.1 and 0, 0
        "reward/total_std_within": torch.tensor([2.5, 1.0, 1.1]).std().item() / 2,
        "reward/total_std_between": torch.tensor([4.6 / 3, 0.0]).std().item(),
        "reward/format_std_within": torch.tensor([1.0, 1.0, 0.0]).std().item() / 2,
        "collapse/all_wrong": 0.5,
        "collapse/all_right": 0.0,
        "collapse/zero_std_accuracy": 0.5,
        "collapse/zero_std_reward": 0.5,
        "collapse/shaped_only": 0.0,
    }
    assert {k: got[k] for k in expected} == pytest.approx(expected)
    assert not any(math.isnan(v) for v in got.values())


def test_signals_of_user_rewards():
    """Two rewards on the rows above: one applies to some rows, one fails on a row that stays scored (weight 0)."""
    nan = math.nan
    values = [[1, 4], [nan, 4], [2, nan], [5, 4], [nan, 4], [9, 4], [3, 4], [nan, 4], [nan, 4]]
    failed = [[0, 0], [0, 0], [0, 1], [0, 0], [0, 0], [0, 0], [0, 0], [0, 0], [0, 0]]
    names = ("short", "a")
    rows = [[*row, *own, *bad] for row, own, bad in zip(ROWS, values, failed, strict=True)]
    columns = table_columns(torch.tensor(rows, dtype=torch.float64), names)
    assert tuple(columns) == column_names(names) == (
        *COLUMNS, "user/short", "user/a", "user_failed/short", "user_failed/a",
    )  # fmt: skip
    _, stats = measure(ROWS, OFFSETS)
    got = rollout_metrics(columns, stats, OFFSETS)
    expected = {
        "reward/user/short_mean": (1 + 2 + 5 + 3) / 4,  # scored rows to which it applies; the 9 is of an unscored one
        "reward/user/short_std_within": torch.tensor([1.0, 2.0]).std().item(),  # the only group with two of them
        "reward/user/short_unscored": 0.0,
        "reward/user/a_mean": 4.0,
        "reward/user/a_std_within": 0.0,
        "reward/user/a_std_between": 0.0,
        "reward/user/a_unscored": 1 / 9,
    }
    assert {k: got[k] for k in expected} == pytest.approx(expected)
    assert math.isnan(got["reward/user/short_std_between"])
    plain = measure(ROWS, OFFSETS)[0]
    assert {k: got[k] for k in plain} == plain  # the others are as without them


def test_entropy_of_groups():
    """Over the tokens of the rollouts; rows without completion do not count, a group without any has 0."""
    rows = [*ROWS[:3], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0, 0, 0, math.nan]]
    columns = table_columns(torch.tensor(rows, dtype=torch.float64))
    assert group_entropy(columns, [0, 2, 4, 5]).tolist() == pytest.approx([(10 * 0.3 + 20 * 0.6) / 30, 0.9, 0.0])


def test_any_failed():
    good = [1, 0.5, 1, 2.5, 1, 1, 0, 10, 1, 0.3]
    for row, expected in (
        ([*good, 1.0, 0.0], False),
        ([*good, math.nan, 0.0], False),  # does not apply
        ([*good, math.nan, 1.0], True),
        ([*good[:5], 0, *good[6:], 1.0, 0.0], True),
    ):
        assert any_failed(table_columns(torch.tensor([row], dtype=torch.float64), ["f"])) is expected


def test_collapse_without_and_with_shaping():
    wrong = [[0, 0.0, 0, 0.0, 0, 1, 0, 1, 1, 1], [0, 0.3, 0, 0.3, 0, 1, 0, 1, 1, 1]]  # wrong, but the rewards differ
    right = [[1, 1.0, 1, 3.0, 1, 1, 0, 1, 1, 1]] * 2
    got, _ = measure(wrong + right, [0, 2, 4])
    names = ("all_wrong", "all_right", "zero_std_accuracy", "zero_std_reward", "shaped_only")
    assert [got[f"collapse/{name}"] for name in names] == [0.5, 0.5, 1.0, 0.5, 0.5]


def test_nothing_scored_is_nan_not_an_error():
    rows = [[0, 0, math.nan, math.nan, math.nan, 0, 0, 4, 1, math.nan]] * 4
    got, _ = measure(rows, [0, 2, 4])
    assert "rollout/entropy" not in got  # engine hf does not tell
    assert (
        math.isnan(got["accuracy"]) and math.isnan(got["collapse/all_wrong"]) and math.isnan(got["reward/total_mean"])
    )
    assert got["rollout/unscored"] == 1.0 and got["rollout/tokens"] == 16.0


def test_mode_shares_add_up():
    ones = torch.ones(4, dtype=torch.float64)
    modes = torch.tensor([Mode.EXPLORE, Mode.MEMORIZE, Mode.MEMORIZE, Mode.SKIP])
    shares = mode_metrics(ModeDecision(modes, ones, ones, modes))
    assert shares == {
        "mode/skip_ratio": 0.25,
        "mode/explore_ratio": 0.25,
        "mode/memorize_ratio": 0.5,
        "mode/joint_ratio": 0.0,
    }


# --- memorize log ----------


def visit(log: MemorizeLog, outcome: dict[str, bool], memorized: set[str]) -> dict[str, float]:
    """Records of a step with whether anybody was right, and which of them memorize."""
    rows = [[1, 0, int(right), int(right), int(right), 1, 0, 1, 1, 1] for right in outcome.values() for _ in range(2)]
    _, stats = measure(rows, list(range(0, len(rows) + 1, 2)))
    ones = torch.ones(len(outcome), dtype=torch.float64)
    mode = torch.tensor([int(Mode.MEMORIZE if i in memorized else Mode.EXPLORE) for i in outcome])
    return log.signals(list(outcome), stats, ModeDecision(mode, ones, ones, mode))


def test_repeat_count_and_flip_rate():
    log = MemorizeLog()
    first = visit(log, {"a": False, "b": False, "c": True}, {"a", "b"})
    assert math.isnan(first["memorize/flip_rate"]) and first["memorize/repeat_count"] == 0.0
    second = visit(log, {"a": False, "d": True}, {"a"})  # a again, still wrong
    assert second == {"memorize/flip_rate": 0.0, "memorize/repeat_count": 1.0}
    third = visit(log, {"a": True, "b": True, "c": True}, set())  # both are solved now
    assert third["memorize/flip_rate"] == 1.0 and math.isnan(third["memorize/repeat_count"])
    assert math.isnan(visit(log, {"a": True}, set())["memorize/flip_rate"])  # counted once


def test_without_rollouts_only_repeats_are_known():
    log = MemorizeLog()
    decision = memorize_all(torch.tensor([True, False]))
    assert log.signals(["a", "b"], None, decision) == {"memorize/repeat_count": 0.0}
    assert log.signals(["a", "b"], None, decision) == {"memorize/repeat_count": 1.0}


def test_records_that_join_a_step_are_memorized_without_rollouts():
    log = MemorizeLog()
    visit(log, {"a": False, "b": False}, {"b"})
    _, stats = measure([[0, 0, 0, 0, 0, 1, 0, 1, 1, 1]] * 2, [0, 2])
    mode, ones = torch.tensor([Mode.SKIP, Mode.MEMORIZE]), torch.ones(2, dtype=torch.float64)
    decision = ModeDecision(mode, ones, ones, mode, extra_records=(1,))
    got = log.signals(["a", "b"], stats, decision)
    assert got["memorize/repeat_count"] == 1.0 and math.isnan(got["memorize/flip_rate"])
    assert log.pending == {"b"}


def test_state_of_the_log():
    log, other = MemorizeLog(), MemorizeLog()
    visit(log, {"a": False, "b": False}, {"a", "b"})
    other.load_state_dict(log.state_dict())
    visit(log, {"a": False}, {"a"})  # does not reach the copy
    assert other.times == {"a": 1, "b": 1} and other.pending == {"a", "b"}
    assert visit(other, {"a": True}, set())["memorize/flip_rate"] == 1.0
