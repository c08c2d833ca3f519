"""Whether two answers are the same value, each kind by its own reading.

Answers are compared as they are written first. Then as what they are: a list, set, tuple or interval part by part; a
ratio, range, date or time field by field; a number with an optional unit; an equation or expression; else a text. No
kind is rewritten into another.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache

from dyme.rewards.dates import read_date
from dyme.rewards.expression import Expression, constant_ratio, read_expression, same_expression
from dyme.rewards.latex import unlatex
from dyme.text.normalise import normalise_text, plain, written
from dyme.text.numbers import Quantity, parse_number, same_quantity
from dyme.text.units import read_unit

MAX_CHARS = 1000
"""Longest value in characters; longer ones are compared as text only."""
MAX_PARTS = 100
MAX_DEPTH = 4
"""Lists within lists."""

_CLOSING = {"(": ")]", "[": "])", "{": "}"}
_BRACKET = r"[()\[\]{}]"
_COMMA = re.compile(rf"{_BRACKET}|(?<!\d),|,(?!\d{{3}}(?!\d))|;")
_ANY_COMMA = re.compile(rf"{_BRACKET}|[,;]")
_POINT = re.compile(r"[^\W\d_]{1,3}(?=[(\[{])")
_UNION = re.compile(rf"{_BRACKET}|∪")
_RELATION = re.compile(rf"{_BRACKET}|<=|>=|≤|≥|≠|!=|==|=|<|>|≈|∈")
_SPELLED = {"<=": "≤", ">=": "≥", "!=": "≠", "==": "="}
_FLIPPED = {"<": ">", ">": "<", "≤": "≥", "≥": "≤"}
_FIELD = r"[$€£¥₹]?\d+(?:[.,]\d+)*[%°]?"
_FIELDS = re.compile(rf"({_FIELD}(?: ?([:/×-]) ?{_FIELD})(?: ?\2 ?{_FIELD})*)(?![\d^(!]) ?([^\d=+*^]*)")
_TIMES = re.compile(r"(?<=[\d%°]) ?[xX×] ?(?=[\d$])")
_TILDE = re.compile(r"(?<=[\d%°]) ?~ ?(?=[\d$])")
_LEADING_ZEROS = re.compile(r"^0+(?=\d)")
# without such a mark a text of letters is a word, not a variable
_MATHEMATICAL = re.compile(r"[-+*/^=<>√π∞·×÷|!°≤≥≠∈±]|\d ?[^\W\d_]|[^\W\d_]_|\(")
_WORDLIKE = re.compile(r"[a-zA-Z] ?[-/] ?[a-zA-Z]|\dd", re.IGNORECASE)
_ORDINAL = re.compile(r"\d+(?:st|nd|rd|th)", re.IGNORECASE)
_SUM = re.compile(r"(?<!^)[-+=]")
_NAME = re.compile(r"(?:[^\W\d_](?:_\w+)?'*|[^\W\d_]\([^\W\d_]\)|[^\W\d_]{2,}(?: [^\W\d_]+){0,3})")

Relation = tuple[tuple[str, ...], tuple[str, ...]]


@dataclass(frozen=True)
class Rules:
    """How values are compared: numbers up to `tolerance`, a fraction of the gold value; as texts only with `literal`.

    With `mathematics` lists without brackets are sets, "10 - 20" is a difference, and "50%" equals 0.5 as well as 50.
    """

    tolerance: float = 1e-6
    literal: bool = False
    mathematics: bool = False


@dataclass(frozen=True)
class Parts:
    """A list: its brackets ("" where it has none) and its parts."""

    opening: str
    parts: tuple[str, ...]
    closing: str


@lru_cache(maxsize=65536)
def clean_value(text: str) -> str:
    """`text` in plain characters, without LaTeX, emphasis, quotes around it and a full stop at its end."""
    text = unlatex(plain(text))
    while (bare := _unwrapped(text)) != text:
        text = bare
    return text


def _unwrapped(text: str) -> str:
    text = text.strip()
    for mark in ("***", "**", "*", "__", "_", "`", '"', "“", "„", "«", "'", "‘"):
        closing = {"“": "”", "„": "“", "«": "»", "‘": "’"}.get(mark, mark)
        if len(text) > len(mark) + len(closing) and text.startswith(mark) and text.endswith(closing):
            return text[len(mark) : -len(closing)]
    return text[:-1] if len(text) > 1 and text.endswith(".") else text


def same_as_any(answer: str, golds: Iterable[str], rules: Rules) -> bool:
    """Whether `answer` is the same value as one of the gold answers, all as they are written."""
    given = clean_value(answer)
    return bool(answer.strip()) and any(answer == gold or same_value(given, clean_value(gold), rules) for gold in golds)


def same_value(given: str, gold: str, rules: Rules, depth: int = 0) -> bool:
    """Whether two clean values are the same."""
    if not given or not gold:
        return False
    if given == gold or written(given) == written(gold):
        return True
    if max(len(given), len(gold)) > MAX_CHARS or depth > MAX_DEPTH:
        return normalise_text(given) == normalise_text(gold)
    for kind in _KINDS[:2] if rules.literal else _KINDS:
        verdict = kind(given, gold, rules, depth)
        if verdict is not None:
            return verdict
    return normalise_text(given) == normalise_text(gold)


def split_parts(text: str, pattern: re.Pattern[str]) -> tuple[list[str], list[str]]:
    """The parts of `text` between the matches of `pattern` outside brackets, and these matches.

    `pattern` has to match brackets too. Brackets that do not fit together part nothing.
    """
    parts, marks, start, depth = [], [], 0, 0
    for match in pattern.finditer(text):
        if match[0] in "([{":
            depth += 1
        elif match[0] in ")]}":
            depth -= 1
        elif depth == 0:
            parts.append(text[start : match.start()].strip())
            marks.append(match[0])
            start = match.end()
    return [*parts, text[start:].strip()], marks


def in_brackets(text: str) -> bool:
    """Whether one pair of brackets encloses the whole of `text`; "[0, 1)" counts."""
    if len(text) < 2 or text[-1] not in _CLOSING.get(text[0], ""):
        return False
    depth = 0
    for i, char in enumerate(text):
        depth += (char in "([{") - (char in ")]}")
        if depth == 0:
            return i == len(text) - 1
    return False


@lru_cache(maxsize=16384)
def _read_list(text: str) -> Parts | None:
    if not in_brackets(text):
        return None
    inside = text[1:-1].strip()
    parts, marks = split_parts(inside, _COMMA)
    if not marks:
        # "(1,234)" is a point, since one number needs no brackets
        parts, marks = split_parts(inside, _ANY_COMMA)
    if not marks and text[0] != "{" and not in_brackets(inside):
        return None
    return Parts(text[0], tuple(parts), text[-1]) if len(parts) <= MAX_PARTS and all(parts) else None


def _same_lists(given: str, gold: str, rules: Rules, depth: int) -> bool | None:
    for pattern in (_UNION, _COMMA) if rules.mathematics else (_UNION,):
        (ours, our_marks), (theirs, their_marks) = split_parts(given, pattern), split_parts(gold, pattern)
        if our_marks and their_marks and all(ours) and all(theirs):
            return same_set(tuple(ours), tuple(theirs), rules, depth + 1)
    name = _POINT.match(given)
    if name and gold.startswith(name[0]):
        a, b = _read_list(given[name.end() :]), _read_list(gold[name.end() :])
    else:
        a, b = _read_list(given), _read_list(gold)
    if a is None or b is None:
        one, other = (a, gold) if a else (b, given)
        if one is None:
            return None
        single = rules.mathematics and len(one.parts) == 1 and one.opening == "{"
        return same_value(one.parts[0], other, rules, depth + 1) if single else _same_as_text(given, gold)
    if (a.opening, a.closing) != (b.opening, b.closing):
        return False
    if a.opening == "{":
        return same_set(a.parts, b.parts, rules, depth + 1)
    return len(a.parts) == len(b.parts) and all(
        same_value(x, y, rules, depth + 1) for x, y in zip(a.parts, b.parts, strict=True)
    )


def _same_as_text(given: str, gold: str) -> bool:
    return normalise_text(given) == normalise_text(gold)


def same_set(given: tuple[str, ...], gold: tuple[str, ...], rules: Rules, depth: int = 0) -> bool:
    """Whether each part of either is a part of the other, in any order."""
    # a number spelled in two ways makes two parts of one, so sizes may differ, but not by much
    if not given or not gold or len(given) > 4 * len(gold) + 4 or len(gold) > MAX_PARTS:
        return False
    return all(any(same_value(a, b, rules, depth) for b in gold) for a in given) and all(
        any(same_value(a, b, rules, depth) for a in given) for b in gold
    )


@lru_cache(maxsize=16384)
def _read_fields(text: str) -> tuple[str, tuple[str, ...], str] | None:
    """A ratio, range, size, date or time: its separator, its fields without leading zeros, and the words after them."""
    date = read_date(text)
    if date is not None:
        return date
    match = _FIELDS.fullmatch(_TILDE.sub("-", _TIMES.sub("×", text)))
    if match is None:
        return None
    body, separator, rest = match.groups()
    fields = tuple(_LEADING_ZEROS.sub("", field.strip()) for field in body.split(separator))
    if separator == "/" and len(fields) == 2:
        return None  # a fraction
    words = normalise_text(rest) if rest.strip() else ""
    if separator == ":" and words in ("am", "pm") and fields[0].isdecimal() and 1 <= int(fields[0]) <= 12:
        hour = int(fields[0]) % 12 + (12 if words == "pm" else 0)
        return separator, (str(hour), *fields[1:]), "am" if hour < 12 else ""
    return separator, fields, words


def _same_fields(given: str, gold: str, rules: Rules, depth: int) -> bool | None:
    a, b = _read_fields(given), _read_fields(gold)
    if a is None or b is None:
        # "10-20" is a range, not a difference
        return None if rules.mathematics or a == b else _same_as_text(given, gold)
    if a == b:
        return True
    if a[0] in (":", "date") or b[0] in (":", "date"):
        return False
    if rules.literal or a[0] != b[0] or len(a[1]) != len(b[1]):
        return None
    # "10-20 minutes" and "10-20": the unit belongs to the last field
    same = all(
        same_value(f"{x} {a[2] if last else ''}".strip(), f"{y} {b[2] if last else ''}".strip(), rules, depth + 1)
        for x, y, last in zip(a[1], b[1], [False] * (len(a[1]) - 1) + [True], strict=True)
    )
    return True if same else None if rules.mathematics else False


def _same_numbers(given: str, gold: str, rules: Rules, depth: int) -> bool | None:
    ours, theirs = parse_number(given), parse_number(gold)
    if ours is None or theirs is None:
        return None
    if same_quantity(ours, theirs, rules.tolerance):
        return True
    return rules.mathematics and _same_share(ours, theirs, rules.tolerance)


def _same_share(given: Quantity, gold: Quantity, tolerance: float) -> bool:
    """Whether one is a percentage and the other the same share of 1."""
    percent = frozenset(("%",))
    a, b = (replace(q, value=q.value / 100, units=()) if percent in q.units else q for q in (given, gold))
    return (percent in given.units) != (percent in gold.units) and same_quantity(a, b, tolerance)


def _same_formulas(given: str, gold: str, rules: Rules, depth: int) -> bool | None:
    """Equations, inequalities and expressions; None where one of the two is none of these."""
    ours, theirs = _read_relation(given), _read_relation(gold)
    if len(theirs[1]) == 0 and len(ours[1]) == 0:
        return _same_expressions(given, gold, rules)
    if theirs[1] and ours[1]:
        return _same_relations(ours, theirs, rules, depth)
    longer, shorter, chain = (ours, gold, True) if ours[1] else (theirs, given, False)
    sides, marks = longer
    if not all(sides) or set(marks) != {"="}:
        return None
    named = _NAME.fullmatch(sides[0]) is not None
    if not chain and not (named and len(sides) == 2):
        return None
    # all values of "x = 3 + 2 = 5" have to be right, so "4 = 5" cannot give two answers
    values = sides[1:] if named else sides
    pairs = [(side, shorter) if chain else (shorter, side) for side in values]
    return all(same_value(a, b, rules, depth + 1) for a, b in pairs)


@lru_cache(maxsize=16384)
def _read_relation(text: str) -> Relation:
    """The sides of `text` and the signs between them, none where it is no relation."""
    sides, marks = split_parts(text, _RELATION)
    return tuple(sides), tuple(_SPELLED.get(mark, mark) for mark in marks)


def _same_relations(ours: Relation, theirs: Relation, rules: Rules, depth: int) -> bool | None:
    (a, our_marks), (b, their_marks) = ours, theirs
    if not all(a) or not all(b):
        return None
    flipped = tuple(reversed(a)), tuple(_FLIPPED.get(mark, mark) for mark in reversed(our_marks))
    for sides, marks in ((a, our_marks), flipped):
        if marks == their_marks and all(_same_side(x, y, rules, depth) for x, y in zip(sides, b, strict=True)):
            return True
    if len(a) != 2 or len(b) != 2:
        return False
    # 2x = 4 and x = 2 have the same solutions
    f, g = (read_expression(f"({left})-({right})") for left, right in (a, b))
    ratio = constant_ratio(f, g) if f and g and (f.names or g.names) else None
    if ratio is None:
        return False
    mark = our_marks[0] if ratio > 0 else _FLIPPED.get(our_marks[0], our_marks[0])
    return mark == their_marks[0]


def _same_side(given: str, gold: str, rules: Rules, depth: int) -> bool:
    # a letter beside "=" is a variable, in its own case
    return given == gold if len(given) == len(gold) == 1 else same_value(given, gold, rules, depth + 1)


def _same_expressions(given: str, gold: str, rules: Rules) -> bool | None:
    if not (_MATHEMATICAL.search(gold) or _MATHEMATICAL.search(given)):
        return None
    if _ORDINAL.fullmatch(given) or _ORDINAL.fullmatch(gold):
        return None
    (a, our_unit), (b, their_unit) = _read_measured(given), _read_measured(gold)
    if not a or not b or len(a) != len(b):
        return None
    same = all(same_expression(x, y, rules.tolerance) for x, y in zip(a, b, strict=True))
    same = same and (not our_unit or not their_unit or bool(our_unit & their_unit))
    # "n/a" and "3D" are words too
    return same or (None if _WORDLIKE.fullmatch(gold) else False)


@lru_cache(maxsize=16384)
def _read_measured(text: str) -> tuple[tuple[Expression, ...], frozenset[str]]:
    """The expression (two with "±", none if it cannot be read) and what a unit after it means ("4π cm^2")."""
    for blank in list(re.finditer(" ", text))[:6]:
        body, unit = text[: blank.start()], read_unit(text[blank.start() :])
        if unit and unit.known and unit.end == len(text) - blank.start() and not _SUM.search(body):
            return _read_signed(body), unit.readings
    return _read_signed(text), frozenset()


def _read_signed(text: str) -> tuple[Expression, ...]:
    texts = (text.replace("±", "+"), text.replace("±", "-")) if "±" in text else (text,)
    read = tuple(each for each in map(read_expression, texts) if each)
    return read if len(read) == len(texts) else ()


_KINDS = (_same_lists, _same_fields, _same_numbers, _same_formulas)
