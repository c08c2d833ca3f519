"""Splitting completions at the answer flag."""

import pytest

from dyme.rewards.answer import Completion, clean_answer, format_score, split_completion


@pytest.mark.parametrize(
    ("text", "expected", "valid"),
    [
        ("I count four. Answer: 4", Completion("I count four.", "4", 1), 1),
        ("Answer: 4", Completion("", "4", 1), 1),
        ("so\nANSWER:  blue.\nBye", Completion("so", "blue", 1), 1),
        ("so\nanswer:\n\n  4\n5", Completion("so", "4", 1), 1),
        ("so **Answer:** 4", Completion("so", "4", 1), 1),
        ("so **Answer: 4**", Completion("so", "4", 1), 1),
        ("so **Answer:**\n**4**", Completion("so", "4", 1), 1),
        ('so Answer: "four".', Completion("so", "four", 1), 1),
        ("no flag here 4", Completion("no flag here 4", None, 0), 0),
        ("", Completion("", None, 0), 0),
        ("so Answer:", Completion("so", "", 1), 0),
        ("so Answer: **.**\n  ", Completion("so", "", 1), 0),
        ("a Answer: 3 b Answer: 4", Completion("a", "4", 2), 0),
        ("a Answer: Answer: 4", Completion("a", "4", 2), 0),
        ("the answer is 4", Completion("the answer is 4", None, 0), 0),
    ],
)
def test_split(text, expected, valid):
    assert split_completion(text) == expected
    assert format_score(split_completion(text)) == valid


def test_thinking_must_be_long_enough():
    parts = split_completion("  12345 \n Answer: 4")
    assert [format_score(parts, n) for n in (0, 5, 6)] == [1.0, 1.0, 0.0]


def test_own_flag():
    assert split_completion("x (so) => 4", "=>") == Completion("x (so)", "4", 1)
    assert split_completion("x Final answer: 4", " FINAL ANSWER: ").answer == "4"
    with pytest.raises(ValueError, match="flag is blank"):
        split_completion("x", "  ")


@pytest.mark.parametrize(
    ("text", "clean"),
    [("**`4`**.", "4"), ("  -5 ", "-5"), (".5", ".5"), ("“no”...", "no"), ("12%", "12%"), ("*.*", "")],
)
def test_clean_answer(text, clean):
    assert clean_answer(text) == clean
