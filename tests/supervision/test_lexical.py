"""The lexical thinking checker against hand-computed F1 scores."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dyme.data import ChartsSource, load_records
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


CHART = record(hint="well i see red 4 maybe blue 3 probably red", facts="red 4, blue 2, green 7")


@pytest.mark.parametrize(
    ("thinking", "contradicted"),
    [
        ("red 4, blue 2, green 7", 0),
        ("red 4, blue 3, green 7", 1 / 3),  # the hint misreads blue too, so the 3 costs no F1
        ("red 4, blue 7", 1 / 2),  # 7 is the number of another mark
        ("red 2, blue 4", 1),
        ("red 4 maybe red 4 maybe red 4, blue 7", 1 / 2),  # saying the right one again thins nothing out
        ("red 4 red 4 blue 2 green 7", 0),
        ("red 1, red 2, red 3, red 4, red 5", 4 / 5),  # nor does listing everything help
        ("largest is green", 0),
        ("4 + 2 = 6", 0),
        ("", 0),
    ],
)
@pytest.mark.parametrize("penalty", [0.0, 0.4, 1.0])
def test_contradicted_readings_cost_their_share(thinking, contradicted, penalty):
    without = thinking_score(thinking, CHART)
    expected = pytest.approx(without * (1 - penalty * contradicted), abs=1e-12)
    assert thinking_score(thinking, CHART, penalty) == expected


def test_the_penalty_tells_a_misread_trace_from_a_right_one():
    """A low trace of the generator whose misreading gives a number that another mark has: the sets are the same."""
    right, wrong = "red 4, blue 2, green 7", "red 4, blue 7, green 7, 2"
    item = record(facts="red 4, blue 2, green 7")
    assert thinking_score(right, item) == thinking_score(wrong, item) == 1.0
    assert thinking_score(right, item, 1.0) == 1.0 and thinking_score(wrong, item, 1.0) == pytest.approx(2 / 3)


def test_only_facts_can_contradict():
    assert thinking_score("red 5", record(hint="red 4"), 1.0) == thinking_score("red 5", record(hint="red 4"))


@pytest.mark.parametrize("wrong", [0.0, 1.0])
def test_traces_without_contradicted_readings_keep_their_score(wrong):
    source = ChartsSource(count=80, trace="low", wrong_reading_probability=wrong)
    pairs = [(thinking_score(r.hint, r), thinking_score(r.hint, r, 1.0)) for r in load_records(source, 0.0)]
    assert all(after < before if wrong else after == before for before, after in pairs)
