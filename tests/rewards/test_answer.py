"""Splitting completions at the answer flag."""

import time

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


@pytest.mark.parametrize(
    ("text", "expected", "valid"),
    [
        # markdown
        ("so **Answer**: 4", Completion("so", "4", 1), 1),
        ("so __answer__: *4*", Completion("so", "4", 1), 1),
        ("so\n### Answer: 4", Completion("so", "4", 1), 1),
        ("so\nAnswer:\n## 4", Completion("so", "4", 1), 1),
        ("so Answer:\n```\n4\n```", Completion("so", "4", 1), 1),
        ("in C#\nAnswer: 4", Completion("in C#", "4", 1), 1),
        ("so Answer: #4", Completion("so", "#4", 1), 1),
        # LaTeX
        (r"so Answer: \boxed{4}", Completion("so", "4", 1), 1),
        (r"so Answer: $\boxed{\text{B}}$.", Completion("so", "B", 1), 1),
        (r"so Answer: it is \boxed{\frac{1}{2}}!", Completion("so", r"\frac{1}{2}", 1), 1),
        (r"so Answer: \boxed{4} = \boxed{4}", Completion("so", "4", 1), 1),
        (r"so Answer: \boxed{\boxed{4}}", Completion("so", "4", 1), 1),
        ("so Answer: $5$", Completion("so", "5", 1), 1),
        ("so Answer: $5", Completion("so", "$5", 1), 1),
        ("so Answer: $5 and $6", Completion("so", "$5 and $6", 1), 1),
        (r"so Answer: \(x^2\)", Completion("so", "x^2", 1), 1),
        ("so Answer:\n\\[\n5\n\\]", Completion("so", "5", 1), 1),
        # trailing sentences
        ("so Answer: 4. The red bar shows it.", Completion("so", "4", 1), 1),
        ("so Answer: **4**. The red bar shows it.", Completion("so", "4", 1), 1),
        ("so Answer: Yes! The dog is there.", Completion("so", "Yes", 1), 1),
        ("so Answer: 12 %. It is so much.", Completion("so", "12 %", 1), 1),
        ("so Answer: 4. Or 5.", Completion("so", "4. Or 5", 1), 1),
        ("so Answer: B. Dog", Completion("so", "B. Dog", 1), 1),
        ("so Answer: C. The dog is there", Completion("so", "C. The dog is there", 1), 1),
        ("so Answer: C. elegans", Completion("so", "C. elegans", 1), 1),
        ("so Answer: St. Louis is it", Completion("so", "St. Louis is it", 1), 1),
        ("so Answer: U.S. Army has three men", Completion("so", "U.S. Army has three men", 1), 1),
        ("so Answer: No. 5 Chanel is it", Completion("so", "No. 5 Chanel is it", 1), 1),
        ("so Answer: 3.5 The end is near", Completion("so", "3.5 The end is near", 1), 1),
        # guesses
        (r"so \boxed{4}", Completion(r"so \boxed{4}", "4", 0, True), 0),
        (r"\boxed{3} no \boxed{4}", Completion(r"\boxed{3} no \boxed{4}", "4", 0, True), 0),
        (r"so Answer: \boxed{3}, \boxed{4}", Completion("so", "4", 1, True), 0),
        (r"so Answer: 3 or \boxed{4}", Completion("so", "4", 1, True), 0),
        (r"so Answer: \boxed{4", Completion("so", "4", 1, True), 0),
        (r"so \boxed{}", Completion(r"so \boxed{}", None, 0), 0),
        (r"so \boxed", Completion(r"so \boxed", None, 0), 0),
        ("so Answer: A or B", Completion("so", "A or B", 1), 1),
    ],
)
def test_split_tolerates_markup(text, expected, valid):
    assert split_completion(text) == expected
    assert format_score(split_completion(text)) == valid


@pytest.mark.parametrize(
    "unit", ["\\boxed{", "\\boxed{}", "{", "Answer:", "$", ". A b c", "4. The ", "**", "\\text{", "#"]
)
def test_ten_thousand_characters(unit):
    text = unit * (10_000 // len(unit))
    start = time.perf_counter()
    parts = [split_completion(text), split_completion("Answer: " + text)]
    assert time.perf_counter() - start < 2.0
    assert all(part.guessed is False or not format_score(part) for part in parts)


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
