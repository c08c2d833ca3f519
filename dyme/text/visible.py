"""The visible form of a text: what a reader sees, whichever code points spell it."""

from __future__ import annotations

import re
import unicodedata

_FOLDED = frozenset(("<wide>", "<narrow>", "<noBreak>", "<initial>", "<medial>", "<final>", "<isolated>"))
_LIGATURES = range(0xFB00, 0xFB50)
_STYLED = range(0x1D400, 0x1D800)
# fillers and selectors that are drawn as nothing, though Unicode calls them letters or marks
_FILLERS = frozenset((0x34F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x3164, 0xFFA0, *range(0x180B, 0x1810)))
_SELECTORS = frozenset((*range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0)))
# the flags of England, Scotland and Wales differ in nothing but tags, which are format characters
_FLAG = re.compile("(\U0001f3f4[\U000e0020-\U000e007e]+\U000e007f)")


class _Forms(dict[int, str]):
    """The visible form of each code point, found when it is first asked for."""

    def __missing__(self, code: int) -> str:
        self[code] = form = _visible_form(chr(code))
        return form


_FORMS = _Forms()


def visible(text: str) -> str:
    """`text` in NFC without what cannot be seen, so that texts that look equal are equal.

    Format and control characters and variation selectors are removed. Full-width, half-width, styled and presentation
    forms become the plain characters. White space collapses to single blanks. Nothing else changes.
    """
    if not text.isascii():
        pieces = _FLAG.split(text)
        pieces[::2] = [unicodedata.normalize("NFC", piece.translate(_FORMS)) for piece in pieces[::2]]
        text = "".join(pieces)
    elif not text.isprintable():
        text = text.translate(_FORMS)
    return " ".join(text.split())


def _visible_form(char: str) -> str:
    kind, code = unicodedata.category(char), ord(char)
    if kind == "Cf" or (kind == "Cc" and not char.isspace()) or code in _FILLERS or code in _SELECTORS:
        return ""
    tag = unicodedata.decomposition(char).partition(" ")[0]
    folded = tag in _FOLDED or code in _LIGATURES or code in _STYLED
    return unicodedata.normalize("NFKC", char) if folded else char
