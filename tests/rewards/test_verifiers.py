"""Verifiers against the verdict tables, on arbitrary text, and in time."""

import math
import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dyme.data.record import Record
from dyme.rewards.answer import split_completion
from dyme.rewards.verifiers import get_verifier
from dyme.text.normalise import normalise_text, plain
from dyme.text.numbers import find_quantities, parse_number
from tests.helpers.launching import ROOT
from tests.rewards.verdict_tables import ANIMALS, CHOICE, EXACT, NUMERIC


def record(*golds, choices=()):
    return Record(id="r", question="?", answers=golds, choices=tuple(choices))


def short(value):
    return str(value)[:24]


@pytest.mark.parametrize(("answer", "gold", "verdict"), EXACT, ids=short)
def test_exact(answer, gold, verdict):
    assert get_verifier("exact")(answer, record(gold)) == verdict


@pytest.mark.parametrize(("answer", "gold", "verdict"), NUMERIC, ids=short)
def test_numeric(answer, gold, verdict):
    assert get_verifier("numeric")(answer, record(gold)) == verdict


@pytest.mark.parametrize(("answer", "gold", "choices", "verdict"), CHOICE, ids=short)
def test_choice(answer, gold, choices, verdict):
    assert get_verifier("choice")(answer, record(gold, choices=choices)) == verdict


def test_tables_hold_what_they_promise():
    tables = (EXACT, NUMERIC, CHOICE)
    assert sum(map(len, tables)) >= 100
    assert all(len(set(table)) == len(table) for table in tables)


@pytest.mark.parametrize(
    ("completion", "gold", "choices", "verdict"),
    [
        ("I see a dog. Answer: A or B", "B", ANIMALS, 0),
        ("I see a dog. Answer: (B)", "B", ANIMALS, 1),
        ("Answer: A\nAnswer: B", "B", ANIMALS, 1),
        ("Four of ten. **Answer:** 40 %", "40", (), 1),
        ("Answer:\n\n$1,234.50\n12", "1234.5", (), 1),
    ],
)
def test_from_completion_to_verdict(completion, gold, choices, verdict):
    answer = split_completion(completion).answer
    assert get_verifier("auto")(answer, record(gold, choices=choices)) == verdict


@pytest.mark.parametrize(
    ("answer", "item", "verdict"),
    [
        ("B", record("dog", choices=ANIMALS), 1),
        ("7.0", record("7"), 1),
        ("7.0", record("7", "seven"), 1),
        ("7.0", record("7", "several"), 0),
        ("Seven", record("7", "several"), 0),
        ("several", record("7", "several"), 1),
        ("red", record("red", "crimson"), 1),
        ("crimson", record("red", "crimson"), 1),
        ("pink", record("red", "crimson"), 0),
    ],
)
def test_auto_goes_by_the_record(answer, item, verdict):
    assert get_verifier("auto")(answer, item) == verdict


def test_tolerance_is_a_fraction_of_the_gold_value():
    lenient = get_verifier("numeric", relative_tolerance=0.05)
    assert [lenient(given, record("100")) for given in ("105", "95", "105.2", "94.9")] == [1, 1, 0, 0]
    assert lenient("-104", record("-100")) == 1
    assert lenient("0.01", record("0")) == 0
    assert lenient("100 or 104", record("100")) == 0
    assert get_verifier("auto")("100.0000001", record("100")) == 1
    assert get_verifier("auto")("100.01", record("100")) == 0


def test_settings_out_of_range():
    with pytest.raises(
        ValueError, match=r"'numerik': did you mean 'numeric'\? Allowed: auto, exact, numeric, choice, relaxed"
    ):
        get_verifier("numerik")
    with pytest.raises(ValueError, match=r"below 1, got 1\.5"):
        get_verifier("numeric", relative_tolerance=1.5)


@pytest.mark.parametrize(
    ("name", "item", "words"),
    [
        ("choice", record("wolf", choices=ANIMALS), "none of its choices"),
        ("choice", record("wolf"), "no choices"),
        ("auto", record(), "no gold answer"),
        ("exact", record(), "no gold answer"),
    ],
)
def test_unusable_records_say_so(name, item, words):
    with pytest.raises(ValueError, match=words):
        get_verifier(name)("wolf", item)


@pytest.mark.parametrize(
    "gold", ["3 Doors Down", "1st", "H2O", "10:30", "3-4", "half", "twenty odd ones", "", "1.2.3", "<5"]
)
def test_not_a_number(gold):
    assert parse_number(gold) is None


@pytest.mark.parametrize(
    ("gold", "value"), [("$1,234.50", 1234.5), ("12 %", 12), ("5 cm", 5), ("1 1/2", 1.5), ("USD 7.", 7), ("-3", -3)]
)
def test_a_number(gold, value):
    assert parse_number(gold).value == value


PIECES = "1|0|12|,|.|/| |-|$|%|e|x10^|(|)|B|A|or|three|million|½|²|ı|ſ|İ|\n|**|Answer:|minus |the |٣|cm|:|=|'"
TEXTS = st.one_of(st.text(max_size=60), st.lists(st.sampled_from(PIECES.split("|")), max_size=14).map("".join))
ITEMS = (
    record("42"),
    record("5 cm", "1/2"),
    record("blue"),
    record("B", choices=ANIMALS),
    record("3", choices=("3", "4")),
)


@settings(max_examples=300, deadline=None)
@given(TEXTS)
def test_any_text_gets_an_accuracy(text):
    verdicts = [get_verifier("auto")(text, item) for item in ITEMS]
    verdicts += [get_verifier(name)(text, ITEMS[0]) for name in ("exact", "numeric")]
    assert all(0.0 <= verdict <= 1.0 for verdict in verdicts)
    assert plain(plain(text)) == plain(text)
    assert normalise_text(text) == normalise_text(plain(text))


@settings(max_examples=200, deadline=None)
@given(TEXTS.filter(lambda text: text.strip()))
def test_any_gold_can_be_matched_by_itself(text):
    number = parse_number(text)
    assert number is None or math.isfinite(number.value)
    assert get_verifier("auto")(text, record(text)) == 1.0


@settings(max_examples=200, deadline=None)
@given(st.floats(-1e9, 1e9).map(lambda x: round(x, 3)))
def test_spellings_of_one_number(value):
    right = get_verifier("numeric")
    for spelling in (f"{value:,}", f"{value:.6e}" if value == float(f"{value:.6e}") else repr(value), f"{value} cm"):
        assert right(spelling, record(repr(value))) == 1.0
    assert [each.value for each in find_quantities(f"It is {value:,.3f}.")] == [value]


@pytest.mark.parametrize(
    "unit", ["1,", "1.", "1 1/", "x1", "-", "$-", "e1", "one ", "twenty-", "A ", "((", "'", "million ", "½", "1e1"]
)
def test_time_grows_with_length_only(unit):
    text = unit * (10_000 // len(unit))
    start = time.perf_counter()
    for item in ITEMS:
        get_verifier("auto")(text, item)
    assert time.perf_counter() - start < 2.0


def test_the_examples_in_the_docs_are_true():
    page = (ROOT / "docs" / "rewards.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1:-1] for line in page.splitlines() if re.match(r"\| \w+ \| `", line)]
    claims = []
    for name, gold, *verdicts in rows:
        golds, *choices = re.findall(r"`([^`]+)`", gold)
        item = record(golds, choices=choices)
        for verdict, cell in zip((1.0, 0.0), verdicts, strict=True):
            claims += [(name.strip(), golds, text, verdict, item) for text in re.findall(r"`([^`]+)`", cell)]
    assert len(claims) >= 100
    assert [claim[:4] for claim in claims if get_verifier(claim[0])(claim[2], claim[4]) != claim[3]] == []
