"""Solutions: an answer that stands at the end of its thinking, as in sets made for R1 or with chains of thought."""

from __future__ import annotations

import re

_TAGGED = re.compile(r"<(answer|conclusion)>(.*?)</\1>", re.DOTALL | re.IGNORECASE)
_FLAG = re.compile(r"(?:^|\n)[ \t*#]*(?:final )?answer[ *]*[:：][ *]*", re.IGNORECASE)
_MARKUP = re.compile(r"</?(?:think|thinking|reasoning|summary|caption|conclusion|answer)>", re.IGNORECASE)


def answer_of(text: str) -> tuple[str, str] | None:
    """The answer of a solution and the thinking before it, "" where there is none; None where `text` is no solution.

    A solution has one <answer>..</answer> or <CONCLUSION>..</CONCLUSION>, or else a last line that starts with
    "Answer:" and no other line that does.
    """
    found = list(_TAGGED.finditer(text))
    if len(found) == 1:
        answer, before = found[0][2], text[: found[0].start()]
    else:
        flags = list(_FLAG.finditer(text))
        answer = text[flags[-1].end() :] if len(flags) == 1 and not found else ""
        before = text[: flags[-1].start()] if flags else ""
        if "\n" in answer.strip():
            return None
    thinking = re.sub(r"\n{3,}", "\n\n", _MARKUP.sub("", before)).strip()
    return (answer.strip(), thinking) if answer.strip() else None
