"""Plain forms of text, so that two ways to write one answer compare equal."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

import snowballstemmer

from dyme.text.visible import visible

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
_SPELLINGS = dict.fromkeys("‐‑‒–−", "-") | {"\u2044": "/", "\u2215": "/", "\u066a": "%", "\u066b": ".", "\u066c": ","}
_LOOK_ALIKE = "/⧸ :∶꞉ *∗⁎ ·⋅∙ ×✕✖⨯╳ ÷➗ +➕ -➖˗ |∣❘ ~∼〜⁓ ≤⩽≦ ≥⩾≧ <﹤ >﹥ °º˚ Δ∆△ 'ʹʼ ^ˆ"
_SPELLINGS |= {alike: group[0] for group in _LOOK_ALIKE.split() for alike in group[1:]}
_SPELLINGS |= {"،": ",", "؛": ";", "、": ", ", "。": ".", "′": "'", "″": "''", "∘": "°"}
_PRIMES = str.maketrans({"’": "'", '"': "''", "”": "''"})
_LETTERLIKE = range(0x2100, 0x2150)

# every pattern takes time in proportion to the text: none can match one stretch in two ways
_EMPHASIS = re.compile(r"(?<!\w)(\*{1,3}|_{1,3}|`{1,3})(?![\s*_`])([^*_`]+)(?<!\s)\1(?!\w)")
_QUOTED = re.compile(r"(?<!\w)(?:['‘]([^'‘’]+)['’]|[\"“„«]([^\"“”„«»]+)[\"“”»])(?!\w)")
_MARKS_OF_QUOTE = re.compile(r"((?:(?<![^\W\d_])[^\W\d_](?!\w)|[\d)\]}])(?:'+|[’”\"])(?![^\W\d_]))|['‘’‚‛\"“”„«»‹›`´]")
_POWER = re.compile(r"(?<=[\w)\]}])\*\*(?=[-\w({])")
# "H_2O" is "H2O", and "Na^+" is "Na+"
_CHEMICAL = re.compile(r"(?<![\w^])(?:[A-Z][a-z]?(?:_?\d{1,2})?){2,}(?![a-z])")
_CHARGE = re.compile(r"(?<=[A-Za-z])\^(?=[-+](?![\w({]))")
_OPERATORS = "-+*/^=<>≤≥≠≈±×÷·∪∩→←↔⇒⇔∧∨⊥∥∈∉⊂⊆|~:;&"
_BLANKS_AT_MARKS = re.compile(rf" (?=[{_OPERATORS}%‰°)\]}}])|(?<=[{_OPERATORS}∠Δ(\[{{$€£¥₹]) |(?<=\d') (?=\d)")
# punctuation of running text, each with what takes its place; what is left belongs to the answer
_RUNNING = [
    (re.compile(r"[—―]"), "-"),
    (re.compile(r"^- (?=[^\W\d_]{2})"), ""),
    # a hyphen or dash beside a word; between numbers and single letters it is a minus
    (re.compile(r"(?<=[^\W\d_]{2})(?<!\bln)(?<!\b(?:sin|cos|tan|log))-(?=\w)|(?<=\w)-(?=[^\W\d_]{2})"), " "),
    (re.compile(r"(?<=[^\W\d_]{2}) - (?=[^\W\d_]\w)|(?<=[^\W\d_]\w) - (?=[^\W\d_]{2})"), " "),
    (re.compile(r"(?<=[^\W\d_]{2})_(?=\w)|(?<=\w)_(?=[^\W\d_]{2})|(?<![^\W_)\]}])_+|_+(?![\w({])"), " "),
    # a comma within a number stays, one between other values parts them
    (re.compile(r"(?<=[^\W\d_]{2}) ?[,;]|[,;](?= ?[^\W\d_]{2})|^[,;]|[,;]$"), " "),
    (re.compile(r"(?<=\d), (?=\d)|,(?!\d)|(?<!\d),"), ";"),
    (re.compile(r"(?<=[^\W_]) : (?=[^\W_])|(?<=\d) ?: ?(?=\d)"), ":"),
    (re.compile(r":(?!\S)|(?<!\S):"), " "),
    (re.compile(r"\.{2,}|…"), " "),
    (re.compile(r"\.(?!\d)|(?<=[^\W\d])\."), ""),
    (re.compile(r"[?¿¡]|(?<=[^\W\d_]{2})!+"), ""),
    # an aside ("Paris (France)") or a label, but no bracket that a formula could have
    (
        re.compile(r"(?:^|(?<=\w ))[(\[](?=[^()\[\]]*[^\W\d_]{2})((?:[^\W_]|[ .,'/&]|-(?! ))*)[)\]](?=[\s,.;:]|$)"),
        r"\1",
    ),
    (re.compile(r"^[(\[]([^\W_]+)[)\]]$"), r"\1"),
]


def plain(text: str) -> str:
    """`visible(text)` with one spelling for the digits of any script, "½" (" 1/2"), "²" ("^2"), "Ⅳ" and minus signs."""
    text = visible(text)
    if text.isascii():
        return text
    return " ".join("".join(_plain_characters(text)).replace("^°", "°").split())


def _plain_characters(text: str) -> list[str]:
    out: list[str] = []
    raised = False
    for char in text:
        kind = unicodedata.decomposition(char).partition(" ")[0]
        # "ℝ" is no "R", while "℃" is two characters in one
        as_it_is = char in _SPELLINGS or (kind == "<font>" and ord(char) in _LETTERLIKE)
        form = char if as_it_is else unicodedata.normalize("NFKC", char)
        if kind == "<fraction>":
            # NFKC would run "1½" together into "11/2"
            form = " " + form
        if kind == "<super>" and not raised and not char.isalpha() and not as_it_is:
            form = "^" + form
        if kind == "<sub>" and out and out[-1][-1:].isdigit():
            form = "_" + form
        raised = kind == "<super>"
        out.extend(_plain_character(each) for each in form)
    return out


def _plain_character(char: str) -> str:
    return str(unicodedata.decimal(char)) if char.isdecimal() else _SPELLINGS.get(char, char)


@lru_cache(maxsize=8192)
def written(text: str) -> str:
    """`plain(text)` without emphasis, quotes, a full stop at the end, and blanks that change nothing ("x - 1")."""
    return _BLANKS_AT_MARKS.sub("", _unquoted(plain(text)).rstrip(" ."))


def _unquoted(text: str) -> str:
    """`text` without emphasis and quotes; a prime ("f'", "5''") is neither."""
    text = _POWER.sub("^", _EMPHASIS.sub(r"\2", text))
    text = _CHEMICAL.sub(lambda match: match[0].replace("_", ""), _CHARGE.sub("", text.replace("+/-", "±")))
    text = text.replace("!=", "≠").replace("<=", "≤").replace(">=", "≥")
    text = _QUOTED.sub(lambda match: match[1] or match[2], text)
    return _MARKS_OF_QUOTE.sub(lambda match: (match[1] or "").translate(_PRIMES), text)


@lru_cache(maxsize=8192)
def normalise_text(text: str, *, drop_articles: bool = True) -> str:
    """`text` without case, articles and the punctuation of running text: quotes, hyphens between words, full stops.

    What belongs to a value stays: "3.5", "-5", "10:30", "A-", "x - 1", "(0, 1)", "5!", "f'". An article goes only where
    another word follows it ("Vitamin A" stays), and text of nothing but punctuation stays.
    """
    text = plain(text)
    form = _unquoted(text)
    for pattern, instead in _RUNNING:
        form = pattern.sub(instead, form)
    if not form.isascii():
        form = "".join(" " if _is_foreign_mark(char) else char for char in form)
    form = _BLANKS_AT_MARKS.sub("", " ".join(form.split()))
    dropped = _ARTICLES if drop_articles else frozenset()
    kept = form.casefold().split()
    rest = [word for word, after in zip(kept, [*kept[1:], None]) if after is None or word not in dropped]
    return " ".join(rest) or text.casefold()


def _is_foreign_mark(char: str) -> bool:
    return not char.isascii() and unicodedata.category(char)[0] == "P" and char not in "·‰"


@lru_cache(maxsize=65536)
def stem(word: str) -> str:
    """The English Snowball stem of a lower-case word."""
    # a stemmer object keeps the word in itself, so threads cannot share one
    return str(snowballstemmer.stemmer("english").stemWord(word))


def words(text: str) -> list[str]:
    """The lower-case alphabetic words of `text` in order, possessives cut."""
    found = re.findall(r"[^\W\d_]+(?:'[^\W\d_]+)?", text.casefold().replace("’", "'"))
    return [word.partition("'")[0] for word in found]
