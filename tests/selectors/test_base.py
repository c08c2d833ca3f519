"""The selector table of the design, unscored rows and float rewards included."""

from __future__ import annotations

import pytest
import torch

from dyme.selectors import make_selector
from dyme.selectors.base import GroupStats, Mode, Reason, memorize_all
from dyme.settings.selector import SelectorConfig
from tests.helpers.selection import NAN, E, M, S, stats


def modes(selector: dict, s: GroupStats) -> list[Mode]:
    return [Mode(m) for m in make_selector(SelectorConfig(**selector)).select(s, 0.0).mode.tolist()]


TABLE = [
    ([0, 0, 0, 0], M),  # advantage collapse
    ([1, 0, 0, 0], E),
    ([1, 1, 1, 0], E),
    ([1, 1, 1, 1], S),  # mastered
    ([NAN, 0, 0, 0], M),  # an unscored row leaves every count
    ([NAN, 1, 1, 1], S),
    ([NAN, NAN, 1, 0], E),
    ([NAN, NAN, NAN, 1], S),  # fewer than two scored rows
    ([NAN, NAN, NAN, NAN], S),
    ([0.3, 0.3, 0.3, 0.3], M),  # float accuracy without variance, mean <= 0.5
    ([0.5, 0.5, 0.5, 0.5], M),
    ([0.7, 0.7, 0.7, 0.7], S),
    ([0.3, 0.4, 0.3, 0.3], E),
    ([0.1 + 0.2, 0.3, 0.3, 0.3], M),  # rounding is not variance
    ([0.9, 0.9, 0.9 + 1e-12, 0.9], S),
]


@pytest.mark.parametrize(("s", "mode"), TABLE)
def test_variance(s, mode):
    assert modes({"name": "variance"}, stats(s)) == [mode]


def test_variance_of_many_groups_at_once():
    assert modes({"name": "variance"}, stats(*[s for s, _ in TABLE])) == [m for _, m in TABLE]


def test_variance_threshold():
    s = stats([1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0])  # population variances 3/16, 1/4, 3/16
    assert s.accuracy_var.tolist() == pytest.approx([3 / 16, 1 / 4, 3 / 16])
    assert modes({"name": "variance", "threshold": 0.2}, s) == [M, E, S]


def test_any_correct_is_the_published_rule():
    binary = [s for s, _ in TABLE if set(s) <= {0, 1}]
    s = stats(*binary)
    assert modes({"name": "any_correct"}, s) == modes({"name": "variance"}, s) == modes({"name": "accuracy_gate"}, s)
    assert modes({"name": "any_correct"}, stats([0.3, 0.4, 0.3, 0.3])) == [M]


def test_accuracy_gate_and_reward_threshold():
    s = stats([1, 0, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1], rewards=[[0, 0, 0, 1], [1, 1, 1, 1], [2, 2, 2, 2]])
    assert modes({"name": "accuracy_gate", "gamma": 0.25}, s) == [M, E, S]
    assert modes({"name": "reward_threshold", "threshold": 1.0}, s) == [M, M, E]


def test_always():
    s = stats([0, 0], [1, 1], [NAN, 1])
    assert modes({"name": "always_explore"}, s) == [E, E, S]
    assert modes({"name": "always_memorize"}, s) == [M, M, S]


def test_nothing_to_memorize_is_skipped():
    decision = make_selector(SelectorConfig()).select(stats([0, 0], [0, 0], has_demonstration=[True, False]), 0.0)
    assert decision.mode.tolist() == [M, S]
    assert decision.reason.tolist() == [Reason.COLLAPSE, Reason.NO_DEMONSTRATION]
    assert memorize_all(torch.tensor([True, False])).mode.tolist() == [M, S]


def test_statistics_of_a_group():
    s = stats([1, 0, NAN, 0], rewards=[[3.0, 1.0, NAN, 2.0]])
    assert s.num_scored.tolist() == [3] and s.num_correct.tolist() == [1] and s.num_valid_format.tolist() == [3]
    assert s.reward_mean.item() == pytest.approx(2.0) and s.reward_std.item() == pytest.approx(1.0)
    assert s.advantages.tolist() == pytest.approx([1 / 1.0001, -1 / 1.0001, 0.0, 0.0])


def test_decision_does_not_depend_on_the_order_of_rows():
    rng = torch.Generator().manual_seed(0)
    for _ in range(50):
        s = torch.randint(0, 2, (5, 6), generator=rng).double()
        shuffled = torch.stack([row[torch.randperm(6, generator=rng)] for row in s])
        a, b = (make_selector(SelectorConfig()).select(stats(*x.tolist()), 0.0).mode for x in (s, shuffled))
        assert torch.equal(a, b)


def test_a_foreign_state_is_refused():
    with pytest.raises(ValueError, match=r"selector\.name has changed"):
        make_selector(SelectorConfig()).load_state_dict({"buffer": []})


@pytest.mark.dist
def test_ranks_agree_on_rank_0s_statistics(tmp_path, run_ranks):
    run_ranks(2, "agreement", tmp_path)
    (own, first), (other, second) = (torch.load(tmp_path / f"stats{rank}.pt") for rank in range(2))
    for name, value in own.items():
        if not isinstance(value, torch.Tensor):
            assert first[name] == second[name] == value
            continue
        assert torch.equal(first[name], value) and torch.equal(second[name], value), name
        assert first[name].dtype == second[name].dtype == value.dtype, name
    assert [n for n in own if isinstance(own[n], torch.Tensor) and not torch.equal(own[n], other[n])] == [
        "accuracy_mean", "num_correct", "advantages"
    ]  # fmt: skip
