"""Plain forms of text, so that two ways to write one answer compare equal."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

import snowballstemmer

_STOP_TEXT = """
a about after again all also although am an and any approximately are as at be because been before being between both
but by can could did do does doing down during each either even exactly few for from further had has have having he
hence her here him his how however i if in into is it its itself just let like may me might more most must my neither
no nor not now of off on once only or other our out over own per rather really same she should since so some still
such than that the their them then there therefore these they this those though through thus to too under until up
upon us very was we were what when where whether which while who whom whose why will with within without would yet you
your
"""
STOP_WORDS = frozenset(_STOP_TEXT.split())
"""Words that carry grammar, not content; "more", "less" and "total" are content in a chart."""

_ARTICLES = frozenset(("a", "an", "the"))
# "12%", "C#" and "R&D" mean something else without these, although Unicode calls them punctuation
_MEANINGFUL = frozenset("%‰#&@/")
_SILENT = frozenset(".'’`")


def plain(text: str) -> str:
    """One spelling for compatibility characters: any script's digits, "½" as " 1/2", "²" as "^2", minus signs.

    White space collapses to single blanks.
    """
    if not text.isascii():
        text = "".join(_plain_characters(text))
    return " ".join(text.split())


def _plain_characters(text: str) -> list[str]:
    out: list[str] = []
    raised = False
    for char in text:
        kind = unicodedata.decomposition(char).partition(" ")[0]
        form = unicodedata.normalize("NFKC", char)
        if kind == "<fraction>":
            # NFKC would run "1½" together into "11/2"
            form = " " + form
        if kind == "<super>" and not raised and not char.isalpha():
            form = "^" + form
        raised = kind == "<super>"
        out.extend(_plain_character(each) for each in form)
    return out


def _plain_character(char: str) -> str:
    if char in "\u2212\u2013":
        return "-"
    if char == "\u2044":
        return "/"
    return str(unicodedata.decimal(char)) if char.isdecimal() else char


def normalise_text(text: str, *, drop_articles: bool = True) -> str:
    """Case, white space, punctuation and articles removed; what makes a number stays ("3.5", "-5", "10:30").

    An article goes only where another word follows it ("Vitamin A" stays), and text of nothing but punctuation stays.
    """
    dropped = _ARTICLES if drop_articles else frozenset()
    text = plain(text).casefold()
    kept = "".join(_comparable(text, i) for i in range(len(text))).split()
    rest = [word for word, after in zip(kept, [*kept[1:], None]) if after is None or word not in dropped]
    return " ".join(rest) or text


def _comparable(text: str, i: int) -> str:
    char = text[i]
    if not unicodedata.category(char).startswith("P") or char in _MEANINGFUL:
        return char
    before, after = text[i - 1 : i], text[i + 1 : i + 2]
    if after.isdigit() and (before.isdigit() or (char in "-." and not before.isalnum())):
        return char
    return "" if char in _SILENT else " "


@lru_cache(maxsize=65536)
def stem(word: str) -> str:
    """The English Snowball stem of a lower-case word."""
    # a stemmer object keeps the word in itself, so threads cannot share one
    return str(snowballstemmer.stemmer("english").stemWord(word))


def words(text: str) -> list[str]:
    """The lower-case alphabetic words of `text` in order, possessives cut."""
    found = re.findall(r"[^\W\d_]+(?:'[^\W\d_]+)?", text.casefold().replace("’", "'"))
    return [word.partition("'")[0] for word in found]
