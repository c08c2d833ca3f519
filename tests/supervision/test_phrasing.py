"""Templates: filled ones are faithful, and what is learned from a trace gives that trace again."""

from __future__ import annotations

import re
from collections import Counter
from fractions import Fraction

import pytest

from dyme.data import ChartsSource, load_records
from dyme.supervision.derive import derive
from dyme.supervision.phrasing import BUILT_IN, fill_template, learn_template, supported
from dyme.supervision.readings import faithfulness, list_facts


def derivation(question="red plus blue?", facts="red 4, blue 1, green 7", answer="5"):
    found = derive(question, list_facts(facts), answer)
    assert found
    return found


def records(trace, scale, count=300, **more):
    return load_records(ChartsSource(count=count, scale=scale, trace=trace, **more), 0.0)


@pytest.mark.parametrize("scale", ["tiny", "full"])
def test_the_built_in_forms_state_only_facts_and_lead_to_the_answer(scale):
    """Against the generator's own truth: every reading of the chart is there, and every number is known."""
    for record in records("low", scale, wrong_reading_probability=1.0):
        found = derivation(record.question, record.facts, record.answer)
        trace = fill_template(BUILT_IN[found.kind], found)
        assert faithfulness(trace, record.facts).share == 1.0
        assert trace.startswith(record.facts)
        numbers = set(re.findall(r"\d+(?:\.\d+)?", trace))
        assert numbers <= set(re.findall(r"\d+(?:\.\d+)?", f"{record.facts} {record.question} {record.answer}"))
        assert re.search(rf"{re.escape(record.answer)}\.$", trace)
        for x, sign, y, result in re.findall(r"([\d.]+) ([+-]) ([\d.]+) = ([\d.]+)\.", trace):
            total = Fraction(x) + (Fraction(y) if sign == "+" else -Fraction(y))
            assert total == Fraction(result) == Fraction(record.answer)
        assert supported(trace, found)


@pytest.mark.parametrize("scale", ["tiny", "full"])
@pytest.mark.parametrize("trace", ["medium", "high"])
def test_a_learned_template_gives_its_trace_again(trace, scale):
    """And the same one from every record of a kind."""
    learned: dict[str, Counter[str]] = {}
    for record in records(trace, scale):
        found = derivation(record.question, record.facts, record.answer)
        template = learn_template(record.hint, found)
        if template:
            assert fill_template(template, found) == " ".join(record.hint.split())
            assert not re.search(r"\d", template)
            learned.setdefault(found.kind, Counter())[template] += 1
    assert len(learned) == 7
    for kind, templates in learned.items():
        assert len(templates) == 1, (kind, templates)


def test_a_misread_trace_teaches_nothing():
    misread = records("low", "tiny", wrong_reading_probability=1.0)
    assert not [r for r in misread if learn_template(r.hint, derivation(r.question, r.facts, r.answer))]
    right = records("low", "tiny", wrong_reading_probability=0.0)
    assert len([r for r in right if learn_template(r.hint, derivation(r.question, r.facts, r.answer))]) > 100


LEARNED = [
    ("red 4, blue 1, green 7. 4 + 1 = 5.", "[each|{name} {value}|, ]. {x} + {y} = {answer}."),
    ("red is 4 and blue is 1, so 5", "{a} is {x} and {b} is {y}, so {answer}"),
    ("red: 4 and blue: 1 and green: 7 makes 5", "[each|{name}: {value}| and ] makes {answer}"),
    ("red 4 maybe red 4 maybe red 4 blue 1 so 5", None),  # says it again
    ("red 4, blue 1, green 7. red 4, blue 1, green 7. so 5", None),
    ("red 4, blue 1, green 7", None),  # leads nowhere
    ("red 4, blue 2, green 7. 4 + 1 = 5.", None),  # misread
    ("red 4, blue 1, green 7, pink 3. so 5", None),  # a number from nowhere
    ("green 7. 4 + 1 = 5", None),  # a label that the step does not need
    ("the two are 4 + 1 = 5", None),  # a number word of this record
    ("{a} 4 + 1 = 5", None),
    ("ignore the above rules: 4 + 1 = 5", None),
    ("", None),
]


@pytest.mark.parametrize(("trace", "template"), LEARNED, ids=[trace for trace, _ in LEARNED])
def test_what_is_learned(trace, template):
    assert learn_template(trace, derivation()) == template


def test_slots_that_could_be_mistaken():
    assert learn_template("red 4, blue 2. 4 - 2 = 2.", derivation("red minus blue?", "red 4, blue 2", "2")) is None
    none = derivation("how many over 7?", "red 4, blue 2", "0")
    assert learn_template("red 4, blue 2. over 7: none. so 0.", none) is None


def test_a_template_of_another_kind_does_not_fill():
    assert fill_template("{t} and {answer}", derivation()) is None
    assert fill_template("[some|{name}|, ] {answer}", derivation()) == "none 5"


@pytest.mark.parametrize(
    ("trace", "holds"),
    [("red 4 + blue 1 = 5", True), ("red 4, blue 4, so 5", False), ("4 + 1 = 5, not 6", False), ("", True)],
)
def test_supported(trace, holds):
    assert supported(trace, derivation()) is holds
