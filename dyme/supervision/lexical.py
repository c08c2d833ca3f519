"""Lexical thinking checker: does a trace name the right things and numbers?

    t = (F1(content words) + F1(numbers)) / 2 * (1 - w c)

Both F1 scores are over sets, of stemmed content words and of numbers, against the union of the record's hint and facts.
Sets, so that repeating a right word gains nothing; two scores, so that a few wrong readings do not drown in many right
words. c is the share of the trace's different readings that the record's facts contradict (readings.py), and w the
weight of this penalty: the wrong number of one mark is often the right one of another, or stands in a careless hint,
and so costs no F1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Set
from dataclasses import dataclass
from functools import lru_cache, partial

from dyme.data.record import Record
from dyme.settings.supervision import SupervisionConfig
from dyme.supervision.readings import contradicted_share, without_step_numbers
from dyme.text.normalise import STOP_WORDS, plain, stem, words
from dyme.text.numbers import NUMBER_WORDS, find_quantities

_SKIPPED = STOP_WORDS | NUMBER_WORDS


Checker = Callable[[str, Record], float | None]
"""t of a trace of a record, None if there is nothing to compare it with."""


@dataclass(frozen=True)
class Vocabulary:
    """The stemmed content words and the numbers of a text, as sets."""

    words: frozenset[str]
    numbers: frozenset[str]


def thinking_score(thinking: str, record: Record, penalty: float = 0.0) -> float | None:
    """t in [0, 1], with `penalty` in [0, 1] as w; None (not scored) if hint and facts of the record hold neither
    content word nor number."""
    given, reference = vocabulary(thinking), _reference(record.hint or "", record.facts or "")
    pairs = ((given.words, reference.words), (given.numbers, reference.numbers))
    scores = [set_f1(ours, theirs) for ours, theirs in pairs if theirs]
    if not scores:
        return None
    t = sum(scores) / len(scores)
    return t * (1.0 - penalty * contradicted_share(thinking, record.facts)) if penalty and t else t


def lexical_checker(cfg: SupervisionConfig) -> Checker | None:
    """The lexical checker with the penalty of the settings; None if thinking is not checked."""
    return None if cfg.checker == "none" else partial(thinking_score, penalty=cfg.contradiction_penalty)


def vocabulary(text: str) -> Vocabulary:
    """Content words and numbers of `text`; step numbers, stop words and the word "one" are neither."""
    text = without_step_numbers(text)
    values = (each.value for each in find_quantities(text))
    return Vocabulary(
        frozenset(stem(word) for word in words(plain(text)) if word not in _SKIPPED),
        frozenset(f"{value + 0.0:.10g}" for value in values if not math.isnan(value)),
    )


def set_f1(given: Set[str], reference: Set[str]) -> float:
    """2 |given & reference| / (|given| + |reference|), harmonic mean of precision and recall; 0 if both are empty."""
    size = len(given) + len(reference)
    return 2.0 * len(given & reference) / size if size else 0.0


@lru_cache(maxsize=16384)
def _reference(hint: str, facts: str) -> Vocabulary:
    return vocabulary(f"{hint}\n{facts}")
