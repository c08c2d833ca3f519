"""Verifiers that follow the scoring published with a set: MathVista and TabMWP."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dyme.data.record import Record
from dyme.rewards.mathvista import answer_kind, verify_mathvista
from dyme.rewards.options import edit_distance
from dyme.rewards.tabmwp import verify_tabmwp
from dyme.rewards.verifiers import get_verifier

ANIMALS = ("cat", "dog", "bird of prey")


@pytest.mark.parametrize(
    ("answer", "gold", "choices", "accuracy"),
    [
        # whole numbers: decimals are cut off, as published
        ("12", "12", (), 1),
        ("12.0", "12", (), 1),
        ("12.9", "12", (), 1),
        ("-3", "-3", (), 1),
        ("12 cm", "12", (), 1),
        ("1,200", "1200", (), 1),
        ("13", "12", (), 0),
        ("11.9", "12", (), 0),
        ("12 or 13", "12", (), 0),
        ("twelve", "12", (), 1),
        ("", "12", (), 0),
        # numbers of a precision
        ("0.5", "0.5", (), 1),
        ("0.54", "0.5", (), 1),
        ("0.56", "0.5", (), 0),
        ("1.4", "1.40", (), 1),
        ("1.404", "1.40", (), 1),
        ("1.41", "1.40", (), 0),
        ("-0.5", "0.5", (), 0),
        ("half", "0.5", (), 0),
        # lists and text
        ("[1, 2]", "[1,2]", (), 1),
        ("[2, 1]", "[1, 2]", (), 0),
        ("[1, 2, 3]", "[1, 2]", (), 0),
        ("['a', 'b']", "[a, b]", (), 1),
        ("Cat", "cat", (), 1),
        ("cats", "cat", (), 0),
        # options
        ("dog", "dog", ANIMALS, 1),
        ("Dog.", "dog", ANIMALS, 1),
        ("dogs", "dog", ANIMALS, 1),
        ("B", "dog", ANIMALS, 1),
        ("(B) dog", "dog", ANIMALS, 1),
        ("b.", "dog", ANIMALS, 1),
        ("bird", "bird of prey", ANIMALS, 1),
        ("(A)", "dog", ANIMALS, 0),
        ("(A) or (B)", "dog", ANIMALS, 0),
        ("(A) or (B)", "cat", ANIMALS, 0),
        ("Z", "cat", ANIMALS, 0),
        ("", "cat", ANIMALS, 0),
        ("xyz", "cat", ANIMALS, 0),
        ("A*", "A*", ("A", "A*"), 1),
        ("A", "A*", ("A", "A*"), 0),
        ("15", "15", ("7", "15", "15"), 1),
    ],
)
def test_mathvista(answer, gold, choices, accuracy):
    assert verify_mathvista(answer, Record("r", "q", (gold,), choices=choices)) == accuracy


@pytest.mark.parametrize(
    ("gold", "kind"),
    [("12", ("integer", 0)), ("1.40", ("float", 2)), (".5", ("float", 1)), ("[1]", ("list", 0)), ("a", ("text", 0))],
)
def test_the_type_of_a_gold_answer_is_how_it_is_written(gold, kind):
    assert answer_kind(gold) == kind


@pytest.mark.parametrize(
    ("answer", "gold", "unit", "choices", "accuracy"),
    [
        ("18.4", "18.40", "", (), 1),
        ("$18.40", "18.4", "", (), 1),
        ("1,000", "1000", "", (), 1),
        ("1,000 kg", "1000", "kg", (), 1),
        ("1,000 kg", "1000", "", (), 0),
        ("3/4", "0.75", "", (), 1),
        (r"$\frac{16}{95}$", "16/95", "", (), 1),
        ("1/3", "0.333", "", (), 1),
        ("0.3334", "0.333", "", (), 1),
        ("0.334", "0.333", "", (), 0),
        ("−3", "-3", "", (), 1),
        ("3", "-3", "", (), 0),
        ("5.", "5", "", (), 1),
        ("5/0", "5", "", (), 0),
        ("1.2.3", "1.2", "", (), 0),
        ("9" * 5000, "9", "", (), 0),
        ("-0.0001", "0", "", (), 1),
        ("2:25 P.M.", "2:25 P.M.", "", (), 1),
        ("2:25 p.m", "2:25 P.M.", "", (), 1),
        ("2:25 A.M.", "2:25 P.M.", "", (), 0),
        ("", "5", "", (), 0),
        ("kg", "kg", "kg", (), 1),
        ("(B)", "surplus", "", ("shortage", "surplus"), 1),
        ("surplus", "surplus", "", ("shortage", "surplus"), 1),
        ("a surplus of it", "surplus", "", ("shortage", "surplus"), 1),
        ("shortage surplus", "surplus", "", ("shortage", "surplus"), 0),
        ("nothing", "shortage", "", ("shortage", "surplus"), 0),
        ("A or B", "shortage", "", ("shortage", "surplus"), 0),
    ],
)
def test_tabmwp(answer, gold, unit, choices, accuracy):
    question = f"How much is it? (Unit: {unit})" if unit else "How much is it?"
    assert verify_tabmwp(answer, Record("r", question, (gold,), choices=choices)) == accuracy


@pytest.mark.parametrize(("a", "b", "distance"), [("", "", 0), ("a", "", 1), ("kitten", "sitting", 3), ("ab", "ba", 2)])
def test_edit_distance(a, b, distance):
    assert edit_distance(a, b) == edit_distance(b, a) == distance


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.text(max_size=40), st.text(min_size=1, max_size=20), st.lists(st.text(max_size=8), max_size=4))
def test_any_text_gets_a_verdict_and_the_gold_answer_is_right(text, gold, choices):
    for name in ("mathvista", "tabmwp"):
        verifier = get_verifier(name)
        for record in (Record("r", "q", (gold,)), Record("r", "q", (gold,), choices=(*choices, gold))):
            assert verifier(text, record) in (0.0, 1.0)
            assert verifier(gold, record) == 1.0


@pytest.mark.parametrize("unit", ["9", "a ", "(A)", ",", "[", "1/", r"\frac{"])
def test_time_grows_with_length_only(unit):
    text = unit * (20_000 // len(unit))
    start = time.perf_counter()
    for record in (
        Record("r", "q", ("5",)),
        Record("r", "q", ("[1]",)),
        Record("r", "q", ("a" * 99,), choices=("a" * 99, "b")),
    ):
        assert verify_mathvista(text, record) + verify_tabmwp(text, record) in (0.0, 2.0)
    assert time.perf_counter() - start < 2.0
