"""Answers: that of a completion, split from its thinking, and the gold ones of a record."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice

from dyme.data.record import Record
from dyme.text.flag import flag_pattern
from dyme.text.sentences import sentence_ends
from dyme.text.visible import visible

_EMPHASIS = "*_`"
_QUOTES = "\"'“”‘’«»「」"
_CLOSING = {'"': '"', "'": "'", "“": "”", "„": "“”", "‘": "’", "«": "»", "「": "」", "”": "”", "’": "’", "»": "«"}
# emphasis of the first words ("**B**: dog")
_OPENED = re.compile(r"(\*{1,3}|_{1,3}|`{1,3})(?=[^\s*_`])(.*?\S)\1(?!\w)")
# marks that nothing opened: a single "*" may belong to the answer ("T2*"), a quote after a digit or letter is a prime
_LONE_MARKS = re.compile(r"(?:[_`]|(?<=\*)\*|\*(?=\*))+$|(?<=[^\W\d_]{2})[\"'”’»」]$")
_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_NAMED = re.compile(r"\\(?:text|textbf|mathrm|mathbf)\s*\{([^{}]*)\}")
_DOLLARS = re.compile(r"\$([^$]+)\$|\\\((.+)\\\)|\\\[(.+)\\\]")
_DELIMITERS = frozenset((r"\[", r"\(", "$$"))
_HEDGE = re.compile(r"\b(?:or|either)\b", re.IGNORECASE)
_HEADING = re.compile(r"(?:^|\n)[ \t]*#{1,6}$")
_LINE_MARK = re.compile(r"#{1,6} +")
_LEAD_IN = re.compile(
    r"(?:(?:so|thus|hence|therefore),? )?(?:(?:the|my|our) )?(?:(?:final|correct|right|best) )*"
    r"(?:answer|option|choice)(?: is ?:| is\b|:)",
    re.IGNORECASE,
)
# joiners shape the words of some scripts
_MARKS = re.compile("[\u00ad\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff]+")
MOST_PARTS = 8
"""Lines and sentences of a reply that are compared with a gold answer of several."""
MOST_LAYERS = 8
"""Layers of emphasis and quotes around an answer that are removed."""


@dataclass(frozen=True)
class Completion:
    """A completion in its parts.

    `thinking` is the text before the first flag (the whole text without a flag). `answer` is taken from the first
    non-empty line after the last flag: None if no answer was found, "" if nothing follows the flag. `flag_count`
    counts the flags. `guessed` is True if the text does not state the answer plainly: a LaTeX box without a flag,
    several boxes that differ, one that is never closed, or one beside an "or". `written` is all text after the flag,
    "" without one.
    """

    thinking: str
    answer: str | None
    flag_count: int
    guessed: bool = False
    written: str = field(default="", compare=False)


def write_reply(answer: str, flag: str, thinking: str | None = None, *, style: str = "think") -> str:
    """The reply that gives `answer`: in style "think" the thinking up to a flag of its own, then the flag and the
    answer; in style "direct" the answer alone. `read_completion` reads it."""
    if style == "direct":
        return answer
    # thinking that announces an answer of its own would teach a second flag, which is an invalid format
    before = flag_pattern(flag).split(thinking or "", maxsplit=1)[0].strip()
    return f"{before}\n{flag} {answer}" if before else f"{flag} {answer}"


def split_completion(text: str, flag: str = "Answer:") -> Completion:
    """Split at the answer flag, whose case and layout do not matter. Raises `ValueError` for a blank flag."""
    hits = list(flag_pattern(flag).finditer(text))
    if not hits:
        boxed, _ = _boxed(text)
        return Completion(text.strip(), boxed, 0, guessed=boxed is not None)
    after = _after(text, hits[-1])
    answer, guessed = _first_answer(after)
    # "**Answer:** 5" leaves an opening emphasis behind, "### Answer:" a heading; neither is thinking
    thinking = _HEADING.sub("", text[: hits[0].start()].rstrip().rstrip(_EMPHASIS).rstrip()).strip()
    return Completion(thinking, answer, len(hits), guessed, after)


def direct_completion(text: str, flag: str = "Answer:") -> Completion:
    """A completion that is an answer without thinking: the text after the flag, or all of it without a flag.

    Raises `ValueError` for a blank flag.
    """
    *_, last = [None, *flag_pattern(flag).finditer(text)]
    after = _after(text, last) if last else text
    answer, guessed = _first_answer(after)
    return Completion("", answer, 1, guessed, after)


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


def gold_as_written(completion: Completion, record: Record) -> str | None:
    """The gold answer that the text after the flag gives word for word, of those that `answer` would shorten: several
    lines or sentences, or markup that is part of them. Text may follow it on a new line or in a new sentence."""
    for gold in filter(_is_shortened, dict.fromkeys(record.answers)):
        wanted = {_seen(gold), _seen(gold).rstrip(".")} - {""}
        if any(wanted.intersection(_bare_forms(part)) for part in _parts(completion.written)):
            return gold
    return None


def clean_answer(text: str) -> str:
    """`text` without surrounding space, markdown emphasis and quotes, nor full stops at its end.

    Quotes go as a pair, or where they open only; what closes only is a prime ("f'", "5'3\"").
    """
    text = text.strip()
    for _ in range(MOST_LAYERS):
        text, before = _peeled(text), text
        if text == before:
            break
    return text


def first_sentence(text: str) -> str:
    """`text` up to a full stop after which a sentence of three words or more begins ("4. The red bar shows it.")."""
    end = next(sentence_ends(text), None)
    return text if end is None else clean_answer(text[:end])


def _peeled(text: str) -> str:
    """`text` without one layer of what `clean_answer` removes."""
    text = text.rstrip(".。").strip()
    if text[:1] in _EMPHASIS:
        whole = _OPENED.match(text)
        return (whole[2] + text[whole.end() :] if whole else text.lstrip(_EMPHASIS)).strip()
    closing = _CLOSING.get(text[:1], "")
    if closing:
        inside = text[1:-1]
        if len(text) > 1 and text[-1] in closing:
            # '"red" and "blue"' is no quote, and "'f''" is one of "f'"
            return text if inside.count(text[-1]) % 2 == 0 and text[-1] in inside else inside.strip()
        if not any(mark in text[1:] for mark in closing):
            return text[1:].strip()
    return text[:-16] + _LONE_MARKS.sub("", text[-16:]).rstrip()


def _after(text: str, flag: re.Match[str]) -> str:
    """What follows the flag, without the other end of emphasis that opens before it ("**Answer: 4**")."""
    before = text[: flag.start()].rstrip()
    mark = before[len(before.rstrip(_EMPHASIS)) :]
    after = text[flag.end() :]
    start = after.lstrip()
    if not mark or start.startswith(mark):
        return start.removeprefix(mark) if mark else after
    line, end, rest = start.partition("\n")
    return line.rstrip().removesuffix(mark) + end + rest


def _first_answer(text: str) -> tuple[str, bool]:
    """The answer in the first non-empty line of `text`, and whether taking it is a guess."""
    text = text if text.isascii() else _MARKS.sub("", text)
    lines = [line for line in map(_plain_line, text.splitlines()) if clean_answer(line) and line not in _DELIMITERS]
    line = next((line for line in lines if not _LEAD_IN.fullmatch(line)), lines[0] if lines else "")
    boxed, guessed = _boxed(line)
    if boxed is None:
        lead = _LEAD_IN.match(line)
        said = clean_answer(line[lead.end() :]) if lead else ""
        return _without_dollars(first_sentence(said or line)), False
    return boxed, guessed or bool(_HEDGE.search(_outside_boxes(line)))


def _plain_line(line: str) -> str:
    return _LINE_MARK.sub("", clean_answer(line), count=1)


def _without_dollars(text: str) -> str:
    """An answer that is all LaTeX mathematics, without its delimiters ("$5$" but not "$5")."""
    whole = _DOLLARS.fullmatch(text)
    if whole is None:
        return text
    return _plain_inside(whole[1] or whole[2] or whole[3])


@dataclass(frozen=True)
class _Box:
    """A LaTeX box from `start` to `end` of a text; for a nested box `content` is that of the inner one."""

    content: str
    closed: bool
    start: int
    end: int


def _boxed(text: str) -> tuple[str | None, bool]:
    """The content of the last non-empty LaTeX box (None without one), and whether taking it is a guess."""
    found = [box for box in _boxes(text) if box.content]
    if not found:
        return None, False
    last = found[-1]
    return last.content, not last.closed or any(other.content != last.content for other in found)


def _boxes(text: str) -> list[_Box]:
    hits = list(_BOX.finditer(text))
    found = []
    for hit, following in zip(hits, [*hits[1:], None]):
        depth, end, limit = 1, hit.end(), following.start() if following else len(text)
        while end < limit and depth and text[end] != "\n":
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            end += 1
        if depth and following and end == limit:
            continue
        inside = text[hit.end() : end if depth else end - 1]
        found.append(_Box(_plain_inside(inside), not depth, hit.start(), end))
    return found


@lru_cache(maxsize=1024)
def _plain_inside(mathematics: str) -> str:
    return clean_answer(_NAMED.sub(r"\1", mathematics))


def _outside_boxes(text: str) -> str:
    """What stands beside the boxes of `text`."""
    boxes = _boxes(text)
    starts = [0, *(box.end for box in boxes)]
    return "".join(text[start:end] for start, end in zip(starts, [*(box.start for box in boxes), len(text)]))


@lru_cache(maxsize=16384)
def _is_shortened(gold: str) -> bool:
    return _first_answer(gold)[0] != gold


def _parts(text: str) -> Iterator[str]:
    """`text`, and what of it comes before the end of each of its first lines and sentences."""
    text = text.strip()
    yield text
    offset = 0
    ends = []
    for line in islice(text.splitlines(keepends=True), MOST_PARTS):
        ends += [offset + end + 1 for end in islice(sentence_ends(line), MOST_PARTS)]
        offset += len(line)
        ends.append(offset)
    yield from (text[:end] for end in ends if end < len(text))


def _bare_forms(text: str) -> Iterator[str]:
    """`text` as it is seen, and with more and more of the emphasis, quotes and stops around it removed."""
    yield (form := _seen(text))
    for outer in (_EMPHASIS, _QUOTES):
        form = form.strip(outer).strip()
        yield form
    yield form.rstrip(".").strip(_EMPHASIS).strip()


def _seen(text: str) -> str:
    """`text` as it is seen, in any case."""
    return visible(text).casefold()
