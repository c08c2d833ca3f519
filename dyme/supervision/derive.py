"""Derivation: how the answer of a question follows from facts that give each label one number.

The words of the question tell which of seven kinds of step to try. A step counts only if its result is the gold answer.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dyme.supervision.readings import Fact
from dyme.text.normalise import STOP_WORDS, normalise_text
from dyme.text.numbers import find_quantities, parse_number, prepare

_MORE = r"more|larger|higher|greater|bigger|taller|longer|above|over|exceed\w*"
_LESS = r"less|smaller|lower|fewer|shorter|below|under"
_SUM = re.compile(r"\b(?:plus|sum|total|together|combined|altogether|added?)\b", re.IGNORECASE)
_DIFFERENCE = re.compile(rf"\b(?:minus|difference|gap|how (?:much|many) (?:{_MORE}|{_LESS}))\b", re.IGNORECASE)
_LARGER = re.compile(rf"\b(?:{_MORE})\b", re.IGNORECASE)
_SMALLER = re.compile(rf"\b(?:{_LESS})\b", re.IGNORECASE)
_MOST = re.compile(r"\b(?:largest|highest|maximum|max|most|biggest|greatest|tallest|longest|top)\b", re.IGNORECASE)
_LEAST = re.compile(r"\b(?:smallest|lowest|minimum|min|least|fewest|shortest)\b", re.IGNORECASE)
_COUNT = re.compile(r"\b(?:how many|number of)\b", re.IGNORECASE)
_ABOVE = re.compile(r"\b(?:over|above|more than|greater than|larger than|higher than|exceed\w*) ?$", re.IGNORECASE)
_BELOW = re.compile(r"\b(?:under|below|less than|fewer than|smaller than|lower than) ?$", re.IGNORECASE)


@dataclass(frozen=True)
class Derivation:
    """A step: its kind, and the text of its slots: a, b (labels), x, y (their numbers), t (a threshold), answer.
    `facts` are all facts in order, `some` those that a count counts."""

    kind: str
    slots: Mapping[str, str]
    facts: tuple[Fact, ...]
    some: tuple[Fact, ...] = ()


def derive(question: str, facts: Sequence[Fact], answer: str) -> Derivation | None:
    """The step from facts to the gold answer; None if no known step leads there."""
    by_label = {fact.label: fact for fact in facts}
    if not facts or len(by_label) < len(facts):
        return None  # a label with several numbers belongs to a table of several columns
    facts = tuple(facts)
    named = mentioned(question, facts)
    number = parse_number(answer)
    value = number.value if number else math.nan
    counted = _count(question, facts, answer, value)
    if counted or len(named) != 2:
        return counted or _of_one(question, facts, named, answer, value)
    return _of_two(question, facts, named[0], named[1], answer, value)


def mentioned(text: str, facts: Sequence[Fact]) -> list[Fact]:
    """The facts whose labels a text names, each once, in the order of the text; of nested labels the longest."""
    by_name = {fact.name.casefold(): fact for fact in facts}
    found = (by_name[hit[0].casefold()] for hit in name_pattern(facts).finditer(text))
    return list({fact.label: fact for fact in found}.values())


def name_pattern(facts: Sequence[Fact]) -> re.Pattern[str]:
    """Matches the label of any fact in any case; a label that is a stop word ("May") in its own case only."""
    names = sorted((fact.name for fact in facts), key=lambda name: (-len(name), name))
    parts = [re.escape(n) if n.casefold() in STOP_WORDS else f"(?i:{re.escape(n)})" for n in names]
    return re.compile(rf"(?<!\w)(?:{'|'.join(parts)})(?!\w)")


def _count(question: str, facts: tuple[Fact, ...], answer: str, value: float) -> Derivation | None:
    if not _COUNT.search(question):
        return None
    question = prepare(question)
    for number in find_quantities(question):
        before = question[: number.start]
        above, below = _ABOVE.search(before), _BELOW.search(before)
        if not (above or below):
            continue
        some = tuple(f for f in facts if (f.value > number.value if above else f.value < number.value))
        if len(some) == value:
            written = question[number.start : number.end].strip()
            return Derivation("count" if above else "count_below", {"t": written, "answer": answer}, facts, some)
    return None


def _of_two(question: str, facts: tuple[Fact, ...], a: Fact, b: Fact, answer: str, value: float) -> Derivation | None:
    if _SUM.search(question) and _same(a.value + b.value, value):
        return Derivation("sum", _slots(a, b, answer), facts)
    if _DIFFERENCE.search(question):
        if _same(b.value - a.value, value) and not _same(a.value, b.value):
            a, b = b, a
        return Derivation("difference", _slots(a, b, answer), facts) if _same(a.value - b.value, value) else None
    a, b = (a, b) if _is_name(answer, a) else (b, a)
    if not _is_name(answer, a):
        return None
    if _LARGER.search(question) and a.value > b.value:
        return Derivation("comparison", _slots(a, b, answer), facts)
    if _SMALLER.search(question) and a.value < b.value:
        return Derivation("comparison_below", _slots(a, b, answer), facts)
    return None


def _of_one(question: str, facts: tuple[Fact, ...], named: list[Fact], answer: str, value: float) -> Derivation | None:
    order = sorted(facts, key=lambda fact: fact.value)
    for kind, words, best, second in (
        ("maximum", _MOST, order[-1], order[-2:-1]),
        ("minimum", _LEAST, order[0], order[1:2]),
    ):
        tied = bool(second) and second[0].value == best.value
        if words.search(question) and not named and not tied and (_is_name(answer, best) or _same(best.value, value)):
            return Derivation(kind, {"a": best.name, "x": best.text, "answer": answer}, facts)
    if len(named) == 1 and _same(named[0].value, value):
        return Derivation("value", {"a": named[0].name, "x": named[0].text, "answer": answer}, facts)
    return None


def _slots(a: Fact, b: Fact, answer: str) -> dict[str, str]:
    return {"a": a.name, "b": b.name, "x": a.text, "y": b.text, "answer": answer}


def _is_name(answer: str, fact: Fact) -> bool:
    return normalise_text(answer) == normalise_text(fact.name)


def _same(given: float, gold: float) -> bool:
    return math.isclose(given, gold, rel_tol=1e-6, abs_tol=1e-9)
