"""Selectors and methods on numbers worked out by hand."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from importlib import import_module

import pytest
import torch

from dyme.batching.objective import train_sequences
from dyme.methods import memorizes_only
from dyme.selectors import fixed_selector, make_selector, needs_of
from dyme.selectors.base import Mode, ModeDecision, Needs, mode_line, with_extra
from dyme.selectors.joint import mu
from dyme.settings.errors import ConfigError
from dyme.settings.selector import SELECTORS, SelectorConfig
from tests.helpers.selection import NAN, E, M, S, stats

J = Mode.JOINT


def select(s, progress: float, **settings) -> ModeDecision:
    return make_selector(SelectorConfig(**settings)).select(s, progress)


def test_every_name_is_declared_in_its_file():
    """And nothing is declared that no name leads to. Settings refuse other names."""
    declared = {
        (name, file) for file in set(SELECTORS.values()) for name in import_module(f"dyme.selectors.{file}").SELECTORS
    }
    assert declared == set(SELECTORS.items())
    with pytest.raises(ValueError, match="Input should be 'variance', 'any_correct'"):
        SelectorConfig(name="varience")


def test_what_selectors_need():
    needs = {name: needs_of("dyme", SelectorConfig.model_construct(name=name)) for name in SELECTORS}
    assert [name for name in SELECTORS if needs[name].logprobs] == ["entropy_weighted"]
    spared = [name for name in SELECTORS if not (needs[name].trains_solved or needs[name].trains_unsolved)]
    assert spared == ["variance", "any_correct", "accuracy_gate", "buffered"]
    assert needs_of("grpo", SelectorConfig(name="entropy_weighted")) == Needs()


@pytest.mark.parametrize(("progress", "weight"), [(0.0, 1.0), (1 / 3, 0.75), (0.5, 0.5), (2 / 3, 0.25)])
def test_annealed(progress, weight):
    decision = select(stats([0, 0], [1, 0], [1, 1]), progress, name="annealed")
    assert decision.mode.tolist() == [J, J, J]
    assert decision.rl_weight.tolist() == [1, 1, 1]
    assert decision.sft_weight.tolist() == pytest.approx([weight] * 3)
    assert decision.token_shaping == "none"


def test_a_joint_group_without_one_part_does_the_other():
    s = stats([0, 1], [NAN, 1], [0, 1], has_demonstration=[True, True, False])
    assert select(s, 0.5, name="annealed").mode.tolist() == [J, S, E]
    assert select(s, 1.0, name="annealed").mode.tolist() == [E, S, E]  # the SFT weight is exactly 0
    s = stats([0, 1], has_demonstration=[True])
    assert select(s, 0.0, name="scheduled", peak=1.0).mode.tolist() == [M]  # mu = 1 leaves nothing to explore
    assert select(s, 0.0, name="scheduled", warmup=0.5, decay=0.5).mode.tolist() == [E]  # mu = 0


def test_rows_of_joint_groups():
    """Both rollouts and the reference live, each with its weight; a reference of weight 0 is not even counted."""
    s = stats([0, 1])
    live = train_sequences(select(s, 0.5, name="annealed"), s.advantages, torch.ones(2, dtype=torch.bool), [0, 2])
    assert [(r.completion, r.share) for r in live.trained] == [(0, 1.0), (1, 1.0), (-1, pytest.approx(0.5))]
    live = train_sequences(select(s, 1.0, name="annealed"), s.advantages, torch.ones(2, dtype=torch.bool), [0, 2])
    assert [r.completion for r in live.counted] == [0, 1]


@pytest.mark.parametrize(
    ("progress", "expected"),
    [(0.0, 0.0), (0.05, 0.45), (0.1, 0.9), (0.2, 0.05 + 0.85 * 0.75), (0.25, 0.475), (0.4, 0.05), (0.9, 0.05)],
)
def test_mu_of_chord(progress, expected):
    """Warm-up over 0.1 to 0.9, decay over 0.3 to 0.05: a third of it leaves (1 + cos 60 deg) / 2 = 3/4."""
    assert mu(progress, 0.9, 0.05, 0.1, 0.3) == pytest.approx(expected)


def test_scheduled():
    decision = select(stats([0, 0], [1, 1]), 0.5, name="scheduled", peak=0.8, valley=0.2)
    assert decision.mode.tolist() == [J, J]
    assert decision.sft_weight.tolist() == pytest.approx([0.5, 0.5])
    assert decision.rl_weight.tolist() == pytest.approx([0.5, 0.5])
    assert decision.token_shaping == "p(1-p)"
    assert select(stats([0, 0]), 0.5, name="scheduled", token_shaping="none").token_shaping == "none"


HALF = math.sqrt(0.5)  # cos(pi / 4), of accuracy 1/4 and 3/4


@pytest.mark.parametrize(
    ("progress", "weights"),
    [
        (0.0, [0.25, 1.0, 1.0, HALF, 0.0]),
        (0.5, [0.0, HALF, 1.0, HALF, 0.0]),
        (0.99, [0.0, HALF, 1.0, 1.0, 1.0]),
    ],
)
def test_difficulty_weighted(progress, weights):
    s = stats([0, 0, 0, 0], [1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1])
    decision = select(s, progress, name="difficulty_weighted")
    assert decision.rl_weight.tolist() == pytest.approx(weights)
    assert decision.mode.tolist() == [E if w else S for w in weights]


def test_entropy_weighted():
    """exp(ln 2) = 2 and exp(-ln 2) = 1/2; a group without completions is skipped."""
    entropy = torch.tensor([0.0, math.log(2), math.log(5), 0.0], dtype=torch.float64)
    s = replace(stats([0, 0], [1, 0], [1, 1], [NAN, NAN], has_demonstration=[True, True, False, True]), entropy=entropy)
    decision = select(s, 0.3, name="entropy_weighted")
    assert decision.mode.tolist() == [J, J, E, S]
    assert decision.rl_weight.tolist() == pytest.approx([0.1, 0.2, 0.5, 0.1])
    assert decision.sft_weight.tolist() == pytest.approx([0.5, 0.25, 0.1, 0.5])


def visit(selector, records, *groups, **settings):
    decision = selector.select(replace(stats(*groups, **settings), records=records), 0.0)
    return decision.mode.tolist(), decision.extra_records


def test_buffered():
    """Records of all-wrong groups wait; with two of them the oldest two are memorized in the next step."""
    selector = make_selector(SelectorConfig(name="buffered", buffer_size=2))
    assert visit(selector, (7, 3, 5), [0, 0], [1, 0], [1, 1]) == ([S, E, S], ())
    # unscored, or without a reference: nothing to wait for
    assert visit(selector, (8, 9), [NAN, 0], [0, 0], has_demonstration=[True, False]) == ([S, S], ())
    assert visit(selector, (4, 7, 6), [0, 0], [0, 0], [0, 0]) == ([S, S, S], ())  # 7 waits once
    assert selector.state_dict() == {"waiting": [7, 4, 6]}
    other = make_selector(SelectorConfig(name="buffered", buffer_size=2))
    other.load_state_dict(selector.state_dict())
    for each in (selector, other):
        assert visit(each, (7, 2), [0, 0], [1, 0]) == ([S, E], (7, 4))
        assert each.state_dict() == {"waiting": [6, 7]}  # 7 failed again, with the weights of before
        assert visit(each, (1,), [1, 0]) == ([E], (6, 7))
        assert each.state_dict() == {"waiting": []}


def test_another_selector_does_not_take_the_buffer():
    with pytest.raises(ConfigError, match=r"selector\.name has changed .* \(waiting\): set it back"):
        make_selector(SelectorConfig()).load_state_dict({"waiting": []})
    fresh = make_selector(SelectorConfig(name="buffered"))
    fresh.load_state_dict({})  # of a run that began with a selector without state
    assert fresh.state_dict() == {"waiting": []}


def test_records_that_wait_join_the_decision():
    s = stats([0, 1])
    decision = with_extra(replace(select(s, 0.0), extra_records=(4, 5)), torch.tensor([True, False]))
    assert decision.mode.tolist() == [E, M, S]
    live = train_sequences(decision, s.advantages, torch.ones(2, dtype=torch.bool), [0, 2, 2, 2])
    assert [(r.group, r.completion, r.share) for r in live.trained] == [(0, 0, 1.0), (0, 1, 1.0), (1, -1, 1.0)]


def test_replay(tmp_path):
    """By step and record, whatever the order and the rewards; a group that lacks what its mode needs is skipped."""
    path = tmp_path / "modes.jsonl"
    ones = torch.ones(4, dtype=torch.float64)
    recorded = ModeDecision(torch.tensor([E, M, J, M]), 0.1 * ones, 0.7 * ones, torch.zeros(4), "p(1-p)", (9,))
    line = mode_line(recorded, (5, 3, 8, 9), ("a", "b", "c", "d"))
    path.write_text(json.dumps({"step": 3, **line}) + "\n")
    selector = make_selector(SelectorConfig(name="replay", path=str(path)))
    s = replace(stats([1, 1], [0, 0], [0, 1], has_demonstration=[True, True, False]), records=(8, 5, 3), step=2)
    decision = selector.select(s, 0.5)
    assert decision.mode.tolist() == [J, E, S]
    assert decision.rl_weight.tolist() == [0.1] * 3 and decision.sft_weight.tolist() == [0.7] * 3
    assert decision.token_shaping == "p(1-p)" and decision.extra_records == (9,)
    with pytest.raises(ConfigError, match="has no record number 4"):
        selector.select(replace(s, records=(8, 5, 4)), 0.5)
    with pytest.raises(ConfigError, match="has no step 4"):
        selector.select(replace(s, step=3), 0.5)
    path.write_text('{"step": 1, "loss": 2}\n')
    with pytest.raises(ConfigError, match=r"is not the modes\.jsonl of a run"):
        make_selector(SelectorConfig(name="replay", path=str(path)))
    for wrong in ({"name": "replay"}, {"name": "variance", "path": "x"}):
        with pytest.raises(ValueError, match="set both or neither"):
            SelectorConfig(**wrong)


def test_mixed():
    s = stats([1, 0], [0, 0], [1, 1], [1, 0], has_demonstration=[True, True, False, True])
    assert fixed_selector("mixed").select(s, 0.0).mode.tolist() == [M, E, S, E]


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("sft", "11111111"),
        ("grpo", "00000000"),
        ("dyme", "00000000"),
        ("mixed", "00000000"),
        ("two_stage", "11110000"),
        ("interleaved", "10101010"),
        # S(1..8) = 0.94 1.75 2.44 3 3.44 3.75 3.94 4, rounded 1 2 2 3 3 4 4 4
        ("progressive", "11010100"),
    ],
)
def test_sft_steps_of_a_method(method, expected):
    assert "".join(str(int(memorizes_only(method, step, 8, 0.5))) for step in range(8)) == expected


def test_progressive_spends_half_of_the_steps_on_sft():
    for steps in (1, 2, 3, 10, 101, 1000):
        assert sum(memorizes_only("progressive", t, steps, 0.5) for t in range(steps)) == steps // 2
