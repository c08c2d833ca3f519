"""MathVista's accuracy: numbers rounded to the precision of the gold answer, options by letter or likeness.

Definition: Lu et al., MathVista (2024), https://arxiv.org/abs/2310.02255, and the scoring published with it. There a
language model takes the answer out of a reply; here the answer flag does, and a number may keep its unit.
"""

from __future__ import annotations

import re
from typing import Literal

from dyme.data.record import Record
from dyme.rewards.answer import clean_answer, gold_answers
from dyme.rewards.options import edit_distance, most_like
from dyme.text.numbers import parse_number

Kind = Literal["integer", "float", "list", "text"]

_DECIMAL = re.compile(r"[-+]?\d*\.(?P<decimals>\d+)")
_WHOLE = re.compile(r"[-+]?\d+")


def verify_mathvista(answer: str, record: Record) -> float:
    """1.0 if the answer equals a gold answer of its type, told by how that is written: "12" is an integer, "1.40" a
    number of two decimals, "[1, 2]" a list; with choices the option decides."""
    golds = gold_answers(record)
    if record.choices:
        return float(most_like(answer, record.choices, _likeness) in golds)
    return float(any(answer == gold or _same(clean_answer(answer), gold.strip()) for gold in golds))


def answer_kind(gold: str) -> tuple[Kind, int]:
    """The type of a gold answer, and its precision: decimals of a float, 0 for the others."""
    if _WHOLE.fullmatch(gold):
        return "integer", 0
    if decimal := _DECIMAL.fullmatch(gold):
        return "float", len(decimal["decimals"])
    return ("list", 0) if gold.startswith("[") and gold.endswith("]") else ("text", 0)


def _same(given: str, gold: str) -> bool:
    if not given:
        return False
    kind, precision = answer_kind(gold)
    if kind == "list":
        return _items(given) == _items(gold)
    if kind == "text":
        return given.casefold() == clean_answer(gold).casefold()
    ours, theirs = parse_number(given), parse_number(gold)
    if ours is None or theirs is None:
        return False
    if kind == "integer":
        return int(ours.value) == int(theirs.value)  # decimals are cut off, not rounded, as published
    return round(ours.value, precision) == round(theirs.value, precision)


def _items(text: str) -> list[object]:
    """The parts of a list, numbers by value."""
    parts = [part.strip().strip("'\"") for part in text.strip("[]").split(",")]
    numbers = [parse_number(part) for part in parts]
    return [part if number is None else number.value for part, number in zip(parts, numbers)]


def _likeness(answer: str, choice: str) -> float:
    """1 for equal texts or numbers, 0 for texts with nothing in common, else by distance alone, as published."""
    ours, theirs = parse_number(answer), parse_number(choice)
    if ours is not None and theirs is not None and ours.value == theirs.value:
        return 1.0
    answer, choice = answer.casefold(), choice.casefold()
    distance = edit_distance(answer, choice)
    return 0.0 if distance >= max(len(answer), len(choice)) else 1.0 / (1.0 + distance)
