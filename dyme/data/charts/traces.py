"""Demonstrations in three qualities: structured, plain, and the rambling pseudo trace that DyME refines."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from dyme.data.charts.chart import Chart, Reading, facts, say
from dyme.data.charts.questions import Question, Scale

if TYPE_CHECKING:
    from dyme.data.charts.config import Trace

_OPENERS = ("well", "hmm", "ok")
_LINKS = ("then", "maybe", "and also")
_ENDINGS = ("looks like", "i guess", "probably")


def write_trace(
    chart: Chart, question: Question, scale: Scale, quality: Trace, wrong_probability: float, rng: random.Random
) -> str:
    """The trace of a question. Only `low` uses `wrong_probability` and `rng`; all end in the right answer."""
    if quality == "high":
        return _high(chart, question, scale)
    if quality == "medium":
        return _medium(chart, question, scale)
    return _low(chart, question, scale, wrong_probability, rng)


def _high(chart: Chart, q: Question, scale: Scale) -> str:
    if scale == "tiny":
        return f"read: {facts(chart)}. step: {q.step}. so: {q.answer}."
    return f"Readings: {facts(chart)}.\nStep: {q.step}.\nSo the result is {q.answer}."


def _medium(chart: Chart, q: Question, scale: Scale) -> str:
    readings = facts(chart).replace(", ", " and ")
    if scale == "tiny":
        return f"{readings} and {q.step} so {q.answer}"
    return f"The chart shows {readings}, and {q.step}, so it is {q.answer}."


def _low(chart: Chart, q: Question, scale: Scale, wrong_probability: float, rng: random.Random) -> str:
    readings = list(chart.readings)
    if rng.random() < wrong_probability:
        k = rng.randrange(len(readings))
        readings[k] = _misread(readings[k], chart)
    rng.shuffle(readings)
    words = [f"{r.name} {say(r.value, chart.decimals)}" for r in readings]
    tail = "".join(f" {rng.choice(_LINKS)} {w}" for w in words[1:])
    opener, ending = rng.choice(_OPENERS), rng.choice(_ENDINGS)
    if scale == "tiny":
        return f"{opener} i see {words[0]}{tail} {ending} {q.answer}"
    return f"{opener}, there is a chart and i see {words[0]}{tail} and so on, {ending} it is {q.answer}"


def _misread(reading: Reading, chart: Chart) -> Reading:
    """A neighbouring value, as a careless reader gets it; never below one unit."""
    off = max(1, max(r.value for r in chart.readings) // 10)
    return Reading(reading.name, reading.value - off if reading.value > off else reading.value + off)
