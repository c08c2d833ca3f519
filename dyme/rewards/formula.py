"""Mathematical answers: equal as text, as numbers, or as formulas by the math-verify package.

math-verify (https://github.com/huggingface/Math-Verify) ends long computations by signals, which work in the main
thread only and would disturb other users of SIGALRM. So its time limits are off, and it never gets formulas that may
take long.
"""

from __future__ import annotations

import logging
import math
import re
from functools import lru_cache
from itertools import accumulate
from typing import Any, cast

from math_verify import parse, verify

from dyme.data.record import Record
from dyme.rewards.answer import clean_answer, gold_answers
from dyme.text.normalise import normalise_text, plain
from dyme.text.numbers import parse_number, same_quantity

MAX_CHARS = 100
"""Longest formula in characters. Longer ones, and those over one of the limits below, are compared as text only."""
MAX_DEPTH = 4
"""Brackets within brackets: the parser's time grows steeply with them."""
MAX_LETTERS = 4
"""Different variables in a formula."""
MAX_POWER = 5
"""Product of all exponents of a formula with variables, which is expanded to compare it."""
MAX_NUMBER_POWER = 300
"""Product of all exponents of a formula without variables."""

# math-verify warns in every process that its time limits are off, and for every text it cannot read
logging.getLogger("math_verify").setLevel(logging.CRITICAL)
logging.getLogger("latex2sympy2_extended").setLevel(logging.CRITICAL)

_FUNCTION_TEXT = "sin cos tan cot sec csc arcsin arccos arctan log ln exp sqrt pi"
_COMMAND_TEXT = """
frac dfrac tfrac cdot times div pm infty circ cup cap in le leq ge geq ne neq lt gt alpha beta gamma delta theta lambda
mu phi omega left right quad
"""
_FUNCTIONS = frozenset(_FUNCTION_TEXT.split())
_COMMANDS = _FUNCTIONS | frozenset(_COMMAND_TEXT.split())
_SYMBOLS = {"π": r"\pi ", "√": r"\sqrt ", "×": r"\times ", "·": r"\cdot ", "÷": r"\div ", "∞": r"\infty "}
_SYMBOLS |= {"°": r"^\circ ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "∪": r"\cup ", "∩": r"\cap "}
_NAMED = re.compile(r"\\(?:text|textbf|mathrm|mathbf|mbox)\s*\{([^{}]*)\}")
_SPACING = re.compile(r"\\[,;!: ]|~")
_COMMAND = re.compile(r"\\([a-zA-Z]+)")
_WORD = re.compile(r"[^\W\d_]+")
_POWER = re.compile(r"(?:\^|\*\*)\s*")
_OPEN, _CLOSED = "({[", ")}]"


def verify_math(answer: str, record: Record, relative_tolerance: float = 1e-6) -> float:
    """1.0 if the answer equals a gold answer as text, as a number, or as a formula ("1/2", "x = 0.5").

    A formula need not be simplified: "12 + 3" is right for 15. Text with words is never a formula.
    """
    given = _readable(answer)
    return float(any(_equal(given, _readable(gold), relative_tolerance) for gold in gold_answers(record)))


def _readable(text: str) -> str:
    """`text` without dollars, LaTeX spacing and \\text{}, symbols as LaTeX commands."""
    text = clean_answer(plain(text))
    if text.startswith("$") and text.endswith("$"):
        text = text.strip("$")
    text = text.removeprefix(r"\(").removesuffix(r"\)").removeprefix(r"\[").removesuffix(r"\]")
    text = _SPACING.sub(" ", _NAMED.sub(r" \1 ", text)).replace(r"\%", "%").replace(r"\$", "$")
    return clean_answer("".join(_SYMBOLS.get(char, char) for char in text))


def _equal(given: str, gold: str, relative_tolerance: float) -> bool:
    if not given or not gold:
        return False
    if "".join(given.split()) == "".join(gold.split()):
        return True
    ours, theirs = parse_number(given), parse_number(gold)
    if ours and theirs:
        return same_quantity(ours, theirs, relative_tolerance)
    if is_cheap_formula(given) and is_cheap_formula(gold):
        return all(verify(_parsed(gold), _parsed(side), timeout_seconds=None) for side in _sides(given, gold))
    return not _is_mathematical(gold) and normalise_text(given) == normalise_text(gold)


def _sides(given: str, gold: str) -> list[str]:
    """The values that must equal the gold: both for "x = 3 + 2 = 5", so "4 = 5" cannot give two answers."""
    sides = [side.strip() for side in given.split("=")]
    if "=" in gold or len(sides) == 1 or not all(sides) or set(given) & set("<>!"):
        return [given]
    named = _WORD.search(_COMMAND.sub(" ", sides[0])) is not None
    return sides[1:] if named else sides


def _is_mathematical(text: str) -> bool:
    # the punctuation that text comparison ignores is what a formula consists of
    return not _WORD.search(text) or bool(set(text) & set("\\^=+*/<>(){}[]|-_"))


@lru_cache(maxsize=4096)
def _parsed(text: str) -> list[Any]:
    return cast(list[Any], parse(f"${text}$", parsing_timeout=None))


def is_cheap_formula(text: str) -> bool:
    """Whether `text` is a formula, with no words in it, that is compared in well under a second."""
    if len(text) > MAX_CHARS or "$" in text or "\n" in text or not text.isascii():
        return False
    depth = max(accumulate((char in _OPEN) - (char in _CLOSED) for char in text), default=0)
    if not set(_COMMAND.findall(text)) <= _COMMANDS or depth > MAX_DEPTH or text.count("|") > 2:
        return False
    words = [word for word in _WORD.findall(_COMMAND.sub(" ", text)) if word not in _FUNCTIONS]
    letters = set("".join(words))
    # a word would be read as a product of its letters, and "act" would equal "cat"
    if len(letters) > MAX_LETTERS or any(len(word) > 1 and set(word) - set("abcxyz") for word in words):
        return False
    return "!" not in text and _power(text) <= (MAX_POWER if letters else MAX_NUMBER_POWER)


def _power(text: str) -> float:
    """An upper bound of the degree: the product of all exponents; infinite for a tower or several digits after "e"."""
    total = 1.0
    for match in _POWER.finditer(text):
        exponent = _group(text, match.end())
        if _POWER.search(exponent):
            return math.inf
        for digits in re.findall(r"\d+", exponent):
            total *= max(1, int(digits))
    return math.inf if re.search(r"\de[-+]?\d{3}", text, re.IGNORECASE) else total


def _group(text: str, start: int) -> str:
    """The text of an exponent that starts at `start`: its bracket, else everything up to a blank."""
    depth = 0
    for i in range(start, len(text)):
        depth += (text[i] in _OPEN) - (text[i] in _CLOSED)
        if depth < 0 or (depth == 0 and (text[i] in _CLOSED or not (text[i].isalnum() or text[i] in "-+\\."))):
            return text[start:i]
    return text[start:]
