"""Mathematical expressions: read whole or not at all, and compared by their values.

Two expressions are equal if they have the same value, or with variables the same value at several points. An expression
is evaluated in floating point with a few operations a character, so none can take long, unlike symbolic algebra.
"""

from __future__ import annotations

import cmath
import math
import re
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

MAX_CHARS = 200
"""Longest expression in characters; longer ones are compared as text only."""
MAX_DEPTH = 12
"""Brackets within brackets."""
POINTS = 4
"""Points at which expressions with variables are compared."""

Value = float | complex
Node = Callable[[Mapping[str, float]], Value]

_EXACT = 1e-9
_NUMBER = r"(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d{1,3}(?!\w))?(?![\d.]*\d)"
_TOKEN = re.compile(
    rf" *(?:(?P<mixed>(?<![\w^_.)\]}}/*] )(?<![\w^_.)\]}}/*])\d+ \d+/\d+(?![\d.]))|(?P<number>{_NUMBER})"
    r"|(?P<name>[a-zA-Z]+|[\u0370-\u03ff∞])(?P<mark>(?:_(?:\d+|\w|\(\w+\)|\{\w+\}))?'*)|(?P<sign>[-+*/^()\[\]{}|√!%°·×÷]))"
)
_RESERVED = {"pi": math.pi, "π": math.pi, "e": math.e, "∞": math.inf, "inf": math.inf, "infinity": math.inf}
# the base of "log" is not said, so it is equal to itself and to no other logarithm
_SOME_BASE = 0.7310585786300049
_FUNCTIONS: dict[str, Callable[[complex], complex]] = {
    "sin": cmath.sin,
    "cos": cmath.cos,
    "tan": cmath.tan,
    "cot": lambda x: 1 / cmath.tan(x),
    "sec": lambda x: 1 / cmath.cos(x),
    "csc": lambda x: 1 / cmath.sin(x),
    "arcsin": cmath.asin,
    "arccos": cmath.acos,
    "arctan": cmath.atan,
    "sinh": cmath.sinh,
    "cosh": cmath.cosh,
    "tanh": cmath.tanh,
    "exp": cmath.exp,
    "ln": cmath.log,
    "lg": cmath.log10,
    "log": lambda x: cmath.log(x) * _SOME_BASE,
    "sqrt": cmath.sqrt,
}
_OPEN = {"(": ")", "[": "]", "{": "}"}
# a longer word would be read as a product of its letters, and "act" would equal "cat"
_LETTERS = frozenset("abcxyz")
_TRIGONOMETRIC = re.compile(r"sin|cos|tan|cot|sec|csc")


@dataclass(frozen=True)
class Expression:
    """`value` maps the value of each of the `names` to that of the expression."""

    value: Node
    names: frozenset[str]


class _Unread(ValueError):
    """The text is no expression, or not one as a whole."""


@lru_cache(maxsize=16384)
def read_expression(text: str) -> Expression | None:
    """`text`, in plain characters, as an expression; None unless every character of it is understood."""
    if not text or len(text) > MAX_CHARS:
        return None
    try:
        return _Reader(text).read()
    except _Unread:
        return None


def same_expression(given: Expression, gold: Expression, relative_tolerance: float) -> bool:
    """Whether values agree, up to a fraction of the gold one where there are no variables."""
    names = given.names | gold.names
    tolerance = _EXACT if names else max(relative_tolerance, _EXACT * _EXACT)
    pairs = _values(given, gold)
    return bool(pairs) and all(_close(ours, theirs, tolerance) for ours, theirs in pairs)


def constant_ratio(given: Expression, gold: Expression) -> float | None:
    """given / gold where that is one number other than 0 at all points, else None."""
    pairs = _values(given, gold)
    if not pairs or any(ours == 0 or theirs == 0 for ours, theirs in pairs):
        return None
    ratios = [ours / theirs for ours, theirs in pairs]
    constant = cmath.isfinite(ratios[0]) and all(_close(ratio, ratios[0], _EXACT) for ratio in ratios)
    return ratios[0].real if constant and abs(ratios[0].imag) <= _EXACT * abs(ratios[0]) else None


def _values(given: Expression, gold: Expression) -> list[tuple[Value, Value]]:
    """The values of both at the points; empty where one of them has none."""
    names = given.names | gold.names
    pairs = []
    for i in range(POINTS if names else 1):
        point = {name: _coordinate(name, i) for name in names}
        try:
            pairs.append((given.value(point), gold.value(point)))
        except (ArithmeticError, ValueError):
            return []
    return pairs


def _coordinate(name: str, i: int) -> float:
    """A fixed number of either sign between 0.3 and 2.9 in size."""
    code = zlib.crc32(f"{name}:{i}".encode("utf-8", "replace"))
    size = 0.3 + 2.6 * (code & 0xFFFFFF) / 0xFFFFFF
    return size if i == 0 or code >> 24 & 1 else -size


def _close(given: Value, gold: Value, tolerance: float) -> bool:
    # infinities are equal to themselves; NaN is equal to nothing
    return given == gold or abs(given - gold) <= tolerance * abs(gold) < math.inf


class _Reader:
    """A recursive-descent reader: sum, product (written or implied), sign, power, atom."""

    def __init__(self, text: str) -> None:
        self.tokens = list(self._tokens(text))
        self.degree = math.pi / 180 if _TRIGONOMETRIC.search(text) else 1.0
        self.position = 0
        self.depth = 0
        self.bars = 0
        self.names: set[str] = set()

    @staticmethod
    def _tokens(text: str) -> list[tuple[str, str]]:
        tokens: list[tuple[str, str]] = []
        position, end = 0, len(text.rstrip())
        while position < end:
            match = _TOKEN.match(text, position)
            if match is None:
                raise _Unread
            position = match.end()
            kind = match.lastgroup if match["name"] is None else "name"
            if kind == "name":
                after_digit = match.start("name") > 0 and text[match.start("name") - 1].isdigit()
                tokens += _names(match["name"], match["mark"], after_digit)
            else:
                tokens.append((str(kind), match[str(kind)]))
        return tokens

    def read(self) -> Expression:
        node = self.sum()
        if self.position != len(self.tokens):
            raise _Unread
        return Expression(node, frozenset(self.names))

    def peek(self) -> tuple[str, str]:
        return self.tokens[self.position] if self.position < len(self.tokens) else ("end", "")

    def take(self, *signs: str) -> str:
        """The next token if it is one of the signs, else ""."""
        kind, text = self.peek()
        if kind != "sign" or text not in signs:
            return ""
        self.position += 1
        return text

    def sum(self) -> Node:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise _Unread
        node = self.product()
        while sign := self.take("+", "-"):
            node = _added(node, self.product(), 1 if sign == "+" else -1)
        self.depth -= 1
        return node

    def product(self) -> Node:
        node = self.signed()
        while True:
            if sign := self.take("*", "·", "×", "/", "÷"):
                node = (_divided if sign in "/÷" else _multiplied)(node, self.signed())
            elif self.begins_factor():
                node = _multiplied(node, self.power())
            else:
                return node

    def begins_factor(self) -> bool:
        """Whether a factor follows without a sign; a number does not ("x 2", "1 2")."""
        kind, text = self.peek()
        return kind == "name" or (kind == "sign" and (text in "([{√" or (text == "|" and not self.bars)))

    def signed(self) -> Node:
        # one sign: "--4" is no number
        sign = self.take("+", "-")
        node = self.power()
        return _multiplied(lambda point: -1.0, node) if sign == "-" else node

    def power(self) -> Node:
        return self.raised(self.marked())

    def raised(self, node: Node) -> Node:
        if self.take("^"):
            sign = self.take("+", "-")
            self.depth += 1
            exponent = self.power()
            self.depth -= 1
            return _raised(node, exponent, -1 if sign == "-" else 1)
        return node

    def marked(self) -> Node:
        """An atom with "!", "%" and "°" after it."""
        if self.depth > MAX_DEPTH:
            raise _Unread
        node = self.atom()
        while mark := self.take("!", "%", "°"):
            node = _factorial(node) if mark == "!" else _scaled(node, 0.01 if mark == "%" else self.degree)
        return node

    def atom(self) -> Node:
        kind, text = self.peek()
        self.position += 1
        if kind in ("number", "mixed"):
            value = _number(text)
            return lambda point: value
        if kind == "function":
            return self.function(text)
        if kind == "name":
            return self.named(text)
        if kind == "sign" and text == "√":
            return self.root()
        if kind == "sign" and text in _OPEN:
            return self.inside(_OPEN[text])
        if kind == "sign" and text == "|" and not self.bars:
            self.bars += 1
            node = self.inside("|")
            self.bars -= 1
            return lambda point: abs(node(point))
        raise _Unread

    def inside(self, closing: str) -> Node:
        node = self.sum()
        if not self.take(closing):
            raise _Unread
        return node

    def named(self, text: str) -> Node:
        if text in _FUNCTIONS or text.startswith("log_"):
            return self.function(text)
        if text in _RESERVED:
            value = _RESERVED[text]
            return lambda point: value
        if text == "i":
            return lambda point: 1j
        self.names.add(text)
        return lambda point: point[text]

    def root(self) -> Node:
        degree: Node = lambda point: 2.0  # noqa: E731
        if self.take("["):
            degree = self.inside("]")
        self.depth += 1
        inside = self.marked()
        self.depth -= 1
        return _rooted(inside, degree)

    def function(self, text: str) -> Node:
        name, _, base = text.partition("_")
        if base and not base.isdecimal():
            if len(base) > 1 or base in _RESERVED:
                raise _Unread
            self.names.add(base)
        exponent: Node | None = None
        if self.take("^"):
            if self.take("-"):
                raise _Unread  # an inverse or a reciprocal
            exponent = self.marked()
        bracketed = self.peek() in (("sign", "("), ("sign", "["), ("sign", "{"))
        self.depth += 1
        argument = self.power() if not bracketed else self.marked()
        while not bracketed and self.begins_factor() and self.peek()[1].partition("_")[0] not in _FUNCTIONS:
            argument = _multiplied(argument, self.power())
        self.depth -= 1
        node = _called(name, argument, base)
        return _raised(node, exponent, 1) if exponent else node


def _names(letters: str, mark: str, after_digit: bool) -> list[tuple[str, str]]:
    """The tokens of a run of letters: one name, or a product of variables."""
    if letters in _FUNCTIONS or letters in _RESERVED:
        if mark and not (letters == "log" and mark.startswith("_")):
            raise _Unread
        return [("name", letters + re.sub(r"[(){}]", "", mark))]
    if len(letters) > 1 and not (set(letters) <= _LETTERS or (after_digit and len(letters) == 2)):
        raise _Unread
    return [*(("name", letter) for letter in letters[:-1]), ("name", letters[-1] + re.sub(r"[(){}]", "", mark))]


def _number(text: str) -> float:
    whole, blank, fraction = text.partition(" ")
    if blank:
        top, _, bottom = fraction.partition("/")
        if len(text) > 40 or not int(bottom):
            raise _Unread
        return int(whole) + int(top) / int(bottom)
    return float(text.replace(",", ""))


def _real(value: Value) -> Value:
    """`value` as a float where it has no imaginary part."""
    if isinstance(value, complex):
        return value.real if abs(value.imag) <= 1e-15 * abs(value.real) else value
    return float(value)


def _added(a: Node, b: Node, sign: int) -> Node:
    def node(point: Mapping[str, float]) -> Value:
        ours, theirs = a(point), sign * b(point)
        total = ours + theirs
        # what is left of two equal terms is rounding
        return 0.0 if abs(total) <= 1e-14 * abs(ours) else total

    return node


def _multiplied(a: Node, b: Node) -> Node:
    return lambda point: a(point) * b(point)


def _divided(a: Node, b: Node) -> Node:
    return lambda point: a(point) / b(point)


def _scaled(a: Node, factor: float) -> Node:
    return lambda point: a(point) * factor


def _raised(a: Node, b: Node, sign: int) -> Node:
    return lambda point: _real(a(point) ** (sign * b(point)))


def _rooted(a: Node, degree: Node) -> Node:
    def node(point: Mapping[str, float]) -> Value:
        inside, n = _real(a(point)), degree(point)
        if isinstance(inside, float) and inside < 0 and n == 3:
            return -((-inside) ** (1 / n))  # the real cube root
        return _real(inside ** (1 / n))

    return node


def _factorial(a: Node) -> Node:
    def node(point: Mapping[str, float]) -> Value:
        value = a(point)
        if isinstance(value, complex):
            raise ValueError("a factorial of a complex number")
        return math.gamma(value + 1)

    return node


def _called(name: str, argument: Node, base: str) -> Node:
    function = cmath.log if base else _FUNCTIONS[name]

    def node(point: Mapping[str, float]) -> Value:
        value = function(complex(argument(point)))
        if base:
            value = value / cmath.log(float(base) if base.isdecimal() else point[base])
        # sin(π) is rounding
        return 0.0 if abs(value) <= 1e-15 else _real(value)

    return node
