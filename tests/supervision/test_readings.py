"""Readings of a trace against the facts: a table of phrases, the generator's own truth, and real facts."""

from __future__ import annotations

import json
import re
from fractions import Fraction

import pytest

from dyme.data import ChartsSource, load_records
from dyme.supervision.readings import (
    Faithfulness,
    contradicted_share,
    facts_table,
    faithfulness,
    find_readings,
    list_facts,
)
from tests.helpers.launching import ROOT

FACTS = "red 4, blue 2, green 7, May 3, 2010: 5"

TRACES = [
    # plainly said
    ("red 4", {"red": 4}),
    ("RED 4.", {"red": 4}),
    ("the red bar shows 5", {"red": 5}),
    ("4 for red", {"red": 4}),
    ("The value of red is 4.", {"red": 4}),
    ("red: 4, blue: 3", {"red": 4, "blue": 3}),
    ("red = 4", {"red": 4}),
    ("red (4)", {"red": 4}),
    ("**red** is **4**", {"red": 4}),
    ("| red | 4 |", {"red": 4}),
    ("red's value is 4", {"red": 4}),
    ("the red one is 4", {"red": 4}),
    ("red, which is 4", {"red": 4}),
    ("green seven", {"green": 7}),
    ("the red bar is at about 4.0 units", {"red": 4}),
    ("the largest is 7, at green", {"green": 7}),
    ("7 is the value of green", {"green": 7}),
    ("red is equal to 4", {"red": 4}),
    ("In 2010 it was 5", {"2010": 5}),
    ("i see May 3 maybe red 4 maybe red 4", {"May": 3, "red": 4}),
    ("1. red 4\n2. blue 3", {"red": 4, "blue": 3}),
    ("Step 2: blue is 2", {"blue": 2}),
    # calculations read what stands right behind its label, and nothing else
    ("red 4 + blue 2 = 6", {"red": 4, "blue": 2}),
    ("the difference between red 4 and blue 2 is 2", {"red": 4, "blue": 2}),
    ("4 + 2 = 6", {}),
    ("red is 4 + 2", {}),
    ("red and blue is 6", {}),
    ("red plus blue is 6", {}),
    ("the sum of red and blue: 6", {}),
    ("red, blue: 4", {}),
    ("2 of red and blue", {}),
    ("over 3: red 4, green 7, so 2", {"red": 4, "green": 7}),
    # comparisons, hedges, negation
    ("green 7 is more than blue 2", {"green": 7, "blue": 2}),
    ("red is 3 more than blue", {}),
    ("red is 2 times blue", {}),
    ("red is above 3", {}),
    ("above 3 for red", {}),
    ("red is not 4", {}),
    ("red is 4 or 5", {}),
    ("red is 4-5", {}),
    # other words and other clauses
    ("reddish 4", {}),
    ("it may be 3", {}),
    ("is it red? 4 it is", {}),
    ("so red. 4", {}),
    ("red is the 2nd", {}),
    ("in 2010.5", {}),
    ("4", {}),
    ("", {}),
]


@pytest.mark.parametrize(("trace", "expected"), TRACES, ids=[trace for trace, _ in TRACES])
def test_readings_of_a_phrase(trace, expected):
    found = {(" ".join(label), value) for label, value in find_readings(trace, facts_table(FACTS))}
    assert found == set(expected.items())


@pytest.mark.parametrize(
    ("facts", "table"),
    [
        ("red 4, blue 2", {"red": {4}, "blue": {2}}),
        ("red four and blue 2", {}),
        ("red 4 and blue 2", {"red": {4}, "blue": {2}}),
        ("The red bar shows 4. The blue bar shows 2%.", {"red": {4}, "blue": {2}}),
        ("Dark Red: 1,200; red: 3", {"dark red": {1200}, "red": {3}}),
        ("2010: 45\nQ1 = 5\nGroup 2: 9", {"2010": {45}, "q1": {5}, "group 2": {9}}),
        ("| red | 4 |\n| red | 5 |", {"red": {4, 5}}),
        ("left angle blunted", {}),
        ("There are 3 squares which overlap", {}),
        ("The first group is [4, 5, '?'].", {}),
        ("box 1: medium yellow square at (40,80)", {}),
        ("The overlapping part between the first and second circle contains the number 14.", {}),
        ("", {}),
    ],
)
def test_table_of_facts(facts, table):
    assert {" ".join(label): set(values) for label, values in facts_table(facts).items()} == table


def test_share_counts_each_reading_once():
    assert faithfulness("red 4 red 4 red 4 blue 9", FACTS) == Faithfulness(0.5, 2)
    assert faithfulness("red 4.0000001", "red 4").share == 1.0
    assert faithfulness("red 4.1", "red 4").share == 0.0
    assert faithfulness("I see bars.", FACTS) == Faithfulness(None, 0)
    assert faithfulness("red 4", None) == Faithfulness(None, 0)
    assert faithfulness("red 4", "a red bar") == Faithfulness(None, 0)


def test_the_examples_of_the_docs():
    page = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
    facts = re.search(r'for the facts "(.+?)"', page)[1]
    rows = re.findall(r"^\| (`.+`) \| (.+) \| (.+) \|$", page.split(f'for the facts "{facts}"')[1], re.MULTILINE)[:4]
    for traces, readings, share in rows:
        for trace in re.findall(r"`([^`]+)`", traces):
            found = sorted(f"{' '.join(label)} {value:g}" for label, value in find_readings(trace, facts_table(facts)))
            assert found == (sorted(readings.split(", ")) if readings != "none" else []), trace
            assert faithfulness(trace, facts).share == (None if share == "none" else float(Fraction(share))), trace
    assert len(rows) == 4


@pytest.mark.parametrize("scale", ["tiny", "full"])
@pytest.mark.parametrize("trace", ["high", "medium", "low"])
def test_right_traces_of_the_generator_are_faithful(scale, trace):
    source = ChartsSource(count=150, scale=scale, trace=trace, wrong_reading_probability=0.0)
    for record in load_records(source, 0.0):
        assert faithfulness(record.hint, record.facts) == Faithfulness(1.0, record.facts.count(",") + 1), record.hint


@pytest.mark.parametrize("scale", ["tiny", "full"])
def test_the_one_wrong_reading_of_a_corrupted_trace_is_found(scale):
    """At probability 1 the generator misreads exactly one of the chart's categories."""
    source = ChartsSource(count=150, scale=scale, trace="low", wrong_reading_probability=1.0)
    for record in load_records(source, 0.0):
        marks = record.facts.count(",") + 1
        expected = Faithfulness(pytest.approx((marks - 1) / marks), marks)
        assert faithfulness(record.hint, record.facts) == expected, record.hint


@pytest.mark.parametrize("name", ["puzzlevqa", "nlvr"])
def test_facts_that_describe_instead_of_listing_values_are_not_judged(data_root, name):
    lines = (data_root / name / "test" / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert len(rows) > 300
    assert not [row["facts"] for row in rows if facts_table(row["facts"])]


def test_facts_in_their_order_and_as_written():
    found = list_facts("Dark Red: 1,200; the red bar shows 3%.\nMay = 2.50, 2010: 45")
    assert [(fact.name, fact.text, fact.value) for fact in found] == [
        ("Dark Red", "1,200", 1200.0),
        ("red", "3", 3.0),
        ("May", "2.50", 2.5),
        ("2010", "45", 45.0),
    ]


def test_contradicted_share():
    assert contradicted_share("red 4, blue 3, blue 3", FACTS) == 0.5
    assert contradicted_share("red 9", FACTS) == 1.0
    assert contradicted_share("I see bars.", FACTS) == contradicted_share("red 4", None) == 0.0
