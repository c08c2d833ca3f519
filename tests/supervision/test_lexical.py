"""The lexical thinking checker against hand-computed F1 scores."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dyme.data.record import Record
from dyme.supervision.lexical import Vocabulary, set_f1, thinking_score, vocabulary


def record(hint=None, facts=None):
    return Record(id="r", question="?", answers=("7",), hint=hint, facts=facts)


BARS = record(hint="The red bar shows 7. The blue bar shows 3.")  # words: red bar show blue; numbers: 7 3


@pytest.mark.parametrize(
    ("thinking", "score"),
    [
        ("The red bar shows 7. The blue bar shows 3.", 1.0),
        ("showing BARS, reds and blues: 3 and 7", 1.0),
        ("red red red bar shows blue 7 7 7 3", 1.0),
        ("red bar 7", (2 * 2 / (2 + 4) + 2 * 1 / (1 + 2)) / 2),
        ("red bar shows blue", (1 + 0) / 2),
        ("7 and 3", (0 + 1) / 2),
        ("green line", 0.0),
        ("", 0.0),
    ],
)
def test_hand_computed(thinking, score):
    assert thinking_score(thinking, BARS) == pytest.approx(score, abs=1e-12)


def test_wrong_numbers_cost():
    right = thinking_score("red bar shows 7, blue bar shows 3", BARS)
    half = thinking_score("red bar shows 7, blue bar shows 4", BARS)
    wrong = thinking_score("red bar shows 8, blue bar shows 4", BARS)
    extra = thinking_score("red bar shows 7, blue bar shows 3, 4, 5, 6, 8, 9", BARS)
    assert [right, half, wrong] == [1.0, 0.75, 0.5]
    assert extra == pytest.approx((1 + 2 * 2 / (7 + 2)) / 2)


def test_rambling_costs():
    assert thinking_score("red bar shows 7, blue bar shows 3", BARS) > thinking_score(
        "well let me look closely, red bar shows 7 whatever, blue bar shows 3 or something else entirely", BARS
    )


def test_hint_and_facts_are_one_reference():
    both = record(hint="The red bar shows 7.", facts="blue bar: 3")
    assert thinking_score("red bar shows 7, blue bar 3", both) == 1.0
    assert thinking_score("blue bar 3", record(facts="blue bar: 3")) == 1.0


def test_spellings_of_a_number_agree():
    item = record(hint="It sold 1,200 units, 12% more: three quarters.")
    assert vocabulary("1200 12 percent three").numbers == vocabulary(item.hint).numbers == {"1200", "12", "3"}
    assert vocabulary("-0 1.50 ½").numbers == {"0", "1.5", "0.5"}


def test_without_a_number_in_the_reference_words_decide():
    assert thinking_score("a red bar, 5 of them", record(hint="the red bar")) == 1.0


def test_without_a_word_in_the_reference_numbers_decide():
    assert thinking_score("so 3 + 4 makes 7", record(facts="3 4 7")) == 1.0


@pytest.mark.parametrize("item", [record(), record(hint="", facts="  "), record(hint="so it is the")])
def test_nothing_to_compare_with_is_not_scored(item):
    assert thinking_score("red bar 7", item) is None


def test_steps_and_the_pronoun_one_are_no_numbers():
    assert vocabulary("1. Find the red one\n2) read 9\nStep 3: done") == Vocabulary(
        frozenset({"find", "red", "read", "done"}), frozenset({"9"})
    )


def test_set_f1():
    assert set_f1({"a", "b", "c"}, {"b", "c", "d"}) == pytest.approx(2 / 3)
    assert set_f1(set(), set()) == set_f1({"a"}, set()) == 0.0


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=80), st.text(max_size=80))
def test_any_text_stays_in_range_and_a_copy_is_perfect(thinking, hint):
    item = record(hint=hint)
    score = thinking_score(thinking, item)
    assert score is None or 0.0 <= score <= 1.0
    assert thinking_score(hint, item) in (None, 1.0)


def test_long_thinking_is_quick():
    text = "1. " * 1000 + "abc1" * 2000 + "x" * 10_000
    assert thinking_score(text, BARS) == 0.0
