"""Answers with several parts ("red, green and blue"), whose order does not matter."""

from __future__ import annotations

import re

from dyme.data.record import Record
from dyme.rewards.answer import clean_answer, gold_answers
from dyme.text.normalise import normalise_text, plain
from dyme.text.numbers import parse_number, same_quantity

_BRACKETS = {"[": "]", "(": ")", "{": "}"}
# a comma before exactly three digits groups thousands, as the numbers module reads it
_BETWEEN = re.compile(r"(?<!\d),|,(?!\d{3}(?!\d))|[;&\n]|\band\b", re.IGNORECASE)


def verify_multi(answer: str, record: Record, relative_tolerance: float = 1e-6) -> float:
    """1.0 if the answer holds the same set of parts as a gold answer: none missing, none too many.

    Each gold answer is one whole list. Parts that are numbers compare by value, others as `exact` compares them.
    """
    given = split_parts(answer)
    return float(any(_same_set(given, split_parts(gold), relative_tolerance) for gold in gold_answers(record)))


def split_parts(text: str) -> frozenset[str]:
    """The parts of `text` between commas, semicolons, "&" and "and", in their plain form."""
    text = clean_answer("\n".join(plain(line) for line in text.splitlines()))
    if text and _BRACKETS.get(text[0]) == text[-1]:
        text = text[1:-1]
    parts = (clean_answer(part) for part in _BETWEEN.split(text))
    return frozenset(part for part in parts if normalise_text(part))


def _same_set(given: frozenset[str], gold: frozenset[str], relative_tolerance: float) -> bool:
    # a number spelled in two ways makes two parts of one, so sizes may differ, but not by much
    if not given or not gold or len(given) > 4 * len(gold) + 4:
        return False
    return all(any(_same(a, b, relative_tolerance) for b in gold) for a in given) and all(
        any(_same(a, b, relative_tolerance) for a in given) for b in gold
    )


def _same(given: str, gold: str, relative_tolerance: float) -> bool:
    ours, theirs = parse_number(given), parse_number(gold)
    if ours is None or theirs is None:
        return normalise_text(given) == normalise_text(gold)
    return same_quantity(ours, theirs, relative_tolerance)
