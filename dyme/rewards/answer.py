"""Answers: that of a completion, split from its thinking, and the gold ones of a record."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from functools import lru_cache

from dyme.data.record import Record

_EMPHASIS = "*_`"
_QUOTES = "\"'“”‘’«»"
_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_NAMED = re.compile(r"\\(?:text|textbf|mathrm|mathbf)\s*\{([^{}]*)\}")
_DOLLARS = re.compile(r"\$([^$]+)\$|\\\((.+)\\\)|\\\[(.+)\\\]")
_DELIMITERS = frozenset((r"\[", r"\(", "$$"))
_HEDGE = re.compile(r"\b(?:or|either)\b", re.IGNORECASE)
_HEADING = re.compile(r"(?:^|\n)[ \t]*#{1,6}$")
_LINE_MARK = re.compile(r"#{1,6} +")
# a label ("B. Dog"), initials ("U.S. Army") and titles end in a full stop without ending a sentence
_SENTENCE_END = re.compile(r"(?:(?<=\w\w)|(?<=[\d%)\]}*]))[.!?][*_`\"'”’)]*\s+(?=[A-Z][\w']*,?(?:\s+\S+){2})")
_TITLES = re.compile(r"(?:^|\W)(?:st|mr|mrs|ms|dr|jr|sr|mt|ft|vs|prof|inc|ltd|co|etc)$", re.IGNORECASE)


@dataclass(frozen=True)
class Completion:
    """A completion in its parts.

    `thinking` is the text before the first flag (the whole text without a flag). `answer` is taken from the first
    non-empty line after the last flag: None if no answer was found, "" if nothing follows the flag. `flag_count`
    counts the flags. `guessed` is True if the text does not state the answer plainly: a LaTeX box without a flag,
    several boxes that differ, one that is never closed, or one beside an "or".
    """

    thinking: str
    answer: str | None
    flag_count: int
    guessed: bool = False


def split_completion(text: str, flag: str = "Answer:") -> Completion:
    """Split at the answer flag, whose case does not matter. Raises `ValueError` for a blank flag."""
    hits = list(_flag_pattern(flag).finditer(text))
    if not hits:
        boxed, _ = _boxed(text)
        return Completion(text.strip(), boxed, 0, guessed=boxed is not None)
    answer, guessed = _first_answer(text[hits[-1].end() :])
    # "**Answer:** 5" leaves an opening emphasis behind, "### Answer:" a heading; neither is thinking
    thinking = _HEADING.sub("", text[: hits[0].start()].rstrip().rstrip(_EMPHASIS).rstrip()).strip()
    return Completion(thinking, answer, len(hits), guessed)


def direct_completion(text: str, flag: str = "Answer:") -> Completion:
    """A completion that is an answer without thinking: the text after the flag, or all of it without a flag.

    Raises `ValueError` for a blank flag.
    """
    *_, after = _flag_pattern(flag).split(text)
    answer, guessed = _first_answer(after)
    return Completion("", answer, 1, guessed)


def read_completion(text: str, flag: str, style: str) -> Completion:
    """A completion split for the style of its prompt: "think" or "direct"."""
    return split_completion(text, flag) if style == "think" else direct_completion(text, flag)


def format_score(completion: Completion, min_thinking_chars: int = 0) -> float:
    """1.0 for exactly one flag, an answer plainly after it and enough characters of thinking before it, else 0.0."""
    valid = completion.flag_count == 1 and bool(completion.answer) and not completion.guessed
    return float(valid and len(completion.thinking) >= min_thinking_chars)


def gold_answers(record: Record) -> tuple[str, ...]:
    """The accepted answers, each once. Raises `ValueError` for a record that has none."""
    return tuple(dict.fromkeys(gold_votes(record)))


def gold_votes(record: Record) -> tuple[str, ...]:
    """The accepted answers, repeated where people agree. Raises `ValueError` for a record that has none."""
    if not record.answers:
        raise ValueError(f"record {record.id!r} has no gold answer: give it one or drop it from the data")
    return record.answers


def clean_answer(text: str) -> str:
    """`text` without surrounding space, markdown emphasis and quotes, nor full stops at its end."""
    text = text.strip()
    while (bare := text.strip(_EMPHASIS + _QUOTES).rstrip(".").strip()) != text:
        text = bare
    return text


def first_sentence(text: str) -> str:
    """`text` up to a full stop after which a sentence of three words or more begins ("4. The red bar shows it.")."""
    for end in _SENTENCE_END.finditer(text):
        if not _TITLES.search(text[max(0, end.start() - 6) : end.start()]):
            return clean_answer(text[: end.start()])
    return text


def _first_answer(text: str) -> tuple[str, bool]:
    """The answer in the first non-empty line of `text`, and whether taking it is a guess."""
    lines = (_LINE_MARK.sub("", clean_answer(line), count=1) for line in text.splitlines())
    line = next((line for line in lines if clean_answer(line) and line not in _DELIMITERS), "")
    boxed, guessed = _boxed(line)
    if boxed is None:
        return _bare(first_sentence(line)), False
    return boxed, guessed or bool(_HEDGE.search(_BOX.sub("", line)))


def _bare(text: str) -> str:
    """An answer that is all LaTeX mathematics, without its delimiters ("$5$" but not "$5")."""
    whole = _DOLLARS.fullmatch(text)
    if whole is None:
        return text
    inside = _NAMED.sub(r"\1", whole[1] or whole[2] or whole[3])
    return clean_answer(inside)


def _boxed(text: str) -> tuple[str | None, bool]:
    """The content of the last non-empty LaTeX box (None without one), and whether taking it is a guess."""
    found = [(content, closed) for content, closed in _boxes(text) if content]
    if not found:
        return None, False
    content, closed = found[-1]
    return content, not closed or any(other != content for other, _ in found)


def _boxes(text: str) -> list[tuple[str, bool]]:
    """The content of each box of `text`, and whether it is closed; for a nested box the inner one."""
    hits = list(_BOX.finditer(text))
    found = []
    for hit, following in itertools.zip_longest(hits, hits[1:]):
        depth, end, limit = 1, hit.end(), following.start() if following else len(text)
        while end < limit and depth and text[end] != "\n":
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            end += 1
        if depth and following and end == limit:
            continue
        inside = text[hit.end() : end if depth else end - 1]
        found.append((clean_answer(_NAMED.sub(r"\1", inside)), not depth))
    return found


@lru_cache(maxsize=16)
def _flag_pattern(flag: str) -> re.Pattern[str]:
    flag = flag.strip()
    if not flag:
        raise ValueError('the answer flag is blank: set it to some text, for example "Answer:"')
    # markdown may put the colon outside the emphasis: "**Answer**: 4"
    words = re.escape(flag[:-1]) + r"[*_`]*:" if flag.endswith(":") and flag != ":" else re.escape(flag)
    return re.compile(words, re.IGNORECASE)
