"""Verifiers: is this answer right? A verifier maps (answer text, record) to an accuracy in [0, 1].

Verifiers never raise on the text of a model. They raise `ValueError` on a record that they cannot judge.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from dyme.data.record import Record
from dyme.rewards.answer import gold_answers
from dyme.rewards.choice import verify_choice
from dyme.rewards.dates import read_date
from dyme.rewards.formula import verify_math
from dyme.rewards.mathvista import verify_mathvista
from dyme.rewards.multi import verify_multi
from dyme.rewards.relaxed import verify_relaxed
from dyme.rewards.tabmwp import verify_tabmwp
from dyme.rewards.values import Rules, clean_value, same_as_any
from dyme.rewards.vqa import verify_vqa
from dyme.rewards.yes_no import verify_yes_no
from dyme.text.numbers import Quantity, each_quantity, parse_number, same_quantity
from dyme.text.visible import visible

Verifier = Callable[[str, Record], float]

MAX_CHARS = 13_000
"""Longest answer that is read; what a verdict takes grows with the length."""

# "5 - 5" and "1 : 1" are no number said twice, "|-5|" and "5!" are other numbers, "over 5" a bound
_JOINED = re.compile(r"\d ?[:±-] ?\d|^-?\|.*\|$|^-?\d+!|^(?:over|under|above|below|no|never) (?=[\d$])", re.IGNORECASE)
_LITERAL = Rules(literal=True)


def get_verifier(name: str, *, relative_tolerance: float = 1e-6) -> Verifier:
    """The verifier called `name`: auto, exact, numeric, choice, relaxed, vqa, yes_no, math, multi, mathvista
    or tabmwp.

    `relative_tolerance` is the error allowed to a number as a fraction of the gold value; text has none, and `relaxed`,
    `mathvista` and `tabmwp` have their own. Raises `ValueError` for an unknown name or a tolerance outside [0, 1).
    """
    if not 0.0 <= relative_tolerance < 1.0:
        raise ValueError(f"relative_tolerance must be at least 0 and below 1, got {relative_tolerance}")
    verifiers: dict[str, Verifier] = {
        "auto": partial(verify_auto, relative_tolerance=relative_tolerance),
        "exact": verify_exact,
        "numeric": partial(verify_numeric, relative_tolerance=relative_tolerance),
        "choice": verify_choice,
        "relaxed": verify_relaxed,
        "vqa": verify_vqa,
        "yes_no": verify_yes_no,
        "math": partial(verify_math, relative_tolerance=relative_tolerance),
        "multi": partial(verify_multi, relative_tolerance=relative_tolerance),
        "mathvista": partial(_as_seen, verify_mathvista),
        "tabmwp": partial(_as_seen, verify_tabmwp),
    }
    if name not in verifiers:
        near = difflib.get_close_matches(name, verifiers, n=1, cutoff=0.0)
        raise ValueError(f"unknown verifier {name!r}: did you mean {near[0]!r}? Allowed: {', '.join(verifiers)}")
    return partial(_bounded, verifiers[name])


def _bounded(verifier: Verifier, answer: str, record: Record) -> float:
    """The verdict of `verifier`, or for an answer of more than `MAX_CHARS` whether a gold answer looks the same."""
    seen = visible(answer)
    if max(len(answer), len(seen)) <= MAX_CHARS:
        return verifier(answer, record)
    return float(any(answer == gold or seen == visible(gold) for gold in gold_answers(record)))


def _as_seen(verifier: Verifier, answer: str, record: Record) -> float:
    """The verdict on answer, gold answers and options in their visible forms."""
    golds, choices = (tuple(map(visible, texts)) for texts in (record.answers, record.choices))
    return verifier(visible(answer), replace(record, answers=golds, choices=choices))


def verify_auto(answer: str, record: Record, relative_tolerance: float = 1e-6) -> float:
    """`choice` if the record has choices, else `numeric`; a number among gold answers of other kinds is a text."""
    if record.choices:
        return verify_choice(answer, record)
    golds = gold_answers(record)
    numbers = [gold for gold in golds if parse_number(clean_value(gold))]
    if len(golds) == 1 or len(numbers) in (0, len(golds)):
        return verify_numeric(answer, record, relative_tolerance)
    rest = [gold for gold in golds if gold not in numbers]
    return float(same_as_any(answer, numbers, _LITERAL) or same_as_any(answer, rest, Rules(relative_tolerance)))


def verify_exact(answer: str, record: Record) -> float:
    """1.0 if the answer equals a gold answer up to case, white space, articles and the punctuation of running text."""
    return float(same_as_any(answer, gold_answers(record), _LITERAL))


def verify_numeric(answer: str, record: Record, relative_tolerance: float = 1e-6) -> float:
    """1.0 if the answer holds one number, repeated or not, and that equals a gold number.

    A gold answer that is not a number is compared as what it is: an expression, a list, a date, a text.
    """
    given, rules = clean_value(answer), Rules(relative_tolerance)
    for gold in gold_answers(record):
        number = parse_number(clean_value(gold))
        if (number and _says(given, number, relative_tolerance)) or (
            not number and same_as_any(answer, (gold,), rules)
        ):
            return 1.0
    return float(bool(answer.strip()) and answer in gold_answers(record))


def _says(given: str, number: Quantity, tolerance: float) -> bool:
    """Whether `given` holds numbers that are all the same, and equal to `number`."""
    # the 3 of "March 3" is no number by itself
    if _JOINED.search(given) or read_date(given) is not None:
        return False
    first = None
    for each in each_quantity(given):
        first = first or each
        same = each.whole and math.isclose(each.value, first.value)
        if not same or not same_quantity(each, number, tolerance):
            return False
    return first is not None
