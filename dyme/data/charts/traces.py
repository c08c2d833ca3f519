"""Demonstrations in three qualities: structured, plain, and the rambling pseudo trace that DyME refines."""

from __future__ import annotations

import random

from dyme.data.charts.chart import Chart, Reading, facts, say
from dyme.data.charts.config import Trace
from dyme.data.charts.questions import Question, Scale

_OPENERS = ("well", "hmm", "ok")
_LINKS = ("then", "maybe", "and also")
_ENDINGS = ("looks like", "i guess", "probably")


def write_trace(
    chart: Chart, question: Question, scale: Scale, quality: Trace, wrong_probability: float, rng: random.Random
) -> str:
    """The trace of a question. Only `low` uses `wrong_probability` and `rng`; all end in the right answer."""
    if quality == "low":
        return _low(chart, question, scale, wrong_probability, rng)
    readings, step, answer = facts(chart), question.step, question.answer
    if quality == "high":
        if scale == "tiny":
            return f"read: {readings}. step: {step}. so: {answer}."
        return f"Readings: {readings}.\nStep: {step}.\nSo the result is {answer}."
    readings = readings.replace(", ", " and ")
    if scale == "tiny":
        return f"{readings} and {step} so {answer}"
    return f"The chart shows {readings}, and {step}, so it is {answer}."


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
