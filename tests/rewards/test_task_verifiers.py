"""The verifiers of single tasks: verdict tables, arbitrary text, time."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dyme.data.record import Record
from dyme.rewards.answer import split_completion
from dyme.rewards.relaxed import verify_relaxed
from dyme.rewards.verifiers import get_verifier
from dyme.rewards.vqa import verify_vqa, vqa_form
from tests.rewards.task_tables import MATH, MULTI, RELAXED, VQA, YES_NO

TABLES = {"relaxed": RELAXED, "vqa": VQA, "yes_no": YES_NO, "math": MATH, "multi": MULTI}
CASES = [(name, *row) for name, table in TABLES.items() for row in table]


def record(golds, choices=()):
    return Record(id="r", question="?", answers=(golds,) if isinstance(golds, str) else golds, choices=choices)


@pytest.mark.parametrize(("name", "answer", "golds", "verdict"), CASES, ids=lambda value: str(value)[:24])
def test_verdict(name, answer, golds, verdict):
    assert get_verifier(name)(answer, record(golds)) == pytest.approx(verdict, abs=1e-12)


def test_tables_hold_what_they_promise():
    assert len(CASES) >= 150
    assert len(set(CASES)) == len(CASES)
    assert all(any(len(row[0]) > 5_000 for row in table) for table in TABLES.values())


def test_math_leaves_signals_alone():
    with ThreadPoolExecutor(1) as pool:
        verdict = pool.submit(get_verifier("math"), r"\frac{1}{3}+1", record(r"\frac{4}{3}")).result()
    assert verdict == 1.0


def leave_one_out(given_answer, golds):
    """The definition, written out."""
    scores = []
    for i in range(len(golds)):
        others = golds[:i] + golds[i + 1 :]
        scores.append(min(1.0, sum(other == given_answer for other in others) / 3))
    return sum(scores) / len(scores)


@pytest.mark.parametrize("same", range(11))
def test_vqa_is_the_mean_over_leaving_one_out(same):
    golds = ("cat",) * same + ("dog",) * (10 - same)
    assert verify_vqa("cat", record(golds)) == pytest.approx(leave_one_out("cat", golds), abs=1e-12)


def test_relaxed_is_relative_to_the_gold_value():
    assert [verify_relaxed(x, record("100")) for x in ("105.2", "95.1")] == [0.0, 1.0]
    assert [verify_relaxed("100", record(x)) for x in ("105.2", "95.1")] == [1.0, 0.0]


def test_normal_form_is_stable():
    assert [vqa_form(x) for x in ("The red-car.", "two  Dogs", "dont", "1,000 a-b")] == [
        "red car",
        "2 dogs",
        "don't",
        "1000 ab",
    ]


def test_a_gold_that_says_neither_yes_nor_no_is_refused():
    with pytest.raises(ValueError, match=r"record 'r'.*neither yes nor no.*reward\.verifier to auto"):
        get_verifier("yes_no")("yes", record("blue"))


@pytest.mark.parametrize("name", TABLES)
def test_a_record_without_gold_is_refused(name):
    with pytest.raises(ValueError, match="no gold answer"):
        get_verifier(name)("yes", record(()))


ITEMS = {
    "auto": [record("42"), record("blue"), record("B", ("cat", "dog"))],
    "exact": [record("blue")],
    "numeric": [record("5 cm")],
    "choice": [record("B"), record("dog", ("cat", "dog"))],
    "relaxed": [record("100"), record("12%"), record("0"), record("blue")],
    "vqa": [record(("cat",) * 3 + ("2",) * 7), record("don't")],
    "yes_no": [record("yes"), record("false")],
    "math": [record("x^2")],
    "multi": [record("red, green"), record("1, 2")],
}
PIECES = "1|0|12|,|.| and |or|/| |-|$|%|e|^|(|)|[|]|{|}|B|yes|no|not |true|cat|red|½|²|ı|İ|\n|**|#|Answer:|the |٣|cm|="
PIECES += "|\\boxed{|\\frac{1}{2}|\\text{|\\(|!|_|\\sqrt|x|pi"
TEXTS = st.one_of(st.text(max_size=60), st.lists(st.sampled_from(PIECES.split("|")), max_size=14).map("".join))


def check_any_text(text):
    parts = split_completion(text)
    for answer in {text, parts.answer or ""}:
        for name, items in ITEMS.items():
            assert all(0.0 <= get_verifier(name)(answer, item) <= 1.0 for item in items), name


@settings(max_examples=500, deadline=None)
@given(TEXTS)
def test_any_text_gets_an_accuracy(text):
    check_any_text(text)


@pytest.mark.slow
@settings(max_examples=10_000, deadline=None)
@given(TEXTS)
def test_ten_thousand_texts_get_an_accuracy(text):
    check_any_text(text)


@pytest.mark.parametrize("unit", ["1,", "a, ", "no ", ";", "'", "1%", "{", "\\boxed{", "and", "^1", "½"])
def test_time_grows_with_length_only(unit):
    text = unit * (10_000 // len(unit))
    start = time.perf_counter()
    verdicts = [get_verifier(name)(text, item) for name, items in ITEMS.items() for item in items]
    assert time.perf_counter() - start < 5.0
    assert all(0.0 <= verdict <= 1.0 for verdict in verdicts)
