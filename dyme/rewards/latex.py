"""LaTeX mathematics in plain characters: "\\frac{1}{2}" is "1/2", "25\\text{ cm}^2" is "25 cm^2"."""

from __future__ import annotations

import re
from functools import lru_cache

from dyme.text.units import read_unit

MAX_CHARS = 2000
"""Characters; LaTeX in longer text is left as it is."""

_SYMBOL_TEXT = r"""
pi π theta θ alpha α beta β gamma γ delta δ epsilon ε varepsilon ε lambda λ mu μ sigma σ phi φ varphi φ omega ω rho ρ
tau τ eta η Delta Δ Omega Ω Sigma Σ Phi Φ Gamma Γ Theta Θ Lambda Λ times × cdot · div ÷ ast * pm ± mp ∓ infty ∞ le ≤
leq ≤ leqslant ≤ ge ≥ geq ≥ geqslant ≥ ne ≠ neq ≠ lt < gt > approx ≈ sim ~ cup ∪ cap ∩ in ∈ to → rightarrow →
degree ° circ ° lbrace { rbrace } lvert | rvert | vert | mid | colon : emptyset ∅ varnothing ∅ subset ⊂ angle ∠
triangle △ perp ⊥
parallel ∥ prime ' ldots ... cdots ... dots ...
"""
_SYMBOLS = dict(zip(_SYMBOL_TEXT.split()[::2], _SYMBOL_TEXT.split()[1::2], strict=True))
_FUNCTION_TEXT = "sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln lg exp"
_FUNCTIONS = frozenset(_FUNCTION_TEXT.split())
_SETS = dict(zip("NZQRC", "ℕℤℚℝℂ", strict=True))

_INLINE = re.compile(r"(?<![\\\w$])(\${1,2})(?! )([^$]*[^$ ])\1(?![\w$])")
_WHOLE = re.compile(r"\${1,2} ?([^$]*[^$ ]) ?\${1,2}")
_BLACKBOARD = re.compile(r"\\mathbb ?\{?([NZQRC])\}?")
_NAMED = re.compile(
    r"\\(?:text|textbf|textit|textrm|textsf|texttt|mathrm|mathbf|mathit|mathsf|operatorname|mbox|hbox|boldsymbol|bm)"
    r"\*? ?\{([^{}]*)\}"
)
_MATRIX = re.compile(r"\\begin ?\{([pb]?matrix)\}([^{}]*)\\end ?\{\1\}")
_SILENT = re.compile(
    r"\\[()\[\]!]|\\(?:left|right|bigl?|bigr|Bigl?|Bigr|displaystyle|limits|mathstrut)(?![a-zA-Z])|(?<=\d)\{(?=,\})|(?<=\{,)\}"
)
_SPACING = re.compile(r"\\[,;:> ]|\\q?quad(?![a-zA-Z])|(?<=\w)~(?=\w)")
_DEGREE = re.compile(r" ?\^ ?(?:\{ ?\\circ ?\}|\\circ(?![a-zA-Z]))")
_SCRIPT = re.compile(r"([\^_]) ?\{ ?([^{}]*?) ?\}")
_ARGUMENT = r" ?(?:\{([^{}]*)\}|([0-9a-zA-Z]))"
_FRACTION = re.compile(rf"\\[dtc]?frac(?![a-zA-Z]){_ARGUMENT}{_ARGUMENT}|\\[dtc]?frac(\d)(\d)")
_ROOT = re.compile(r"\\sqrt(?![a-zA-Z]) ?(?:\[([^\[\]{}]*)\])?(?: ?\{([^{}]*)\})?")
_COMMAND = re.compile(r"\\([a-zA-Z]+)")
_ESCAPED = re.compile(r"\\([%$#&_])")
_SIMPLE = re.compile(r"[-+]?\d+|\w|\d*[-+]")
# after these a fraction needs brackets; words may follow it ("\frac{3}{4}\text{ cup}")
_GOES_ON = re.compile(r" ?[(\[{√π^_\\/!\d]| ?[^\W\d_](?![^\W\d_])|[^\W\d_]")


@lru_cache(maxsize=16384)
def unlatex(text: str) -> str:
    """`text` with LaTeX replaced by plain characters that mean the same; unknown commands stay as they are.

    Brackets are added where a fraction, root or exponent needs them.
    """
    whole = _WHOLE.fullmatch(text)
    text = whole[1] if whole else _INLINE.sub(r"\2", text)
    if ("\\" not in text and "{" not in text) or len(text) > MAX_CHARS:
        return text
    text = _MATRIX.sub(_matrix, text)
    text = _SPACING.sub(" ", _DEGREE.sub("°", _SILENT.sub("", text)))
    # braces of a set must not be taken for those that group
    text = text.replace(r"\{", "⦃").replace(r"\}", "⦄")
    text = _BLACKBOARD.sub(lambda match: _SETS[match[1]], text)
    for _ in range(12):
        before = text
        text = _SCRIPT.sub(_script, _NAMED.sub(r"\1", text))
        text = _ROOT.sub(_root, _FRACTION.sub(_fraction, text))
        if text == before:
            break
    text = _ESCAPED.sub(r"\1", _COMMAND.sub(_symbol, text))
    return " ".join(text.replace("⦃", "{").replace("⦄", "}").split())


def _matrix(match: re.Match[str]) -> str:
    rows = (", ".join(cell.strip() for cell in row.split("&")) for row in match[2].split(r"\\") if row.strip())
    return "[" + ", ".join(f"[{row}]" for row in rows) + "]"


def _script(match: re.Match[str]) -> str:
    mark, inside = match[1], match[2]
    follows = match.string[match.end() : match.end() + 1]
    plain = _SIMPLE.fullmatch(inside) and not (follows.isalnum() or follows in (".", "_"))
    return f"{mark}{inside}" if plain else f"{mark}({inside})"


def _fraction(match: re.Match[str]) -> str:
    top, bottom = match[1] or match[2] or match[5], match[3] or match[4] or match[6]
    before = match.string[: match.start()].rstrip()[-1:]
    goes_on = _GOES_ON.match(match.string, match.end())
    top, bottom = (top or "").strip(), (bottom or "").strip()
    if before.isdecimal() and not top.isdecimal():
        unit = read_unit(f"{top}/{bottom}")
        if unit and unit.known and unit.end == len(top) + len(bottom) + 1:
            return f" {top}/{bottom}"
    if top.isdecimal() and bottom.isdecimal() and not goes_on:
        if before.isdecimal():
            return f" {top}/{bottom}"
        if not before or before in "=,;([+-<>≤≥$:⦃":
            return f"{top}/{bottom}"
    return f"(({top})/({bottom}))"


def _root(match: re.Match[str]) -> str:
    degree, inside = match[1], match[2]
    follows = match.string[match.end() : match.end() + 1]
    mark = f"√[{degree}]" if degree else "√"
    if inside is None:
        return mark
    simple = (
        inside.isalnum() and (len(inside) == 1 or inside.isdecimal()) and not (follows.isalnum() or follows in "._^")
    )
    return f"{mark}{inside}" if simple and not degree else f"{mark}({inside})"


def _symbol(match: re.Match[str]) -> str:
    name = match[1]
    if name in _FUNCTIONS:
        return f" {name}"
    return _SYMBOLS.get(name, match[0])
