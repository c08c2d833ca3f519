"""Multiple choice: which option an answer picks, by its text, its value or its label."""

from __future__ import annotations

import re
from functools import lru_cache
from string import ascii_uppercase

from dyme.data.record import Record
from dyme.rewards.answer import clean_answer, gold_answers
from dyme.rewards.values import Rules, clean_value, same_value
from dyme.text.normalise import normalise_text, written
from dyme.text.numbers import parse_number
from dyme.text.visible import visible

_LEAD_IN = re.compile(
    r"(?:(?:the |my )?(?:(?:final|correct|right|best) )*(?:answer|option|choice|letter)(?: is|:)? ?|it(?: i|'|’)s )"
    r"(?:(?:option|choice|letter) )?|(?:正确)?(?:答案|选项)(?:是|为)?:? ?|选(?:择|项)?:? ?",
    re.IGNORECASE,
)
_LABEL = re.compile(
    r"(?:[(\[<](?P<inside>[a-z])[)\]>]|(?P<bare>[a-z])(?P<mark> ?[).:,\]]| -| (?=\d|[(\[][^()\[\]]*[)\]]$))?)"
    r"(?:(?<= )|(?![^\W_]))",
    re.IGNORECASE,
)
_LABEL_AFTER = re.compile(r"(?P<text>.*\S) ?[(\[](?P<label>[a-z])[)\]]", re.IGNORECASE)
# what says no more than that the label is right
_IS_RIGHT = re.compile(
    r"is (?:the )?(?:correct|right|best|answer)(?: (?:one|answer|option|choice))?$|(?:because|since)\b"
)
_BETWEEN = re.compile(r"[,;/&]|\b(?:or|and)\b")
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
    identical = _same_text(answer, choices)
    if identical:
        return identical
    answer = clean_value(clean_answer(visible(answer)))
    lead = _LEAD_IN.match(answer)
    for text in (answer, clean_value(answer[lead.end() :])) if lead else (answer,):
        # the letter of "A) 42" is not an article, and that of the option "C. elegans" is not a label
        picked = _option_of(text, choices, drop_articles=False)
        picked = _labelled(text, choices) if picked is None else picked
        if picked is not None:
            return picked
    return _NONE


def _labelled(text: str, choices: tuple[str, ...]) -> Picked | None:
    """The option that `text` picks by label or loosely by words; empty for a label that its words contradict."""
    label = _LABEL.match(text)
    if label is None:
        after = _LABEL_AFTER.fullmatch(text)
        if after and _option_of(after["text"], choices) is not None:
            return _labelled(f"({after['label']}) {after['text']}", choices)
        return _option_of(text, choices)
    marked = bool(label["inside"] or label["mark"])
    loose = None if marked else _option_of(text, choices)
    if loose is not None:
        return loose
    index = ascii_uppercase.find((label["inside"] or label["bare"]).upper())
    if not 0 <= index < (len(choices) or len(ascii_uppercase)):
        return None
    same = _same_text(choices[index], choices) if choices else frozenset((index,))
    rest = clean_value(text[label.end() :].lstrip(" ).:,]->"))
    named = _option_of(rest, choices)
    if named is not None:
        return same if named & same else _NONE
    if any((_option_of(part.strip(), choices) or same) - same for part in _BETWEEN.split(rest)):
        return _NONE
    agrees = marked or not rest or _IS_RIGHT.match(rest)
    return same if agrees and not _other_labels(rest, choices) - same else None


def _other_labels(text: str, choices: tuple[str, ...]) -> Picked:
    """The labels that stand alone in `text`; "I" is a word unless there are as many options."""
    found = {ascii_uppercase.index(letter) for letter in _OTHER_LABEL.findall(text)}
    return frozenset(i for i in found if i < len(choices) or (not choices and i != ascii_uppercase.index("I")))


def _same_text(text: str, choices: tuple[str, ...]) -> Picked:
    seen = visible(text)
    return frozenset(i for i, each in enumerate(choices) if (each == text and text) or (seen and visible(each) == seen))


@lru_cache(maxsize=16384)
def _option_of(text: str, choices: tuple[str, ...], *, drop_articles: bool = True) -> Picked | None:
    """The option with this text, else with this value; None where none has it, or several that differ."""
    if not text:
        return None
    forms, form = _forms(choices), written(text)
    same = [i for i, each in enumerate(forms) if each == form]
    if not same:
        form = normalise_text(form, drop_articles=drop_articles)
        same = [i for i, each in enumerate(forms) if normalise_text(each, drop_articles=drop_articles) == form]
    if not same and _valued(text) and not _is_labelled(text, choices):
        same = [i for i, each in enumerate(forms) if _valued(each) and same_value(text, each, _RULES)]
    return frozenset(same) if len({forms[i] for i in same}) == 1 else None


@lru_cache(maxsize=4096)
def _forms(choices: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(written(clean_value(choice)) for choice in choices)


def _is_labelled(text: str, choices: tuple[str, ...]) -> bool:
    label = _LABEL.match(text)
    letter = label and (label["inside"] or (label["mark"] not in (None, " -") and label["bare"]))
    return bool(letter) and 0 <= ascii_uppercase.find(str(letter).upper()) < len(choices)


def _valued(text: str) -> bool:
    """Whether `text` is more than words."""
    return not text.replace(" ", "").isalpha() or parse_number(text) is not None
