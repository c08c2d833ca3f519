"""Metrics of a step against numbers worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from dyme.metrics.columns import RolloutColumns, gather_columns, place_rows, rollout_columns
from dyme.metrics.keys import KEYS, MODES
from dyme.metrics.step_metrics import (
    MAX_KINDS,
    MemorizeLog,
    group_entropy,
    kind_metrics,
    logged_kinds,
    mode_metrics,
    rollout_metrics,
)
from dyme.rewards.compose import Scores, UserScores
from dyme.rollout.types import Rollout
from dyme.selectors.base import GroupStats, Mode, ModeDecision, group_stats, memorize_all
from tests.helpers.runs import undeclared

COLUMNS = ("format", "thinking", "accuracy", "reward", "correct", "scored", "truncated", "length", "stopped", "entropy")
# three groups of three rows: some right, all wrong (one row unscored), one scored row only
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


def table_columns(rows: list[list[float]], rewards: tuple[str, ...] = ()) -> RolloutColumns:
    names = (*COLUMNS, *(f"user/{name}" for name in rewards), *(f"user_failed/{name}" for name in rewards))
    return RolloutColumns(dict(zip(names, torch.tensor(rows, dtype=torch.float64).unbind(1), strict=True)))


def measure(rows: list[list[float]], offsets: list[int]) -> tuple[dict[str, float], GroupStats]:
    columns = table_columns(rows)
    groups = torch.ones(len(offsets) - 1, dtype=torch.bool)
    scored = columns["scored"] > 0.5
    stats = group_stats(
        columns["reward"], columns["correct"], columns["format"], scored, groups, torch.tensor(offsets), "std"
    )
    return rollout_metrics(columns, stats, offsets), stats


def test_columns_are_built_by_name_and_read_by_name_on_all_ranks():
    """Two rollouts as rows 0 and 2 of three; the second rank has as many. Row 1 has no completion."""
    rollouts = [Rollout((1, 2, 3), truncated=True, logprobs=(-1.0, -2.0, -3.0)), Rollout((4,), truncated=False)]
    scores = Scores(*(np.array([i, i + 0.5]) for i in range(1, 6)), np.array([True, False]), {})
    user = UserScores(np.array([[7.0, math.nan], [8.0, 9.0]]), np.array([[False, True], [False, False]]), (1.0, 1.0))
    columns = rollout_columns(rollouts, scores, user, ("short", "a"))
    assert tuple(columns) == (*COLUMNS, "user/short", "user/a", "user_failed/short", "user_failed/a")
    placed = place_rows(columns, [0, 2], 3)
    both = gather_columns(lambda local, counts: torch.cat([local, local]), placed, [3, 3])
    assert tuple(both) == tuple(columns)
    expected = {
        "format": [1, 0, 1.5],
        "thinking": [2, 0, 2.5],
        "accuracy": [3, 0, 3.5],
        "reward": [4, 0, 4.5],
        "correct": [5, 0, 5.5],
        "scored": [1, 0, 0],
        "truncated": [1, 0, 0],
        "length": [3, 0, 1],
        "stopped": [0, 0, 1],
        "entropy": [2, 0, math.nan],
        "user/short": [7, math.nan, 8],
        "user/a": [math.nan, math.nan, 9],
        "user_failed/short": [0, 0, 0],
        "user_failed/a": [1, 0, 0],
    }
    for name, values in expected.items():
        np.testing.assert_array_equal(both[name], values * 2, err_msg=name)


def test_no_rollout_finished_on_this_rank():
    none = np.zeros(0)
    scores, user = Scores(*[none] * 5, none.astype(bool), {}), UserScores(np.zeros((0, 1)), np.zeros((0, 1), bool), ())
    placed = place_rows(rollout_columns([], scores, user, ("a",)), [], 2)
    assert placed["scored"].tolist() == [0, 0] and placed["user/a"].isnan().all()


def test_rollout_metrics():
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


def test_metrics_of_user_rewards():
    """Two rewards on the rows above: one applies to some rows, one fails on a row that stays scored (weight 0)."""
    nan = math.nan
    values = [[1, 4], [nan, 4], [2, nan], [5, 4], [nan, 4], [9, 4], [3, 4], [nan, 4], [nan, 4]]
    failed = [[0, 0], [0, 0], [0, 1], [0, 0], [0, 0], [0, 0], [0, 0], [0, 0], [0, 0]]
    names = ("short", "a")
    rows = [[*row, *own, *bad] for row, own, bad in zip(ROWS, values, failed, strict=True)]
    columns = table_columns(rows, names)
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
    columns = table_columns(rows)
    assert group_entropy(columns, [0, 2, 4, 5]).tolist() == pytest.approx([(10 * 0.3 + 20 * 0.6) / 30, 0.9, 0.0])


def test_any_failed():
    good = [1, 0.5, 1, 2.5, 1, 1, 0, 10, 1, 0.3]
    for row, expected in (
        ([*good, 1.0, 0.0], False),
        ([*good, math.nan, 0.0], False),  # does not apply
        ([*good, math.nan, 1.0], True),
        ([*good[:5], 0, *good[6:], 1.0, 0.0], True),
    ):
        assert table_columns([row], ("f",)).any_failed is expected


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


def test_modes_have_one_name_each():
    assert sorted(MODES) == sorted(mode.name.lower() for mode in Mode)


# --- kinds of question ----------


def test_metrics_by_kind():
    """The groups above are value, yes_no and value; a fourth joins without rollouts, a fifth has no kind."""
    kinds = ["value", "yes_no", "value", "value", ""]
    columns = replace(table_columns(ROWS), kinds=tuple(kind for kind in kinds[:3] for _ in range(3)))
    modes = torch.tensor([Mode.EXPLORE, Mode.MEMORIZE, Mode.SKIP, Mode.MEMORIZE, Mode.JOINT])
    ones = torch.ones(5, dtype=torch.float64)
    decision = ModeDecision(modes, ones, ones, modes)
    expected = {
        "accuracy/value": 2 / 4,
        "rollout/truncated/value": 1 / 6,
        "mode/value/explore_ratio": 1 / 3,
        "mode/value/memorize_ratio": 1 / 3,
        "mode/value/skip_ratio": 1 / 3,
        "mode/value/joint_ratio": 0.0,
        "accuracy/yes_no": 0.0,
        "rollout/truncated/yes_no": 0.0,
        "mode/yes_no/explore_ratio": 0.0,
        "mode/yes_no/memorize_ratio": 1.0,
        "mode/yes_no/skip_ratio": 0.0,
        "mode/yes_no/joint_ratio": 0.0,
    }
    logged = logged_kinds(["count", *kinds])
    assert logged == ("count", "value", "yes_no")
    got = kind_metrics(logged, kinds, decision, columns)  # nothing of a kind that the step did not draw
    assert got == pytest.approx(expected) and not undeclared(got)
    without = kind_metrics(logged, kinds, decision, RolloutColumns())
    assert without == {key: value for key, value in got.items() if key.startswith("mode/")}


def test_a_kind_whose_rollouts_are_unscored_lacks_an_accuracy():
    rows = [[0, 0, math.nan, math.nan, math.nan, 0, 0, 4, 1, 1], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0]]
    columns, ones = replace(table_columns(rows), kinds=("a", "b")), torch.ones(2, dtype=torch.float64)
    got = kind_metrics(("a", "b"), ("a", "b"), ModeDecision(ones.long(), ones, ones, ones.long()), columns)
    assert {key for key in got if not key.startswith("mode/")} == {"rollout/truncated/a"}


def test_many_kinds_are_not_logged():
    names = [f"kind {i}" for i in range(MAX_KINDS)]
    assert logged_kinds(["", *names]) == tuple(sorted(names))
    assert logged_kinds(["x", *names]) == ()


# --- keys ----------


def test_keys_match_what_they_declare():
    declared = [
        "mode/explore_ratio",
        "mode/a, b/c/skip_ratio",
        "reward/user/my own_mean",
        "time_share/update",
        "accuracy/x",
    ]
    assert not undeclared(declared)
    strange = ["accuracy/", "mode/wait_ratio", "reward/{total,format}_mean", "rollout/cut", "xlr"]
    assert undeclared([*strange, *declared, *strange]) == strange
    assert len({key.pattern for key in KEYS}) == len(KEYS) and all(key.meaning and key.reduction for key in KEYS)


# --- memorize log ----------


def visit(log: MemorizeLog, outcome: dict[str, bool], memorized: set[str]) -> dict[str, float]:
    """Records of a step with whether anybody was right, and which of them memorize."""
    rows = [[1, 0, int(right), int(right), int(right), 1, 0, 1, 1, 1] for right in outcome.values() for _ in range(2)]
    _, stats = measure(rows, list(range(0, len(rows) + 1, 2)))
    ones = torch.ones(len(outcome), dtype=torch.float64)
    mode = torch.tensor([int(Mode.MEMORIZE if i in memorized else Mode.EXPLORE) for i in outcome])
    return log.metrics(list(outcome), stats, ModeDecision(mode, ones, ones, mode))


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
    assert log.metrics(["a", "b"], None, decision) == {"memorize/repeat_count": 0.0}
    assert log.metrics(["a", "b"], None, decision) == {"memorize/repeat_count": 1.0}


def test_records_that_join_a_step_are_memorized_without_rollouts():
    log = MemorizeLog()
    visit(log, {"a": False, "b": False}, {"b"})
    _, stats = measure([[0, 0, 0, 0, 0, 1, 0, 1, 1, 1]] * 2, [0, 2])
    mode, ones = torch.tensor([Mode.SKIP, Mode.MEMORIZE]), torch.ones(2, dtype=torch.float64)
    decision = ModeDecision(mode, ones, ones, mode, extra_records=(1,))
    got = log.metrics(["a", "b"], stats, decision)
    assert got["memorize/repeat_count"] == 1.0 and math.isnan(got["memorize/flip_rate"])
    assert log.pending == {"b"}


def test_state_of_the_log():
    log, other = MemorizeLog(), MemorizeLog()
    visit(log, {"a": False, "b": False}, {"a", "b"})
    other.load_state_dict(log.state_dict())
    visit(log, {"a": False}, {"a"})  # does not reach the copy
    assert other.times == {"a": 1, "b": 1} and other.pending == {"a", "b"}
    assert visit(other, {"a": True}, set())["memorize/flip_rate"] == 1.0
