"""Derivations: the kinds of step by the words of a question, and never one that misses the gold answer."""

from __future__ import annotations

import pytest

from dyme.data import ChartsSource, load_records
from dyme.supervision.derive import derive, mentioned
from dyme.supervision.readings import list_facts

FACTS = list_facts("red 4, dark red 9, blue 2, May 7")

STEPS = [
    ("value of blue?", "2", "value", {"a": "blue", "x": "2"}),
    ("What is the value of Dark Red?", "9", "value", {"a": "dark red", "x": "9"}),
    ("which is largest?", "dark red", "maximum", {"a": "dark red", "x": "9"}),
    ("What is the highest value?", "9", "maximum", {"a": "dark red", "x": "9"}),
    ("Which colour has the lowest bar?", "Blue", "minimum", {"a": "blue", "x": "2"}),
    ("How many bars are above 4?", "2", "count", {"t": "4"}),
    ("how many over ten?", "0", "count", {"t": "ten"}),
    ("How many values are less than 5?", "2", "count_below", {"t": "5"}),
    ("red plus blue?", "6", "sum", {"a": "red", "b": "blue", "x": "4", "y": "2"}),
    ("What is the total of blue and May?", "9.0", "sum", {"a": "blue", "b": "May", "x": "2", "y": "7"}),
    ("red minus blue?", "2", "difference", {"a": "red", "b": "blue", "x": "4", "y": "2"}),
    ("red minus May?", "-3", "difference", {"a": "red", "b": "May", "x": "4", "y": "7"}),
    ("What is the difference between blue and red?", "2", "difference", {"a": "red", "b": "blue"}),
    ("How much larger is May than red?", "3", "difference", {"a": "May", "b": "red"}),
    ("which is larger, red or dark red?", "dark red", "comparison", {"a": "dark red", "b": "red"}),
    ("Which is smaller, red or blue?", "blue", "comparison_below", {"a": "blue", "b": "red"}),
]


@pytest.mark.parametrize(("question", "answer", "kind", "slots"), STEPS, ids=[step[0] for step in STEPS])
def test_steps(question, answer, kind, slots):
    found = derive(question, FACTS, answer)
    assert found and found.kind == kind
    assert slots.items() <= found.slots.items() and found.slots["answer"] == answer
    assert found.facts == FACTS


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("value of blue?", "3"),
        ("which is largest?", "red"),
        ("How many bars are above 4?", "3"),
        ("red plus blue?", "7"),
        ("red minus blue?", "3"),
        ("which is larger, red or blue?", "blue"),
        ("Which is smaller, red or blue?", "red"),
        ("may red be largest?", "yes"),
        ("What is the title?", "Sales"),
        ("value of green?", "2"),
        ("red plus blue plus May?", "13"),
    ],
)
def test_no_step_leads_elsewhere(question, answer):
    assert derive(question, FACTS, answer) is None


def test_facts_that_are_no_table():
    assert derive("value of red?", list_facts("red 4, red 5"), "4") is None
    assert derive("value of red?", (), "4") is None
    for answer in ("red", "blue"):  # a tie has no single right answer
        assert derive("which is largest?", list_facts("red 4, blue 4"), answer) is None
        assert derive("which is smallest?", list_facts("red 4, blue 4"), answer) is None


def test_labels_within_labels():
    assert [fact.name for fact in mentioned("DARK RED or red, maybe May or may, redder", FACTS)] == [
        "dark red",
        "red",
        "May",
    ]


@pytest.mark.parametrize("scale", ["tiny", "full"])
def test_every_question_of_the_generator(scale):
    for record in load_records(ChartsSource(count=400, scale=scale), 0.0):
        found = derive(record.question, list_facts(record.facts), record.answer)
        assert found and found.kind == record.kind, record.question
        above = [fact for fact in found.facts if fact in found.some]
        assert record.kind != "count" or len(above) == int(record.answer)
