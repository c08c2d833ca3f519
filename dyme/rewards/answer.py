"""Where a completion stops thinking and starts to answer."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

_EMPHASIS = "*_`"
_QUOTES = "\"'“”‘’«»"


@dataclass(frozen=True)
class Completion:
    """A completion in its parts.

    `thinking` is what precedes the first flag (the whole text where there is none). `answer` is the first non-empty
    line after the last flag: None without a flag, "" where nothing follows it. `flag_count` counts the flags.
    """

    thinking: str
    answer: str | None
    flag_count: int


def split_completion(text: str, flag: str = "Answer:") -> Completion:
    """Split at the answer flag, whose case does not matter. Raises `ValueError` for a blank flag."""
    hits = list(_flag_pattern(flag).finditer(text))
    if not hits:
        return Completion(text.strip(), None, 0)
    lines = (clean_answer(line) for line in text[hits[-1].end() :].splitlines())
    # "**Answer:** 5" leaves an opening emphasis behind, which nobody thought
    thinking = text[: hits[0].start()].rstrip().rstrip(_EMPHASIS).strip()
    return Completion(thinking, next((line for line in lines if line), ""), len(hits))


def format_score(completion: Completion, min_thinking_chars: int = 0) -> float:
    """1.0 for exactly one flag, an answer after it and enough characters of thinking before it, else 0.0."""
    valid = completion.flag_count == 1 and bool(completion.answer)
    return float(valid and len(completion.thinking) >= min_thinking_chars)


def clean_answer(text: str) -> str:
    """`text` without surrounding space, markdown emphasis and quotes, nor full stops at its end."""
    text = text.strip()
    while True:
        bare = text.strip(_EMPHASIS + _QUOTES).rstrip(".").strip()
        if bare == text:
            return text
        text = bare


@lru_cache(maxsize=16)
def _flag_pattern(flag: str) -> re.Pattern[str]:
    if not flag.strip():
        raise ValueError('the answer flag is blank: set it to some text, for example "Answer:"')
    return re.compile(re.escape(flag.strip()), re.IGNORECASE)
