"""Answers with several parts ("red, green and blue"), whose order does not matter."""

from __future__ import annotations

import re

from dyme.data.record import Record
from dyme.rewards.answer import gold_answers
from dyme.rewards.values import Rules, clean_value, in_brackets, same_set, split_parts

# a comma before exactly three digits groups thousands, as the numbers module reads it
_BETWEEN = re.compile(r"[()\[\]{}]|(?<!\d),|,(?!\d{3}(?!\d))|[;&\n]|\band\b", re.IGNORECASE)


def verify_multi(answer: str, record: Record, relative_tolerance: float = 1e-6) -> float:
    """1.0 if the answer holds the same set of parts as a gold answer: none missing, none too many.

    Each gold answer is one whole list. Parts are compared as `auto` compares a gold answer, numbers as a whole.
    """
    given, rules = parts_of(answer), Rules(relative_tolerance)
    return float(any(same_set(given, parts_of(gold), rules) for gold in gold_answers(record)))


def parts_of(text: str) -> tuple[str, ...]:
    """The different parts of `text` between commas, semicolons, "&" and "and" outside brackets."""
    text = clean_value(";".join(line for line in text.splitlines() if line.strip()))
    if in_brackets(text):
        text = text[1:-1]
    parts, _ = split_parts(text, _BETWEEN)
    clean = dict.fromkeys(clean_value(part) for part in parts)
    return tuple(part for part in clean if part)
