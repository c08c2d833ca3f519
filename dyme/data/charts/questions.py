"""Question: a question about a chart, its one right answer, and the reasoning step between them."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

from dyme.data.charts.chart import Chart, facts, say
from dyme.data.charts.config import QuestionKind

Scale = Literal["tiny", "full"]

# Few words at tiny scale: an untrained model has to learn every one of them.
_TEXT: dict[Scale, dict[str, str]] = {
    "tiny": {
        "value": "value of {a}?",
        "maximum": "which is largest?",
        "minimum": "which is smallest?",
        "count": "how many over {t}?",
        "sum": "{a} plus {b}?",
        "difference": "{a} minus {b}?",
        "comparison": "which is larger, {a} or {b}?",
    },
    "full": {
        "value": "What is the value of {a}?",
        "maximum": "Which {noun} has the highest value?",
        "minimum": "Which {noun} has the lowest value?",
        "count": "How many {plural} have a value above {t}?",
        "sum": "What is the sum of {a} and {b}?",
        "difference": "How much larger is {a} than {b}?",
        "comparison": "Which is larger, {a} or {b}?",
    },
}
_STEP: dict[Scale, dict[str, str]] = {
    "tiny": {
        "value": "{a} is {x}",
        "maximum": "largest is {a} {x}",
        "minimum": "smallest is {a} {x}",
        "count": "over {t}: {some}",
        "sum": "{x} + {y} = {answer}",
        "difference": "{x} - {y} = {answer}",
        "comparison": "{more} is more than {less}",
    },
    "full": {
        "value": "{a} is at {x}",
        "maximum": "the highest value is {x}, at {a}",
        "minimum": "the lowest value is {x}, at {a}",
        "count": "above {t}: {some}",
        "sum": "{x} + {y} = {answer}",
        "difference": "{x} - {y} = {answer}",
        "comparison": "{more} is more than {less}",
    },
}
CAPTION: dict[Scale, str] = {"tiny": "describe the chart.", "full": "Describe the chart: list every reading."}


@dataclass(frozen=True)
class Question:
    """`step` is the reasoning between the readings and the answer, without punctuation at its end."""

    kind: str
    text: str
    answer: str
    step: str


def ask(chart: Chart, kind: QuestionKind, scale: Scale, rng: random.Random) -> Question | None:
    """A question of this kind; None where a tie leaves the chart without one right answer."""
    a, b = rng.sample(chart.readings, 2)
    threshold = _threshold(chart, rng) if kind == "count" else 0
    if kind in ("maximum", "minimum"):
        order = sorted(chart.readings, key=lambda r: r.value, reverse=kind == "maximum")
        if order[0].value == order[1].value:
            return None
        a = order[0]
    if kind == "comparison" and a.value == b.value:
        return None
    if kind == "difference" and a.value < b.value:
        a, b = b, a
    above = tuple(r for r in chart.readings if r.value > threshold)
    more, less = (a, b) if a.value > b.value else (b, a)
    x, y = say(a.value, chart.decimals), say(b.value, chart.decimals)
    answer = {
        "value": x,
        "maximum": a.name,
        "minimum": a.name,
        "count": str(len(above)),
        "sum": say(a.value + b.value, chart.decimals),
        "difference": say(a.value - b.value, chart.decimals),
        "comparison": more.name,
    }[kind]
    words = {
        "a": a.name,
        "b": b.name,
        "x": x,
        "y": y,
        "t": say(threshold, chart.decimals),
        "some": facts(chart, above) if above else "none",
        "more": facts(chart, (more,)),
        "less": facts(chart, (less,)),
        "noun": chart.noun,
        "plural": chart.plural,
        "answer": answer,
    }
    return Question(kind, _TEXT[scale][kind].format(**words), answer, _STEP[scale][kind].format(**words))


def _threshold(chart: Chart, rng: random.Random) -> int:
    """A whole number at or just below one of the values: any other choice makes most answers 1 and rewards guessing."""
    one = 10**chart.decimals
    whole = rng.choice(chart.readings).value // one
    return max(0, whole - rng.randint(0, 1)) * one
