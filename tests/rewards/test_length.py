"""The dynamic length reward on lengths worked out by hand."""

from __future__ import annotations

import pytest
import torch

from dyme.rewards.length import add_length_reward, length_rewards


def column(values: list[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_wrong_rows_against_the_mean_of_the_right_ones():
    """Right rows of 8 and 12 tokens, L* = 10; cos of 0, pi/2, pi, 3 pi/2, 2 pi is 1, 0, -1, 0, 1."""
    lengths = column([8, 12, 0, 5, 10, 15, 20, 45])
    correct = column([1, 1, 0, 0, 0, 0, 0, 0.5])
    scored = torch.ones(8, dtype=torch.bool)
    expected = [0, 0, -1, -0.5, 0, -0.5, -1, -1]
    assert length_rewards(lengths, correct, scored, [0, 8]).tolist() == pytest.approx(expected)


def test_groups_stand_for_themselves():
    """No right row: nothing. An unscored row neither sets the mean nor gets a reward."""
    nan = float("nan")
    lengths = column([4, 9, 30, 10, 5, 10, 20])
    correct = column([0, 0, 1, nan, 0, 1, 0])
    scored = torch.tensor([1, 1, 0, 0, 1, 1, 1], dtype=torch.bool)
    got = length_rewards(lengths, correct, scored, [0, 2, 7])
    assert got.tolist() == pytest.approx([0, 0, 0, 0, -0.5, 0, -1])


def test_it_adds_to_the_reward():
    """Row 2 has an invalid format: with require_format its R stays 0."""
    table = {
        "length": column([10, 5, 20]),
        "correct": column([1, 0, 0]),
        "scored": column([1, 1, 1]),
        "format": column([1, 1, 0]),
        "reward": column([3, 1, 0]),
    }
    got = add_length_reward(table, 0.5, [0, 3], require_format=False)
    assert got["reward"].tolist() == pytest.approx([3, 0.75, -0.5])
    assert got["length_reward"].tolist() == pytest.approx([0, -0.5, -1])
    got = add_length_reward(table, 0.5, [0, 3], require_format=True)
    assert got["reward"].tolist() == pytest.approx([3, 0.75, 0])
    assert table["reward"].tolist() == [3, 1, 0]
