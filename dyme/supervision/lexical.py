"""Lexical thinking checker: does a trace speak of the things and the numbers it should speak of?

t is the mean of two F1 scores over sets, one of stemmed content words and one of numbers, against the union of the
record's hint and facts. Sets, because saying a right word twice is worth nothing; two scores, because a few wrong
readings must not drown in many right words.
"""

from __future__ import annotations

import math
import re
from collections.abc import Set
from dataclasses import dataclass
from functools import lru_cache

from dyme.data.record import Record
from dyme.rewards.numbers import NUMBER_WORDS, find_quantities
from dyme.rewards.text import STOP_WORDS, plain, stem, words

# "1. Find the red bar" and "Step 2:" number the steps, not the picture
_ENUMERATION = re.compile(r"^[ \t]*(?:step[ \t]{1,3})?\d{1,2}[.):](?=[ \t])", re.MULTILINE | re.IGNORECASE)
# mostly a pronoun ("the red one")
_PRONOUN_ONE = re.compile(r"\bone\b", re.IGNORECASE)
_SKIPPED = STOP_WORDS | NUMBER_WORDS


@dataclass(frozen=True)
class Vocabulary:
    """The stemmed content words and the numbers of a text, as sets."""

    words: frozenset[str]
    numbers: frozenset[str]


def thinking_score(thinking: str, record: Record) -> float | None:
    """t in [0, 1]; None (not scored) where hint and facts of the record hold neither content word nor number."""
    reference = _reference(record.hint or "", record.facts or "")
    if not reference.words and not reference.numbers:
        return None
    given = vocabulary(thinking)
    scores = []
    if reference.words:
        scores.append(set_f1(given.words, reference.words))
    if reference.numbers:
        scores.append(set_f1(given.numbers, reference.numbers))
    return sum(scores) / len(scores)


def vocabulary(text: str) -> Vocabulary:
    """Content words and numbers of `text`; step numbers, stop words and the word "one" are neither."""
    text = without_step_numbers(text)
    values = (each.value for each in find_quantities(text))
    return Vocabulary(
        frozenset(stem(word) for word in words(plain(text)) if word not in _SKIPPED),
        frozenset(f"{value + 0.0:.10g}" for value in values if not math.isnan(value)),
    )


def without_step_numbers(text: str) -> str:
    """`text` without the numbers of its steps ("1.", "Step 2:") and without the word "one"."""
    return _PRONOUN_ONE.sub(" ", _ENUMERATION.sub(" ", text))


def set_f1(given: Set[str], reference: Set[str]) -> float:
    """2 |given & reference| / (|given| + |reference|), harmonic mean of precision and recall; 0 if both are empty."""
    size = len(given) + len(reference)
    return 2.0 * len(given & reference) / size if size else 0.0


@lru_cache(maxsize=16384)
def _reference(hint: str, facts: str) -> Vocabulary:
    return vocabulary(f"{hint}\n{facts}")
