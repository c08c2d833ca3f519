"""Mathematical answers: numbers, expressions, equations, intervals and sets, also in LaTeX."""

from __future__ import annotations

from dyme.data.record import Record
from dyme.rewards.answer import gold_answers
from dyme.rewards.values import Rules, same_as_any


def verify_math(answer: str, record: Record, relative_tolerance: float = 1e-6) -> float:
    """1.0 if the answer is the same value as a gold answer ("1/2", "x = 0.5").

    An expression need not be worked out: "12 + 3" is right for 15. Text with words is never an expression.
    """
    return float(same_as_any(answer, gold_answers(record), Rules(relative_tolerance, mathematics=True)))
