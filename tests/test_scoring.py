"""Scoring beside the rollout: the same scores as afterwards, and begun before the last group is decoded."""

from __future__ import annotations

import math
import threading
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dyme import stages
from dyme.config import RunConfig, load_config
from dyme.data import Record
from dyme.rewards.calls import Failures, UserRewards
from dyme.rewards.compose import Checked, score
from dyme.rewards.user import load_rewards
from dyme.rollout.types import Rollout
from dyme.sampler import StepBatch
from dyme.scoring import Scorer, Scoring
from dyme.selectors import make_selector
from dyme.selectors.base import Mode, group_stats
from dyme.settings.selector import SelectorConfig
from dyme.supervision.lexical import lexical_checker
from dyme.supervision.supervisor import Supervisor
from tests.helpers.runs import write_config

RECORDS = [
    Record("r0", "How many?", ("4",), hint="The red bar shows 4."),
    Record("r1", "How many?", ("7",), hint="The blue bar shows 7."),
    Record("r2", "How many?", ("9",), hint="The green bar shows 9."),
]
SAID = ["red bar 4. Answer: 4", "red Answer: 5", "Answer: 4", "blue 7 Answer: 7", "nothing", "Answer: 1", "Answer: 9"]
ROWS = StepBatch((0, 1, 2), 3, (0, 7, 9), 0.1, step=5)  # the last group goes over to rank 1 after its first row


class Family:
    def decode(self, tokens: tuple[int, ...]) -> str:
        return SAID[tokens[0]]


def rollout(row: int) -> Rollout:
    return Rollout((row, 0), truncated=row == 5)


def scorer_of(cfg: RunConfig) -> Scorer:
    supervisor = Supervisor(
        cfg.supervision, cfg.judge, Path(cfg.run.dir), rank=0, flag=cfg.prompt.answer_flag, say=print
    )
    rewards = UserRewards(load_rewards(cfg.reward.user))
    return Scorer(cfg, Family(), rewards, supervisor, Failures(), lambda track: nullcontext())  # type: ignore[arg-type]


@pytest.fixture
def scorer(tmp_path):
    own = tmp_path / "own.py"
    own.write_text(
        "calls = []\n"
        "def each(completions, **columns):\n"
        "    calls.append(list(completions))\n"
        "    return [len(text) for text in completions]\n"
        "def whole(completions, **columns):\n"
        "    return [len(completions)] * len(completions)\n"
        "def bad(id, **columns):\n"
        "    if 'r1' in id: raise ValueError('no')\n"
        "    return [1.0] * len(id)\n"
    )
    user = [{"function": f"{own}:{name}", "per": per} for name, per in (("whole", "step"), ("each", "group"))]
    user.append({"function": f"{own}:bad", "per": "group", "weight": 0.5})
    return scorer_of(load_config(write_config(tmp_path, reward={"user": user})))


def decoded(scorer, order):
    scoring = Scoring(scorer, RECORDS, ROWS)
    scoring.expect(range(7))
    for row in order:
        scoring.finished(row, rollout(row))
    return scoring


@pytest.mark.parametrize("order", [range(7), reversed(range(7)), (3, 0, 6, 4, 1, 5, 2)])
def test_scores_do_not_depend_on_who_finishes_first(scorer, order):
    said: list[str] = []
    rows, scores, user = decoded(scorer, order).result()
    assert rows == list(range(7))
    after = score(
        SAID,
        [RECORDS[row // 3] for row in rows],
        truncated=[row == 5 for row in rows],
        config=scorer.cfg.reward,
        flag=scorer.cfg.prompt.answer_flag,
        checker=lexical_checker(scorer.cfg.supervision),
    )
    for name in ("format", "thinking", "accuracy", "correct"):
        np.testing.assert_array_equal(getattr(scores, name), getattr(after, name))
    lengths = [len(text) for text in SAID]
    failed = [3 <= row < 6 for row in rows]
    np.testing.assert_array_equal(user.values[:, 0], [7] * 7)
    np.testing.assert_array_equal(user.values[:, 1], lengths)
    np.testing.assert_array_equal(user.values[:, 2], [math.nan if each else 1.0 for each in failed])
    np.testing.assert_array_equal(user.failed[:, 2], failed)
    np.testing.assert_array_equal(scores.scored, ~np.array(failed))
    expected = after.reward + 7 + lengths + 0.5
    np.testing.assert_allclose(scores.reward, np.where(failed, math.nan, expected))
    scorer.failures.share(lambda mine: [mine], said.append)
    assert scorer.failures.counts == {"bad: ValueError": 3} and "ValueError: no (line 8)" in said[0]
    calls = scorer.user_rewards.rewards[1].function.__globals__["calls"]
    assert sorted(calls) == sorted([SAID[:3], SAID[3:6], SAID[6:]])


def test_a_group_is_scored_while_others_still_decode(scorer, monkeypatch):
    decoded(scorer, range(7)).result()  # a step that shows that the functions are harmless
    asked = threading.Event()
    scoring = Scoring(scorer, RECORDS, ROWS)
    scoring.expect(range(7))
    original = scorer.user_rewards.start

    def start(columns, pictures, rows, per):
        asked.set()
        return original(columns, pictures, rows, per)

    monkeypatch.setattr(scorer.user_rewards, "start", start)
    scoring.finished(0, rollout(0))
    scoring.finished(1, rollout(1))
    assert not asked.wait(0.05)
    scoring.finished(2, rollout(2))
    assert asked.wait(10)
    assert len(scoring.rollouts) == 3  # nobody has finished since


def test_the_table_leaves_rows_without_completion_unscored(scorer):
    scoring = Scoring(scorer, RECORDS, ROWS)
    scoring.expect((0, 1, 2, 6))  # the picture of r1 could not be decoded
    for row in (0, 1, 2, 6):
        scoring.finished(row, rollout(row))
    columns = {name: column.tolist() for name, column in stages.score(ROWS, 0, scoring).items()}
    assert {len(column) for column in columns.values()} == {7}
    titles = scorer.user_rewards.titles
    assert {f"user{part}/{title}" for part in ("", "_failed") for title in titles} <= set(columns)
    assert columns["scored"] == [1, 1, 1, 0, 0, 0, 1] and columns["length"] == [2, 2, 2, 0, 0, 0, 2]
    assert columns["user/whole"][:3] == [4, 4, 4] and all(map(math.isnan, columns["user/whole"][3:6]))


def test_a_step_without_completions(scorer):
    scoring = Scoring(scorer, RECORDS, ROWS)
    scoring.expect(())
    rows, scores, user = scoring.result()
    assert rows == [] and len(scores.reward) == 0 and user.values.shape == (0, 3)


def test_what_breaks_in_the_thread_ends_the_step(scorer, monkeypatch):
    monkeypatch.setattr(scorer.family, "decode", lambda tokens: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        decoded(scorer, range(7)).result()


@pytest.mark.parametrize(
    ("selector", "s", "fate"),
    [
        ("variance", (0.0, 0.0, 0.0), "wrong"),
        ("variance", (1.0, 1.0, 1.0), "right"),
        ("variance", (0.0, 1.0, 0.0), "open"),
        ("variance", (0.0, 0.3, 0.0), "open"),  # nobody is right, yet the answers differ: it explores
        ("variance", (1.0, 0.6, 1.0), "open"),
        ("variance", (0.0, math.nan, 0.0), "open"),
        ("variance", (1.0, 1.0), "open"),  # the rest of the group is on another rank
        ("any_correct", (0.0, 0.0, 0.0), "wrong"),
        ("accuracy_gate", (0.0, 0.0, 0.0), "wrong"),
        ("buffered", (1.0, 1.0, 1.0), "right"),
        ("always_explore", (1.0, 1.0, 1.0), "open"),  # here the thinking is all that tells them apart
        ("reward_threshold", (0.0, 0.0, 0.0), "open"),
        ("annealed", (1.0, 1.0, 1.0), "open"),
    ],
)
def test_the_judge_is_spared_only_where_no_rollout_can_train(scorer, selector, s, fate):
    """And the selector agrees: a group whose fate is known explores under no thinking reward."""
    scorer = replace(scorer, cfg=scorer.cfg.model_copy(update={"selector": SelectorConfig(name=selector)}))
    checked = Checked(np.array([[1.0, 0.0, each] for each in s]), (), {})
    assert Scoring(scorer, RECORDS, ROWS)._fate(checked) == fate
    if fate != "open":
        correct, offsets = torch.tensor(s), torch.tensor([0, len(s)])
        for reward in ([0.0, 1.0, 2.0], [0.0, 0.0, 0.0]):
            rewards = torch.tensor(reward, dtype=torch.float64)
            every = torch.ones(3, dtype=torch.bool)
            stats = group_stats(rewards, correct.double(), every.double(), every, every[:1], offsets, "std")
            stats = replace(stats, records=(0,))
            mode = make_selector(scorer.cfg.selector).select(stats, 0.5).mode[0]
            assert mode in (Mode.SKIP, Mode.MEMORIZE)


def test_every_group_is_open_where_the_method_has_no_selector(scorer):
    scorer = replace(scorer, cfg=scorer.cfg.model_copy(update={"method": "grpo"}))
    assert Scoring(scorer, RECORDS, ROWS)._fate(Checked(np.ones((3, 3)), (), {})) == "open"
