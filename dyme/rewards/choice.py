"""Multiple choice: which option an answer picks, by its text, its value or its label."""

from __future__ import annotations

import re
from functools import lru_cache
from string import ascii_uppercase

from dyme.data.record import Record
from dyme.rewards.answer import gold_answers
from dyme.rewards.values import Rules, clean_value, same_value
from dyme.text.normalise import normalise_text, written
from dyme.text.visible import visible

_LEAD_IN = re.compile(
    r"(?:the )?(?:(?:correct|right|best) )?(?:answer|option|choice)(?: is|:)? ?(?:(?:option|choice) )?", re.IGNORECASE
)
_LABEL = re.compile(r"(?:[(\[](?P<inside>[a-z])[)\]]|(?P<bare>[a-z])(?P<mark> ?[).:,\]]| -)?)(?![^\W_])", re.IGNORECASE)
_OTHER_LABEL = re.compile(r"(?<![\w'])([A-Z])(?![\w'])")
_NONE: frozenset[int] = frozenset()
_RULES = Rules(1e-9)

Picked = frozenset[int]
"""The index of an option, or those of all options with the same text; empty for none or for several that differ."""


def verify_choice(answer: str, record: Record) -> float:
    """1.0 if the answer picks a gold option, by its label ("(B)", "b.", "option B"), its text or value, or both.

    Without choices in the record the gold answers must be labels, as with options spelled out in the question.
    """
    golds = frozenset().union(*(pick(gold, record.choices) for gold in gold_answers(record)))
    if not golds:
        options = f"none of its choices {record.choices}" if record.choices else "no letter, and it has no choices"
        raise ValueError(
            f"record {record.id!r}: the gold answer {record.answers[0]!r} is {options}; correct the record or set "
            "reward.verifier to exact"
        )
    return float(bool(pick(answer, record.choices) & golds))


def pick(answer: str, choices: tuple[str, ...]) -> Picked:
    """The option that an answer picks."""
    identical = frozenset(i for i, choice in enumerate(choices) if visible(choice) == visible(answer))
    if identical and answer.strip():
        return identical
    answer = clean_value(answer)
    lead = _LEAD_IN.match(answer)
    for text in (answer, clean_value(answer[lead.end() :])) if lead else (answer,):
        # the letter of "A) 42" is not an article, and that of the option "C. elegans" is not a label
        picked = _option_of(text, choices, drop_articles=False)
        picked = _labelled(text, choices) if picked is None else picked
        if picked is not None:
            return picked
    return _NONE


def _labelled(text: str, choices: tuple[str, ...]) -> Picked | None:
    """The option that `text` picks by label or loosely by words; empty for a label that contradicts the words after it."""
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
    same = frozenset(i for i, choice in enumerate(choices) if visible(choice) == visible(choices[index])) | {index}
    rest = clean_value(text[label.end() :].lstrip(" ).:,]-"))
    named = _option_of(rest, choices)
    if named is not None:
        return same if named & same else _NONE
    return same if (marked or not rest) and not _OTHER_LABEL.search(rest) else None


@lru_cache(maxsize=16384)
def _option_of(text: str, choices: tuple[str, ...], *, drop_articles: bool = True) -> Picked | None:
    """The option with this text or value; None where no option has it, and where options that differ have."""
    if not text:
        return None
    forms = _forms(choices)
    for matches in (
        lambda form: form == written(text),
        lambda form: (
            normalise_text(form, drop_articles=drop_articles) == normalise_text(text, drop_articles=drop_articles)
        ),
        lambda form: _valued(form) and _valued(text) and same_value(text, form, _RULES),
    ):
        same = frozenset(i for i, form in enumerate(forms) if matches(form))
        if same:
            return same if len({forms[i] for i in same}) == 1 else None
    return None


@lru_cache(maxsize=4096)
def _forms(choices: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(written(clean_value(choice)) for choice in choices)


def _valued(text: str) -> bool:
    """Whether `text` is more than words."""
    return any(not char.isalpha() and not char.isspace() for char in text)
