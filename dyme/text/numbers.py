"""Numbers as people write them: "$1,234.50", "12 %", "3/4", "1 1/2", "1.2e3", "five million", "-7 cm"."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice

from dyme.text.normalise import plain
from dyme.text.units import CURRENCIES, Unit, is_unit, names_unit, read_unit, unit_readings

MAX_DIGITS = 40
"""A longer run of digits is noise, not a number."""
MAX_CHARS = 400
"""Characters of a number with its units; longer text is no number."""


@dataclass(frozen=True)
class Quantity:
    """A number in a text.

    `value` is NaN where the digits make no number ("1.2.3"). `units` holds the readings of each word that may be its
    unit ("$" before it, up to three words after it). `whole` is False where it is part of something else ("2π", "<5",
    "10:30"). `start` and `end` delimit the number with its sign, currency and scale in `prepare(text)`.
    """

    value: float
    units: tuple[frozenset[str], ...]
    whole: bool
    start: int
    end: int


_SMALL_TEXT = """
zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
eighteen nineteen
"""
_SMALL = _SMALL_TEXT.split()
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_WORD_VALUES = {word: i for i, word in enumerate(_SMALL)} | {word: 10 * (i + 2) for i, word in enumerate(_TENS)}
_SCALES = {"hundred": 1e2, "thousand": 1e3, "million": 1e6, "billion": 1e9, "trillion": 1e12}
NUMBER_WORDS = frozenset(_WORD_VALUES) | frozenset(_SCALES)
# case matters: "5m" is five metres
_SUFFIXES = {"k": 1e3, "K": 1e3, "M": 1e6, "mn": 1e6, "B": 1e9, "bn": 1e9}

# Chinese, Japanese, Korean and Thai set no blanks around numbers
_LETTER = r"[^\W\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]"
_SIGN = rf"(?:(?<!{_LETTER})(?<![)\]%])(?P<sign>[-+])|\b(?P<minus>minus|negative) )?"
_MONEY = r"(?:(?P<money>[$€£¥₹]) ?(?P<inner>[-+])?)?"
_EDGE = rf"(?<!{_LETTER})(?<!第)(?<!\d[.,])"
_MIXED = _EDGE + r"(?P<integer>\d{1,15}) (?:and )?(?P<top1>\d{1,15}) ?/ ?(?P<bottom1>\d{1,15})(?!\d|[.,]\d)"
_FRACTION = _EDGE + r"(?P<top2>\d{1,15}) ?/ ?(?P<bottom2>\d{1,15})(?!\d|[.,]\d)"
_DIGITS = r"(?P<digits>(?<![\w.])\.\d(?:[\d.,]*\d)?|" + _EDGE + r"\d(?:[\d.,]*\d)?)"
_POWER = r"(?:e(?P<exponent>[-+]?\d{1,4})(?!\w)| ?[x×*] ?10\^(?P<power>[-+]?\d{1,4})(?!\w))?"
_WORD = rf"\b(?:(?P<tens>{'|'.join(_TENS)})(?:[- ](?P<ones>{'|'.join(_SMALL[1:10])}))?|(?P<small>{'|'.join(_SMALL)}))\b"
_SCALE = rf"(?P<scale>(?: ?(?:{'|'.join(_SCALES)})\b){{0,2}})(?:(?-i:(?P<suffix>{'|'.join(_SUFFIXES)}))(?!\w))?"
_NUMBER = re.compile(f"{_SIGN}{_MONEY}(?:{_MIXED}|{_FRACTION}|{_DIGITS}{_POWER}|{_WORD}){_SCALE}", re.IGNORECASE)

# "1990s" is a decade, "1600s" and "2000s" more often seconds
_ORDINAL = re.compile(r"(?:st|nd|rd|th)\b|(?<=\b1[89][1-9]0)'?s\b|(?<=\b20[12]0)'?s\b", re.IGNORECASE)
_PARTS = r"hal(?:f|ves)|thirds?|fourths?|quarters?|fifths?|sixths?|eighths?|tenths?|hundredths?|dozens?"
_FUNCTIONS = r"sin|cos|tan|cot|log|ln|exp|sqrt"
_GOES_ON = re.compile(
    rf" ?[\^+*×÷·/√∞±\\<>≤≥≠‰]|月|-+$|[a-z]+\d|\)+ ?[\^*×÷·/\w(]|[_{{]|\((?![^\W\d_]{{2,}}\))|:\d"
    rf"|e[-+]?\d| ?(?:pi|{_FUNCTIONS}|x|y)\b"
    rf"| ?- ?(?:[a-z\u0370-\u03ff](?![^\W_])|[(√\\])|[ -](?:and a )?(?:{_PARTS})\b| (?:squared|cubed)\b"
    rf"| or (?:more|less|fewer|so)\b",
    re.IGNORECASE,
)
# a letter that is no unit is a variable or a constant; a blank may part it, unless words follow ("12 a day")
_GREEK = r"[\u0370-\u03ff](?![\u0370-\u03ff\u1f00-\u1fff])"
_SYMBOL = re.compile(
    rf" ?(?:[a-zA-Z](?![^\W_])|{_GREEK})(?! [^\W\d_]{{2}})|(?:[a-zA-Z]| [nxyz]| ?{_GREEK})(?= [^\W\d_]{{2}})"
    r"|([a-zA-Z]{2,3})(?![^\W_])| ([abcnxyz]{2})(?![^\W_])"
)
_BEGUN_BEFORE = re.compile(
    rf"(?:[<>≤≥≠√±^+*×÷/] ?|[√^*×÷·/] ?[(\[]+|\]\(|[-+]|-\(|{_LETTER}[({{]|[\w)\]]-|\d:|\\[a-z]+ ?[{{(\[]?"
    rf"|\b(?:not|than|at (?:least|most)|up to|half(?: of)?|double|twice|triple|root of|{_FUNCTIONS}) )$",
    re.IGNORECASE,
)
_UNIT_IN_BRACKETS = re.compile(r" ?([(\[])([^()\[\]]{1,20})[)\]]")
_TAIL_WORD = re.compile(r"[ -]?([^\s,;:!?()\[\]]+)")
# "2**3" is a power
_EMPHASIS = re.compile(r"`|(?<![\d)])\*\*|\*\*(?![\w(])")
_DETACHED_MINUS = re.compile(r"(^|=) ?(?:- |[—―] ?)(?=[\d.$€£])")
_GROUPED = re.compile(r"[1-9]\d{0,2}(?:,\d{3})+(?:\.\d+)?")
_DECIMAL_COMMA = re.compile(r"\d+,\d+")
_PLAIN_DECIMAL = re.compile(r"\d*\.?\d+")


def find_quantities(text: str) -> list[Quantity]:
    """Every number of `text` in order; digits inside a name ("H2O"), ordinals and decades ("1990s") are none."""
    return list(each_quantity(text))


def each_quantity(text: str) -> Iterator[Quantity]:
    """`find_quantities`, one by one."""
    yield from _find(prepare(text))


def _find(text: str) -> Iterator[Quantity]:
    unit_end = 0
    for match in _NUMBER.finditer(text):
        end = match.end()
        # the 2 of "cm^2" belongs to the unit
        if match.start() < unit_end or _ORDINAL.match(text, end):
            continue
        before = text[max(0, match.start() - 16) : match.start()]
        tail = text[end : end + 64]
        unit = _known_unit(tail)
        unit_end = end + unit.end if unit else end
        after = tail[unit.end :] if unit else tail
        whole = (
            not _GOES_ON.match(after)
            and not _BEGUN_BEFORE.search(before)
            and not (after[:1].isalnum() if unit else _SYMBOL.match(tail))
        )
        money = _money_before(match["money"] or before)
        units = (
            _per(money[0], unit)
            if money and unit and tail.startswith(("/", " /", " per"))
            else money + _units_after(tail, unit)
        )
        yield Quantity(_value(match), units, whole, match.start(), end)


@lru_cache(maxsize=16384)
def parse_number(text: str) -> Quantity | None:
    """`text` as one number with at most a currency and one unit word around it; None where it is anything else."""
    text = prepare(text).rstrip(".")
    if len(text) > MAX_CHARS:
        return None
    found = list(islice(_find(text), 2))
    if len(found) != 1 or not found[0].whole or math.isnan(found[0].value):
        return None
    head, tail = text[: found[0].start].strip(" ."), text[found[0].end :].rstrip()
    unit = _known_unit(tail) or read_unit(tail)
    named = (
        not tail
        or (unit is not None and unit.end == len(tail))
        or (len(tail.split()) == 1 and bool(_units_after(tail, None)) and _TAIL_WORD.fullmatch(tail) is not None)
    )
    return found[0] if named and (not head or _money_before(head)) else None


def same_quantity(given: Quantity, gold: Quantity, relative_tolerance: float) -> bool:
    """Whether values agree up to a fraction of the gold one, and units where both sides name one."""
    if abs(given.value - gold.value) > relative_tolerance * abs(gold.value):
        return False
    # "12 red apples" names the unit of "12 apples" in its second word, so any of them may match
    return not given.units or not gold.units or any(ours & theirs for ours in given.units for theirs in gold.units)


def prepare(text: str) -> str:
    """`plain(text)` without emphasis, as numbers are looked for in it."""
    text = _EMPHASIS.sub("", plain(text))
    text = re.sub(r"\bper cent\b", "percent", text, flags=re.IGNORECASE)
    return _DETACHED_MINUS.sub(r"\1-", text)


def _value(match: re.Match[str]) -> float:
    part = match.groupdict()
    if part["integer"]:
        value = float(part["integer"]) + _ratio(part["top1"], part["bottom1"])
    elif part["top2"]:
        value = _ratio(part["top2"], part["bottom2"])
    elif part["digits"]:
        value = _decimal(part["digits"], part["exponent"] or part["power"] or "0")
    else:
        # the pattern lets a dotless "ı" pass for an "i", the table does not
        spelled = (part[name].lower() for name in ("tens", "ones", "small") if part[name])
        value = float(sum(_WORD_VALUES.get(word, math.nan) for word in spelled))
    for scale in part["scale"].split():
        value *= _SCALES.get(scale.lower(), math.nan)
    value *= _SUFFIXES[part["suffix"]] if part["suffix"] else 1.0
    negative = "-" in (part["sign"], part["inner"]) or part["minus"]
    value = -value if negative else value
    return value if math.isfinite(value) else math.nan


def _ratio(top: str, bottom: str) -> float:
    return int(top) / int(bottom) if int(bottom) else math.nan


def _decimal(digits: str, exponent: str) -> float:
    if len(digits) > MAX_DIGITS:
        return math.nan
    if _GROUPED.fullmatch(digits):
        digits = digits.replace(",", "")
    elif _DECIMAL_COMMA.fullmatch(digits):
        digits = digits.replace(",", ".")
    return float(f"{digits}e{exponent}") if _PLAIN_DECIMAL.fullmatch(digits) else math.nan


def _money_before(text: str) -> tuple[frozenset[str], ...]:
    last = text.rstrip(" .").rpartition(" ")[2]
    readings = unit_readings(last) if is_unit(last) else frozenset()
    return (readings,) if readings & CURRENCIES.keys() else ()


def _per(money: frozenset[str], unit: Unit) -> tuple[frozenset[str], ...]:
    """The unit of "$5/kg"."""
    return (frozenset(f"{'|'.join(sorted(money))}^1 {each}" for each in unit.readings),)


def _known_unit(tail: str) -> Unit | None:
    """The known unit at the start of `tail`, also in brackets ("5 (cm)")."""
    bracketed = _UNIT_IN_BRACKETS.match(tail)
    unit = read_unit(bracketed[2] if bracketed else tail)
    if unit is None or not unit.known or (bracketed and unit.end != len(bracketed[2])):
        return None
    return Unit(unit.readings, bracketed.end(), True) if bracketed else unit


def _units_after(tail: str, unit: Unit | None) -> tuple[frozenset[str], ...]:
    """A known unit, else the readings of up to three words, since "red apples" names its unit in the second."""
    if unit is not None:
        return (unit.readings,)
    units: list[frozenset[str]] = []
    position = 0
    while len(units) < 3 and (match := _TAIL_WORD.match(tail, position)):
        word = match[1].rstrip(".\"'”’")
        if not names_unit(word):
            break
        units.append(unit_readings(word))
        if word != match[1]:
            break
        position = match.end()
    return tuple(units)
