"""Options picked as published metrics do it: by letter, or else the one most like the answer."""

from __future__ import annotations

import re
from collections.abc import Callable
from string import ascii_uppercase

from dyme.rewards.answer import clean_answer

MAX_CHARS = 300
"""Longer answers pick no option by likeness, which takes time in proportion to the length."""

_BRACKETED = re.compile(r"\(([A-Za-z])\)")
_LETTER = re.compile(r"(?:(?i:option|choice) )?\(?([A-Za-z])(?:[).:]+(?:\s|$)|$)")


def most_like(answer: str, choices: tuple[str, ...], likeness: Callable[[str, str], float]) -> str | None:
    """The option that `answer` is, whose letter it gives, or to which it has the greatest `likeness` above 0.

    None where two options are equally like it, and where it gives several letters.
    """
    if answer in choices:
        return answer
    answer = clean_answer(answer)
    letters = {letter.upper() for letter in _BRACKETED.findall(answer)}
    if label := _LETTER.match(answer):
        letters.add(label[1].upper())
    picked = [choices[at] for letter in letters if (at := ascii_uppercase.index(letter)) < len(choices)]
    if letters:
        return picked[0] if len(letters) == len(picked) == 1 else None
    if len(answer) > MAX_CHARS or _names_several(answer, choices):
        return None
    likenesses = {choice: likeness(answer, choice) for choice in choices}
    best = max(likenesses.values(), default=0.0)
    nearest = [choice for choice, value in likenesses.items() if value == best > 0.0]
    return nearest[0] if len(nearest) == 1 else None


def _names_several(answer: str, choices: tuple[str, ...]) -> bool:
    """Whether whole words of `answer` are those of several options, none of which is part of another."""
    forms = {choice.strip().casefold() for choice in choices} - {""}
    named = [form for form in forms if _holds(answer.casefold(), form)]
    return sum(not any(form != other and _holds(other, form) for other in named) for form in named) > 1


def _holds(text: str, words: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(words)}(?!\w)", text) is not None


def edit_distance(a: str, b: str) -> int:
    """Fewest insertions, deletions and replacements of characters that turn `a` into `b` (Levenshtein)."""
    row = list(range(len(b) + 1))
    for i, ours in enumerate(a, 1):
        corner, row[0] = row[0], i
        for j, theirs in enumerate(b, 1):
            corner, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, corner + (ours != theirs))
    return row[-1]
