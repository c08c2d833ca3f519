"""Where the first sentence of a text ends."""

from __future__ import annotations

import re
from collections.abc import Iterator

_CLOSING = "*_`\"'”’»)\\]}"
# a stop, and after it a sentence of three words or more; scripts without blanks need five characters
_STOP = re.compile(
    rf"[.!?][{_CLOSING}$]*\s+(?=(?P<word>[^\W\d_][\w'’]*),?(?:\s+\S+){{2}})|[。！？](?=\s*[^\s。！？]{{5}})"
)
_TOKEN = re.compile(r"(?:(?P<before>\S+)\s+)?(?P<token>\S+)$")
_OPENING = "([{\"'“‘«*_`$"
_LABELS = frozenset("ABCDEFGHIJabcdefghij")
_INITIALS = re.compile(r"[^\W\d_](?:\.[^\W\d_])*")
_NEVER = frozenset(("mr", "mrs", "ms", "dr", "prof", "mt", "vs"))
_ABBREVIATIONS = frozenset(("st", "jr", "sr", "ft", "inc", "ltd", "co", "corp", "etc", "approx"))
_STARTER_TEXT = """
a according after all also although an and as at based because before both but by each every for from given he hence her
here his how however i if in it its looking many most my of on one only or our she since so some that the their then
there therefore these they this those thus to two we what when where which while who with you your
"""
_STARTERS = frozenset(_STARTER_TEXT.split())
"""Words that begin a sentence rather than continue a name ("U.S. The", but "U.S. Army")."""


def sentence_ends(text: str) -> Iterator[int]:
    """Offsets of the stops after which another sentence begins, in order.

    The stop of a label ("B. Dog") and of a title ends no sentence; that of initials and abbreviations ("P.M.", "U.S.",
    "Inc.") does where a word follows that begins sentences.
    """
    for stop in _STOP.finditer(text):
        word = stop["word"]
        if word is None or (not word[0].islower() and _ends(text, stop, word)):
            yield stop.start()


def _ends(text: str, stop: re.Match[str], word: str) -> bool:
    found = _TOKEN.search(text, max(0, stop.start() - 64), stop.start())
    token = found["token"].lstrip(_OPENING) if found else ""
    if found is None or not token or token.endswith(".."):  # an ellipsis
        return False
    if text[stop.start()] != ".":
        return True
    if token in _LABELS and not text[: stop.start() - 1].strip(_OPENING + " "):
        return False
    if token.casefold() in _NEVER:
        return False
    unit = bool(found["before"]) and found["before"][-1].isdigit() and len(token) == 1
    doubtful = _INITIALS.fullmatch(token) is not None or token.casefold() in _ABBREVIATIONS
    return unit or not doubtful or word.casefold() in _STARTERS
