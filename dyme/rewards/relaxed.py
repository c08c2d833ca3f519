"""Relaxed accuracy of ChartQA: numbers within 5 % of the gold value, everything else compared as text.

Definition: Masry et al., ChartQA (2022), section 5.1, https://arxiv.org/abs/2203.10244. Numbers are read as by the
metric published with pix2struct: float literals, and a trailing per cent sign divides by 100.
"""

from __future__ import annotations

import math
import re
import unicodedata

from dyme.data.record import Record
from dyme.rewards.answer import clean_answer, gold_answers
from dyme.text.visible import visible

TOLERANCE = 0.05
"""Error allowed as a fraction of the gold value, never of the prediction."""
MAX_NUMBER_CHARS = 400
"""Characters; longer text is not a number, since every finite float fits when written out."""

# the published metric calls float(), which also accepts "1_000", "nan" and "infinity"; charts do not write these
_FLOAT = re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e[-+]?[0-9]{1,4})?", re.IGNORECASE)


def verify_relaxed(answer: str, record: Record) -> float:
    """1.0 if the answer is within 5 % of a gold number, or equals a gold answer but for case."""
    return float(
        any(_relaxed(clean_answer(visible(answer)), clean_answer(visible(gold))) for gold in gold_answers(record))
    )


def _relaxed(given: str, gold: str) -> bool:
    ours, theirs = _number(given), _number(gold)
    # 5 % of a gold of 0 is 0, so the published metric compares it as text
    if ours is not None and theirs:
        return abs(ours - theirs) / abs(theirs) <= TOLERANCE
    return bool(given) and given.lower() == gold.lower()


def _number(text: str) -> float | None:
    digits = text.removesuffix("%").strip()
    if len(digits) > MAX_NUMBER_CHARS:
        return None
    # float() of the published metric reads the digits of any script
    digits = "".join(str(unicodedata.decimal(char)) if char.isdecimal() else char for char in digits)
    if not _FLOAT.fullmatch(digits):
        return None
    value = float(digits)
    if not math.isfinite(value):
        return None
    return value / 100.0 if text.endswith("%") else value
