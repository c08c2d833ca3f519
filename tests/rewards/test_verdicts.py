"""Verdicts on the inputs of verdicts.jsonl, and the laws that hold for all inputs."""

import json
import os
import time
import unicodedata
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dyme.data.record import Record
from dyme.rewards.expression import read_expression
from dyme.rewards.latex import unlatex
from dyme.rewards.verifiers import get_verifier
from dyme.text.units import read_unit
from dyme.text.visible import visible

CASES = [json.loads(line) for line in (Path(__file__).parent / "verdicts.jsonl").read_text("utf-8").splitlines()]
VERIFIERS = ("auto", "exact", "numeric", "math", "multi")
SETS = ("easy_vqa", "gsm8k", "nlvr", "puzzlevqa", "vqa_rad")


def verdict(name, answer, gold, choices=()):
    return get_verifier(name)(answer, Record(id="r", question="?", answers=(gold,), choices=tuple(choices)))


@pytest.mark.parametrize("case", CASES, ids=lambda case: ascii(f"{case['verifier']} {case['gold']} {case['answer']}"))
def test_verdict(case):
    assert verdict(case["verifier"], case["answer"], case["gold"], case["choices"]) == case["want"], case["kind"]


def test_no_case_is_there_twice():
    keys = {(case["verifier"], case["gold"], case["answer"], tuple(case["choices"])) for case in CASES}
    assert len(keys) == len(CASES) >= 350


def test_a_gold_answer_of_the_cases_is_right_for_itself():
    wrong = [case for case in CASES if verdict(case["verifier"], case["gold"], case["gold"], case["choices"]) != 1.0]
    assert wrong == []


PIECES = (
    r"1|2|10|0|.|,| |-|+|--|/|:|(|)|[|]|{|}|^|x|y|n|A|-|=|<|≥|π|√|\pi|\sqrt{|\frac{1}{2}|%|°| cm|²|cat|and |the |'|!|$"
)
PIECES += "|e|½|٣|*|_|;|log_"
TEXTS = st.one_of(
    st.text(max_size=40), st.lists(st.sampled_from(PIECES.split("|")), min_size=1, max_size=9).map("".join)
)
INVISIBLE = "\u200b\u200c\u200d\u200e\u200f\u00ad\ufeff\u2060\u202a\u202c\u2066\u2069\ufe0f"


@settings(max_examples=400, deadline=None, derandomize=True)
@given(TEXTS.filter(lambda text: text.strip()))
def test_every_text_is_right_for_itself(text):
    assert [verdict(name, text, text) for name in VERIFIERS] == [1.0] * 5
    assert verdict("auto", text, text, (text, "another option")) == 1.0


@settings(max_examples=300, deadline=None, derandomize=True)
@given(TEXTS, TEXTS)
def test_exact_and_math_are_symmetric(one, other):
    assume(one.strip() and other.strip())
    for name in ("exact", "math"):
        assert verdict(name, one, other) == verdict(name, other, one), name


@pytest.mark.parametrize("at", [0, 1, -1])
def test_invisible_changes_do_not_decide(at):
    wrong = []
    for number, case in enumerate(CASES):
        mark = INVISIBLE[number % len(INVISIBLE)]
        wrong += [(case, ascii(text)) for text in spelled(case["answer"], at, mark) if not as_wanted(case, text)]
    assert wrong == []


def as_wanted(case, answer):
    return verdict(case["verifier"], answer, case["gold"], case["choices"]) == case["want"]


def spelled(answer, at, mark):
    """Spellings of an answer that a reader cannot tell apart."""
    at %= len(answer) + 1
    return [
        answer[:at] + mark + answer[at:],
        unicodedata.normalize("NFD", answer),
        unicodedata.normalize("NFC", answer),
        f"\u00a0{answer}\u3000",
    ]


NUMBERS = st.decimals(-10_000, 10_000, allow_nan=False, allow_infinity=False, places=3)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(NUMBERS, NUMBERS, st.sampled_from(["", " cm", " m/s^2", "%", "°", r"\pi", " apples", r"\sqrt{2}"]))
def test_different_numbers_are_never_equal(one, other, after):
    for name in VERIFIERS:
        same = abs(one - other) <= abs(other) / 1_000_000
        equal = name != "exact" or one == other
        assert verdict(name, f"{one}{after}", f"{other}{after}") == float(same and equal), name


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.integers(1, 99), st.integers(1, 9), st.integers(2, 9))
def test_mixed_fractions_are_not_joined(whole, top, bottom):
    for name in ("auto", "math", "numeric"):
        assert verdict(name, f"{whole} {top}/{bottom}", f"{whole}{top}/{bottom}") == 0.0
        assert verdict(name, rf"{whole}\frac{{{top}}}{{{bottom}}}", f"{whole * bottom + top}/{bottom}") == 1.0


FULL_WIDTH = {code: code + 0xFEE0 for code in range(0x21, 0x7F)}


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), min_size=1, max_size=20))
def test_full_width_forms_are_the_plain_ones(text):
    assert visible(text.translate(FULL_WIDTH)) == visible(text)
    assert visible(visible(text)) == visible(text)


@pytest.mark.parametrize("zero", [0x660, 0x6F0, 0x966, 0x9E6, 0xE50, 0xFF10, 0x1D7CE])
def test_digits_of_other_scripts_are_numbers(zero):
    digits = "".join(chr(zero + int(digit)) for digit in "427")
    for name in ("auto", "numeric", "math", "multi", "relaxed"):
        assert verdict(name, digits, "427") == verdict(name, "427", digits) == 1.0
    assert verdict("auto", digits, "427", ("426", "427")) == 1.0


@pytest.mark.skipif("DYME_DATA" not in os.environ, reason="DYME_DATA names no folder of data sets")
@pytest.mark.parametrize("name", SETS)
def test_every_gold_answer_of_real_data_is_right_for_itself(name):
    folder = Path(os.environ["DYME_DATA"]) / name
    rows = [json.loads(line) for path in sorted(folder.rglob("*.jsonl")) for line in path.open(encoding="utf-8")]
    golds = {(row["answer"].rpartition("#### ")[2], tuple(row.get("choices", ()))) for row in rows}
    assert len(golds) > 1
    wrong = [gold for gold in golds if verdict("auto", gold[0], *gold) != 1.0]
    wrong += [gold for gold in golds for check in ("exact", "math") if verdict(check, gold[0], gold[0]) != 1.0]
    assert wrong == []


@pytest.mark.parametrize(
    ("latex", "plain"),
    [
        (r"\frac{1}{2}", "1/2"),
        (r"1\frac{1}{2}", "1 1/2"),
        (r"\frac{1}{2}x", "((1)/(2))x"),
        (r"6/\frac12", "6/((1)/(2))"),
        (r"2^{10}5", "2^(10)5"),
        (r"1.6\times10^{-19}", "1.6×10^-19"),
        (r"25\text{ cm}^2", "25 cm^2"),
        (r"\left(-\infty, 2\right]", "(-∞, 2]"),
        (r"\{1{,}000, 50\%\}", "{1,000, 50%}"),
        (r"\foo{3}", r"\foo{3}"),
        ("costs $5 or $6", "costs $5 or $6"),
        ("it is $5$ cm", "it is 5 cm"),
    ],
)
def test_latex_in_plain_characters(latex, plain):
    assert unlatex(latex) == plain


@pytest.mark.parametrize("text", ["--4", "1 2", "1.2.3", "x1", "act", "2+", "(1", "1)", "3 ?", r"\foo", "f[", "", "()"])
def test_what_is_not_read_whole_is_no_expression(text):
    assert read_expression(text) is None


@pytest.mark.parametrize(
    "spellings",
    [
        ("cm^2", "cm²".replace("²", "^2"), "square cm", "sq. cm", "cm squared", "cm2", "square centimetres"),
        ("m/s^2", "m s^-2", "m·s^-2", "meters per second squared", "m / s^2"),
        ("km/h", "kmh", "kph", "km per hour", "kilometres per hour"),
        ("°C", "degrees Celsius", "° C"),
        ("J/(kg K)", "J/(kg·K)", "J kg^-1 K^-1"),
    ],
)
def test_spellings_of_one_unit(spellings):
    units = [read_unit(f" {spelling}") for spelling in spellings]
    assert {unit.readings for unit in units} == {units[0].readings}
    assert [unit.end for unit in units] == [len(spelling) + 1 for spelling in spellings]


HARD = [
    "(",
    "[",
    "{",
    "\\frac{",
    "√",
    "^",
    "-",
    "1^",
    "sin ",
    "|",
    "∪",
    "=",
    "x=",
    "±",
    "1:",
    "'",
    '"a',
    "$",
    "**a",
    "½",
    "\u200b",
]


@pytest.mark.parametrize("unit", [*HARD, "\\text{", "cm ", "1 m/s ", "(a, ", "1-", "1/", "e", "𝟒", "🏴\U000e0067"])
def test_no_text_takes_long(unit):
    text = unit * (10_000 // len(unit))
    start = time.perf_counter()
    for name in VERIFIERS:
        assert verdict(name, text, "5√2 + x") == verdict(name, "5√2 + x", text) == 0.0
    verdict("choice", text, "A", ("cat", "5√2"))
    assert time.perf_counter() - start < 5.0


def test_thousands_of_verdicts_are_quick():
    start = time.perf_counter()
    for i in range(3_000):
        case = CASES[i % len(CASES)]
        verdict(case["verifier"], f"{case['answer']} {i}", case["gold"], case["choices"])
    assert time.perf_counter() - start < 10.0
