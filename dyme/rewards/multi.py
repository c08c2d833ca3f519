"""Answers with several parts ("red, green and blue"), whose order does not matter."""

from __future__ import annotations

import re

from dyme.data.record import Record
from dyme.rewards.answer import gold_answers
from dyme.rewards.values import Parts, Rules, clean_value, in_brackets, same_set, split_parts

# a comma before exactly three digits groups thousands, as the numbers module reads it
_BETWEEN = re.compile(r"[()\[\]{}]|(?<!\d),|,(?!\d{3}(?!\d))|[;&\n]|\band\b", re.IGNORECASE)


def verify_multi(answer: str, record: Record, relative_tolerance: float = 1e-6) -> float:
    """1.0 if the answer holds the same set of parts as a gold answer: none missing, none too many.

    Each gold answer is one whole list. Parts are compared as `auto` compares a gold answer, numbers as a whole.
    """
    golds, given, rules = gold_answers(record), read_parts(answer), Rules(relative_tolerance)
    identical = bool(answer.strip()) and answer in golds
    return float(identical or any(_same(given, read_parts(gold), rules) for gold in golds))


def read_parts(text: str) -> Parts:
    """The different parts of `text` between commas, semicolons, "&" and "and", and the brackets around the whole."""
    text = clean_value(";".join(line for line in text.splitlines() if line.strip()))
    opening, closing = (text[0], text[-1]) if in_brackets(text) else ("", "")
    parts, _ = split_parts(text[1:-1] if opening else text, _BETWEEN)
    clean = dict.fromkeys(clean_value(part) for part in parts)
    return Parts(opening, tuple(part for part in clean if part), closing)


def _same(given: Parts, gold: Parts, rules: Rules) -> bool:
    """Brackets may be left out on one side, but "(0, 1)" is not "[0, 1]", nor "[0, 1)" a list."""
    kinds = {given.opening + given.closing, gold.opening + gold.closing}
    if kinds & {"[)", "(]"} or "" not in kinds:
        return len(kinds) == 1 and same_set(given.parts, gold.parts, rules)
    return same_set(given.parts, gold.parts, rules)
