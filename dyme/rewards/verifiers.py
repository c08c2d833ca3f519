"""Verifiers: is this answer right? A verifier maps (answer text, record) to an accuracy in [0, 1].

Verifiers never raise on the text of a model. They raise `ValueError` on a record that they cannot judge.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable
from functools import partial
from string import ascii_uppercase

from dyme.data.record import Record
from dyme.rewards.answer import clean_answer, gold_answers
from dyme.rewards.formula import verify_math
from dyme.rewards.mathvista import verify_mathvista
from dyme.rewards.multi import verify_multi
from dyme.rewards.relaxed import verify_relaxed
from dyme.rewards.tabmwp import verify_tabmwp
from dyme.rewards.vqa import verify_vqa
from dyme.rewards.yes_no import verify_yes_no
from dyme.text.normalise import normalise_text, plain
from dyme.text.numbers import find_quantities, parse_number, same_quantity

Verifier = Callable[[str, Record], float]

_LEAD_IN = re.compile(
    r"(?:the )?(?:(?:correct|right|best) )?(?:answer|option|choice)(?: is|:)? ?(?:(?:option|choice) )?", re.IGNORECASE
)
_LABEL = re.compile(r"(?:[(\[](?P<inside>[a-z])[)\]]|(?P<bare>[a-z])(?P<mark> ?[).:,\]]| -)?)(?![^\W_])", re.IGNORECASE)
_OTHER_LABEL = re.compile(r"(?<![\w'])([A-Z])(?![\w'])")


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
        "mathvista": verify_mathvista,
        "tabmwp": verify_tabmwp,
    }
    if name not in verifiers:
        near = difflib.get_close_matches(name, verifiers, n=1, cutoff=0.0)
        raise ValueError(f"unknown verifier {name!r}: did you mean {near[0]!r}? Allowed: {', '.join(verifiers)}")
    return verifiers[name]


def verify_auto(answer: str, record: Record, relative_tolerance: float = 1e-6) -> float:
    """`choice` if the record has choices, `numeric` if every gold answer is a number, else `exact`."""
    if record.choices:
        return verify_choice(answer, record)
    if all(parse_number(gold) for gold in gold_answers(record)):
        return verify_numeric(answer, record, relative_tolerance)
    return verify_exact(answer, record)


def verify_exact(answer: str, record: Record) -> float:
    """1.0 if the answer equals a gold answer up to case, white space, punctuation and articles."""
    given = normalise_text(answer)
    return float(bool(given) and any(given == normalise_text(gold) for gold in gold_answers(record)))


def verify_numeric(answer: str, record: Record, relative_tolerance: float = 1e-6) -> float:
    """1.0 if the answer holds one number, repeated or not, and that equals a gold number.

    A gold answer that is not a number is compared as text.
    """
    found = find_quantities(answer)
    usable = bool(found) and all(each.whole and math.isclose(each.value, found[0].value) for each in found)
    targets = [parse_number(gold) for gold in gold_answers(record)]
    numbers = [target for target in targets if target] if usable else []
    if any(all(same_quantity(each, target, relative_tolerance) for each in found) for target in numbers):
        return 1.0
    return verify_exact(answer, record) if None in targets else 0.0


def verify_choice(answer: str, record: Record) -> float:
    """1.0 if the answer picks a gold option, by its label ("(B)", "b.", "option B"), its text, or both.

    Without choices in the record the gold answers must be labels, as with options spelled out in the question.
    """
    golds = {_pick(gold, record.choices) for gold in gold_answers(record)} - {None}
    if not golds:
        options = f"none of its choices {record.choices}" if record.choices else "no letter, and it has no choices"
        raise ValueError(
            f"record {record.id!r}: the gold answer {record.answers[0]!r} is {options}; correct the record or set "
            "reward.verifier to exact"
        )
    return float(_pick(answer, record.choices) in golds)


def _pick(answer: str, choices: tuple[str, ...]) -> int | None:
    """The index of the option that an answer picks; None if it picks none or several."""
    answer = clean_answer(plain(answer))
    lead = _LEAD_IN.match(answer)
    for text in (answer, clean_answer(answer[lead.end() :])) if lead else (answer,):
        # the letter of "A) 42" is not an article, and that of the option "C. elegans" is not a label
        verbatim = _option_of(text, choices, drop_articles=False)
        picked = verbatim if verbatim is not None else _labelled(text, choices)
        if picked is not None:
            return picked if picked >= 0 else None
    return None


def _labelled(text: str, choices: tuple[str, ...]) -> int | None:
    """The option that `text` picks by label or loosely by words; -1 for a label that contradicts the words after it."""
    label = _LABEL.match(text)
    if label is None:
        return _option_of(text, choices)
    marked = bool(label["inside"] or label["mark"])
    loose = None if marked else _option_of(text, choices)
    if loose is not None:
        return loose
    index = ascii_uppercase.find((label["inside"] or label["bare"]).upper())
    if not 0 <= index < (len(choices) or len(ascii_uppercase)):
        return None
    rest = clean_answer(text[label.end() :].lstrip(" ).:,]-"))
    named = _option_of(rest, choices)
    if named is not None:
        return index if named == index else -1
    return index if (marked or not rest) and not _OTHER_LABEL.search(rest) else None


def _option_of(text: str, choices: tuple[str, ...], *, drop_articles: bool = True) -> int | None:
    given = normalise_text(text, drop_articles=drop_articles)
    same = [i for i, choice in enumerate(choices) if given == normalise_text(choice, drop_articles=drop_articles)]
    return same[0] if given and len(same) == 1 else None
