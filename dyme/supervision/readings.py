"""Faithfulness of a trace: how many of the numbers it reads off the picture are the ones the facts state.

The facts are read into a table (label -> numbers), and the trace into readings (label, number) of those labels. Only
plain readings count: not a sum, a difference, a hedge or a number that two labels share.
docs/evaluation.md has the rules with examples.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

from dyme.text.normalise import STOP_WORDS, stem
from dyme.text.numbers import Quantity, find_quantities, prepare
from dyme.text.units import is_unit

MAX_LABEL_WORDS = 4
"""A longer label is a sentence about a number, not the name of a mark."""

Label = tuple[str, ...]
"""The stemmed words of a label."""

# "1. Find the red bar" and "Step 2:" number the steps, not the picture
_ENUMERATION = re.compile(r"^[ \t]*(?:step[ \t]{1,3})?\d{1,2}[.):](?=[ \t])", re.MULTILINE | re.IGNORECASE)
# mostly a pronoun ("the red one")
_PRONOUN_ONE = re.compile(r"\bone\b", re.IGNORECASE)

# a clause ends at a line, a semicolon, a question and a full stop, but not at the one in "U.S."
_CLAUSE = re.compile(r"\n|[;?!]|(?<!\b[A-Za-z])\.(?=\s|$)")
_LIST = re.compile(r"[\[(][^\[\]()]*,[^\[\]()]*[\])]")
# "red 4 and blue 2" are two facts, "the first and second circle" is one label
_PART = re.compile(r",(?!\d{3}\b)|\|\s*(?=\|)|(?<=[\d%]) and\b")
_WORD = re.compile(r"[^\W_]+(?:['’][^\W\d_]+)?")
# words that may stand between a mark and its number
_FILLER_TEXT = """
a about an approximately around are at bar bars category column columns equal equals exactly had has have having height
i is it its just line measures nearly number of only percent point reaches read reading reads roughly see segment share
show showing shows slice stands that the this value values was were which with
"""
_FILLERS = frozenset(_FILLER_TEXT.split())
_PREPOSITIONS = frozenset(("for", "of", "at", "on", "in"))
_CONNECTORS = frozenset(("and", "or", "nor", "plus", "minus", "than", "to", "versus", "vs", "with", "times", "from"))
_ARITHMETIC_TEXT = """
sum total difference average mean median together combined plus minus add adding added subtract subtracting subtracted
ratio gap twice half times product range altogether
"""
_ARITHMETIC = frozenset(_ARITHMETIC_TEXT.split())
_BOUND_TEXT = "over above below under than least most by exceeds exceeding between from plus minus times not"
_BOUNDS = frozenset(_BOUND_TEXT.split())
_COMPARED = re.compile(
    r" ?(?:units? |points? |percent |% ?)?"
    r"(?:more|less|fewer|higher|lower|larger|smaller|greater|bigger|taller|shorter|times|above|below|over|under)\b",
    re.IGNORECASE,
)
_OPERATOR = re.compile(r" ?[-+*×/÷=<>]")
_DIRECT = re.compile(r"[ (\"']*")
_OPEN = re.compile(r"[ (\"':=≈~|—]*")
_EQUAL_TO = re.compile(r"\bequal to\b", re.IGNORECASE)


@dataclass(frozen=True)
class Faithfulness:
    """`share` of a trace's `readings` (different ones, counted once) that agree with the facts; None without any."""

    share: float | None
    readings: int


@dataclass(frozen=True)
class Fact:
    """One number that facts state of one label; `name` and `text` are label and number as they were written."""

    label: Label
    value: float
    name: str
    text: str


@dataclass(frozen=True)
class _Mark:
    """A label where a clause names it."""

    label: Label
    start: int
    end: int


@dataclass(frozen=True)
class _Clause:
    text: str
    marks: tuple[_Mark, ...]
    numbers: tuple[Quantity, ...]
    sums: bool
    """Whether it speaks of sums or differences: then only a number right behind its label is a reading."""


def without_step_numbers(text: str) -> str:
    """`text` without the numbers of its steps ("1.", "Step 2:") and without the word "one"."""
    return _PRONOUN_ONE.sub(" ", _ENUMERATION.sub(" ", text))


def faithfulness(trace: str, facts: str | None) -> Faithfulness:
    """How far the readings of a trace agree with the facts of its record; numbers agree within 1e-6 of the fact."""
    table = facts_table(facts or "")
    found = find_readings(trace, table)
    agreed = sum(any(math.isclose(value, fact, rel_tol=1e-6) for fact in table[label]) for label, value in found)
    return Faithfulness(agreed / len(found) if found else None, len(found))


def contradicted_share(trace: str, facts: str | None) -> float:
    """c in [0, 1]: contradicted readings / readings, different ones counted once; 0 for a trace without readings."""
    share = faithfulness(trace, facts).share
    return 0.0 if share is None else 1.0 - share


@lru_cache(maxsize=16384)
def facts_table(facts: str) -> Mapping[Label, frozenset[float]]:
    """The numbers that the facts state of each label: "red 4, blue: 2" -> {("red",): {4}, ("blue",): {2}}.

    Lists in brackets, clauses that do not end with their number and labels of more than four words are left out.
    """
    table: dict[Label, set[float]] = {}
    for fact in list_facts(facts):
        table.setdefault(fact.label, set()).add(fact.value)
    return {label: frozenset(values) for label, values in table.items()}


@lru_cache(maxsize=16384)
def list_facts(facts: str) -> tuple[Fact, ...]:
    """What `facts_table` holds, in the order of the facts and as they were written."""
    while (shorter := _LIST.sub(" ", facts)) != facts:
        facts = shorter
    parts = (part for clause in _CLAUSE.split(facts) for part in re.split(_PART, clause))
    return tuple(fact for part in parts if (fact := _fact(prepare(part).strip(" |"))))


def find_readings(trace: str, table: Mapping[Label, frozenset[float]]) -> frozenset[tuple[Label, float]]:
    """The readings of a trace, each once."""
    if not table:
        return frozenset()
    clauses = (_parse(part, table) for part in _CLAUSE.split(without_step_numbers(trace)))
    return frozenset(reading for clause in clauses for reading in _readings(clause))


def _fact(clause: str) -> Fact | None:
    """The label and number of a clause that is a label, a number and at most one known unit."""
    numbers = find_quantities(clause)
    if not numbers or math.isnan(numbers[-1].value):
        return None
    number = numbers[-1]
    tail = clause[number.end :].strip(" .\"')")
    head = clause[: number.start].rstrip()
    # "2010: 45" has a number in its label, "from 3 to 7" has not
    if (tail and not is_unit(tail)) or (len(numbers) > 1 and not head.endswith((":", "=", "|"))):
        return None
    kept = _label(head)
    if not kept:
        return None
    label = tuple(_plain_word(word[0]) for word in kept)
    return Fact(label, number.value, head[kept[0].start() : kept[-1].end()], clause[number.start : number.end].strip())


def _label(head: str) -> list[re.Match[str]] | None:
    raw = list(_WORD.finditer(head))
    kept = list(raw)
    while kept and kept[0][0].casefold() in _FILLERS | STOP_WORDS:
        kept.pop(0)
    while kept and kept[-1][0].casefold() in _FILLERS | STOP_WORDS:
        kept.pop()
    if not kept and len(raw) == 1 and raw[0][0][0].isupper():
        kept = raw  # a label that is a stop word ("May") is known by its capital
    year = len(kept) == 1 and re.fullmatch(r"[12]\d{3}", kept[0][0])
    if not 1 <= len(kept) <= MAX_LABEL_WORDS or not (year or any(c.isalpha() for word in kept for c in word[0])):
        return None
    return kept


@lru_cache(maxsize=65536)
def _plain_word(word: str) -> str:
    """A stem; a capitalised stop word stays as it is, so that "May" is not "may"."""
    word = re.split("['’]", word)[0]
    folded = word.casefold()
    return word if folded in STOP_WORDS and word[0].isupper() else stem(folded)


def _parse(part: str, table: Mapping[Label, frozenset[float]]) -> _Clause:
    text = _EQUAL_TO.sub("equals", prepare(part))
    numbers = [q for q in find_quantities(text) if not math.isnan(q.value)]
    tokens = list(_WORD.finditer(text))
    stems = tuple(_plain_word(token[0]) for token in tokens)
    longest = max(map(len, table))
    marks: list[_Mark] = []
    at = 0
    while at < len(tokens):
        size = next((n for n in range(min(longest, len(tokens) - at), 0, -1) if stems[at : at + n] in table), 0)
        if size:
            start, end = tokens[at].start(), tokens[at + size - 1].end()
            inside = [q for q in numbers if q.start < end and q.end > start]
            if all(start <= q.start and q.end <= end for q in inside):  # "2010.5" is not the year 2010
                marks.append(_Mark(stems[at : at + size], start, end))
                numbers = [q for q in numbers if q not in inside]
        at += size or 1
    named = {at for mark in marks for at in range(mark.start, mark.end)}
    sums = any(token[0].casefold() in _ARITHMETIC and token.start() not in named for token in tokens)
    return _Clause(text, tuple(marks), tuple(numbers), sums)


def _readings(clause: _Clause) -> Iterator[tuple[Label, float]]:
    bound: dict[int, _Mark] = {}
    for i, number in enumerate(clause.numbers):
        mark = _label_before(clause, i)
        if mark:
            bound[i] = mark
            yield mark.label, number.value
    for i, number in enumerate(clause.numbers):
        mark = None if i in bound or clause.sums else _label_after(clause, i)
        if mark and mark not in bound.values():
            yield mark.label, number.value


def _label_before(clause: _Clause, i: int) -> _Mark | None:
    """The label of number i, if it stands before it: "red 4", "the red bar shows 4"."""
    text, number = clause.text, clause.numbers[i]
    begin = clause.numbers[i - 1].end if i else 0
    k = max((k for k, m in enumerate(clause.marks) if begin <= m.start and m.end <= number.start), default=None)
    if k is None:
        return None
    mark = clause.marks[k]
    between = text[mark.end : number.start]
    direct = between != "" and _DIRECT.fullmatch(between) is not None
    words = _words(between)
    plain = _OPEN.fullmatch(_WORD.sub("", between).replace(",", "") if words else between) is not None
    if not plain or not words <= _FILLERS or (clause.sums and not direct) or not _is_value(clause, i, direct):
        return None
    previous = clause.marks[k - 1] if k and clause.marks[k - 1].start >= begin else None
    if previous and previous.label != mark.label:
        joint = text[previous.end : mark.start]
        only = joint.strip(" ,&+-/") == "" or (_words(joint) <= _CONNECTORS | _FILLERS and _words(joint))
        if only and not (direct and joint.strip() == ","):
            return None  # "red and blue is 7" is no reading of blue
    return mark


def _label_after(clause: _Clause, i: int) -> _Mark | None:
    """The label of number i, if it stands after it: "4 for red", "21, at Friday"."""
    text, number = clause.text, clause.numbers[i]
    until = clause.numbers[i + 1].start if i + 1 < len(clause.numbers) else len(text)
    after = [m for m in clause.marks if number.end <= m.start and m.end <= until]
    before = _WORD.findall(text[: number.start])
    if not after or not _is_value(clause, i, False) or (before and before[-1].casefold() in _BOUNDS):
        return None
    between = text[number.end : after[0].start]
    words = _words(between)
    if not words & _PREPOSITIONS or not words <= _FILLERS | _PREPOSITIONS or re.search(r"[^\w\s,%°('\"]", between):
        return None
    if len(after) > 1 and _words(text[after[0].end : after[1].start]) <= _CONNECTORS | _FILLERS:
        return None  # "2 of red and blue"
    return after[0]


def _is_value(clause: _Clause, i: int, direct: bool) -> bool:
    """Whether number i can be a value: no part of a calculation, comparison or hedge."""
    number, rest = clause.numbers[i], clause.text[clause.numbers[i].end :]
    following = clause.numbers[i + 1] if i + 1 < len(clause.numbers) else None
    gap = clause.text[number.end : following.start].strip() if following else ""
    if _COMPARED.match(rest) or gap in ("or", "to"):
        return False
    # "red 6 + blue 4" reads both, "red: 6 + 4" reads nothing
    calculates = _OPERATOR.match(rest) is not None
    return direct if calculates else number.whole


def _words(text: str) -> frozenset[str]:
    return frozenset(word.casefold() for word in _WORD.findall(text))
