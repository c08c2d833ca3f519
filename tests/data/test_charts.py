"""Generated charts: every answer re-derived from the facts, every picture measured, every promise about seeds tried."""

from __future__ import annotations

import pickle
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import numpy as np
import pytest
from pydantic import ValidationError

from dyme.data import ChartsSource, Record, load_records
from dyme.data.charts import chart_record
from dyme.data.charts.tiny import COLOURS

SCALES = ("tiny", "full")
KINDS = ("value", "maximum", "minimum", "count", "sum", "difference", "comparison")


def table(text: str) -> dict[str, Fraction]:
    return {name: Fraction(value) for name, value in (part.rsplit(" ", 1) for part in text.split(", "))}


def written(number: Fraction) -> str:
    return str(float(number)) if number.denominator > 1 else str(number)


def derive(record: Record) -> str:
    """The answer from facts and question text alone, by other means than the generator's."""
    values = table(record.facts or "")
    named = [w for w in re.findall(r"\w+", record.question) if w in values]
    if record.kind == "caption":
        return record.facts or ""
    if record.kind == "count":
        over = Fraction(re.findall(r"\d+", record.question)[-1])
        return str(sum(v > over for v in values.values()))
    if record.kind in ("maximum", "minimum"):
        best = (max if record.kind == "maximum" else min)(values.values())
        [name] = [n for n, v in values.items() if v == best]  # fails on a tie
        return name
    if record.kind == "comparison":
        first, second = named
        assert values[first] != values[second]
        return first if values[first] > values[second] else second
    if record.kind == "value":
        return written(values[named[0]])
    first, second = named
    return written(values[first] + values[second] if record.kind == "sum" else values[first] - values[second])


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("kind", KINDS)
def test_answers_follow_from_the_facts(scale, kind):
    records = load_records(ChartsSource(scale=scale, count=300, kinds=(kind,), seed=3))
    for record in records:
        assert record.answers == (derive(record),), record
        assert record.kind == kind
    assert len({r.answer for r in records}) > 3


@pytest.mark.parametrize("scale", SCALES)
def test_kinds_and_charts_are_even(scale):
    records = load_records(ChartsSource(scale=scale, count=2100))
    counts = Counter(r.kind for r in records)
    assert set(counts) == set(KINDS) and min(counts.values()) > 230 and max(counts.values()) < 370
    no_gap = [r for r in records if r.kind == "count"]
    assert max(Counter(r.answer for r in no_gap).values()) < 0.5 * len(no_gap)  # else guessing one number pays


@pytest.mark.parametrize("scale", SCALES)
def test_record_is_a_function_of_seed_split_and_index(scale):
    few, many = ChartsSource(scale=scale, count=5), ChartsSource(scale=scale, count=50)
    alone = chart_record(many, 4)
    first = load_records(few)[4]
    second = load_records(many)[4]
    for other in (first, second):
        assert (other.id, other.question, other.answers, other.hint, other.facts) == (
            alone.id,
            alone.question,
            alone.answers,
            alone.hint,
            alone.facts,
        )
        assert other.image.load().tobytes() == alone.image.load().tobytes()
    assert alone.id == "charts-train-000004"
    assert [r.facts for r in load_records(ChartsSource(scale=scale, count=50, seed=1))] != [
        r.facts for r in load_records(many)
    ]


def test_draws_do_not_change_between_versions():
    """Published results name a seed; a change of the generator has to be a decision, not an accident."""
    record = chart_record(ChartsSource(count=1), 0)
    assert (record.question, record.answer) == ("which is larger, green or blue?", "blue")
    assert record.facts == "yellow 6, blue 4, red 9, green 2"
    assert record.hint == "read: yellow 6, blue 4, red 9, green 2. step: blue 4 is more than green 2. so: blue."


def test_trace_quality_changes_only_the_hint():
    by_trace = {t: load_records(ChartsSource(count=200, trace=t)) for t in ("high", "medium", "low")}
    for high, medium, low in zip(*by_trace.values()):
        assert (high.question, high.answers, high.facts) == (low.question, low.answers, low.facts)
        assert (high.question, high.answers, high.facts) == (medium.question, medium.answers, medium.facts)
        assert len({high.hint, medium.hint, low.hint}) == 3


def test_train_and_test_share_no_content():
    train = load_records(ChartsSource(count=4000))
    test = load_records(ChartsSource(count=1500, split="test", seed=7))

    def contents(records):
        return {frozenset(table(r.facts).items()) for r in records}

    def views(records):
        return {(r.question, r.image.load().tobytes()) for r in records}

    assert not contents(train) & contents(test)
    assert not views(train) & views(test)
    assert not {v[1] for v in views(train)} & {v[1] for v in views(test)}  # the same pixels under another question
    assert len(contents(test)) > 300  # held-out data is not a handful of charts
    base = load_records(ChartsSource(count=2000, task="base", charts=("pie",)))
    assert not contents(base) & contents(test)


def test_full_scale_splits_share_no_content():
    sides = [
        {frozenset(table(r.facts).items()) for r in load_records(ChartsSource(scale="full", count=1500, split=split))}
        for split in ("train", "test")
    ]
    assert not sides[0] & sides[1]


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("trace", ["high", "medium", "low"])
def test_traces_end_in_the_answer(scale, trace):
    for record in load_records(ChartsSource(scale=scale, count=400, trace=trace)):
        assert record.hint.rstrip(".").endswith(f" {record.answer}")
        assert "Answer:" not in record.hint
        if trace != "low":
            readings = record.hint.replace(" and ", ", ")
            assert all(part in readings for part in record.facts.split(", "))


def misread(record: Record) -> int:
    """How many readings of a low trace contradict the facts."""
    facts = table(record.facts)
    seen = {n: Fraction(v) for n, v in re.findall(r"(\w+) (\d+(?:\.\d+)?)\b", record.hint) if n in facts}
    assert seen.keys() == facts.keys()
    return sum(seen[n] != facts[n] for n in facts)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_wrong_readings_come_at_the_set_rate(scale, probability):
    n = 1500
    source = ChartsSource(scale=scale, count=n, trace="low", wrong_reading_probability=probability)
    wrong = [misread(r) for r in load_records(source)]
    assert set(wrong) <= {0, 1}
    assert abs(sum(wrong) / n - probability) <= 4 * (probability * (1 - probability) / n) ** 0.5


@pytest.mark.parametrize("trace", ["high", "medium"])
def test_better_traces_never_misread(trace):
    records = load_records(ChartsSource(count=500, trace=trace, wrong_reading_probability=1.0))
    assert all(r.facts in r.hint.replace(" and ", ", ") for r in records)


def test_tiny_texts_are_short_and_their_vocabulary_small():
    words: set[str] = set()
    longest = {}
    for trace in ("high", "medium", "low"):
        records = load_records(ChartsSource(count=3000, trace=trace))
        longest[trace] = max(len(r.hint.split()) for r in records)
        words |= {w for r in records for w in re.findall(r"\w+|[^\w\s]", f"{r.question} {r.hint} {r.answer}")}
    captions = load_records(ChartsSource(count=500, task="base"))
    words |= {w for r in captions for w in re.findall(r"\w+|[^\w\s]", f"{r.question} {r.answer}")}
    assert len(words) < 80, sorted(words)
    assert longest["high"] <= 22 and longest["medium"] <= 25 and longest["low"] <= 25


def test_captions_and_base_tasks():
    captions = load_records(ChartsSource(count=100, task="captions"))
    assert all(r.answer == r.facts and r.hint is None and r.kind == "caption" for r in captions)
    first = load_records(ChartsSource(count=200, task="base", caption_fraction=0.25, captions_first=100))
    assert all(r.kind == "caption" for r in first[:100]) and any(r.kind != "caption" for r in first[100:])
    base = load_records(ChartsSource(count=2000, task="base", caption_fraction=0.25))
    share = sum(r.kind == "caption" for r in base) / len(base)
    assert abs(share - 0.25) < 0.04
    assert all(r.hint is None and r.answer == derive(r) for r in base)
    assert all(" " not in r.answer for r in base if r.kind != "caption")
    assert all(r.kind != "caption" for r in load_records(ChartsSource(count=200, task="base", caption_fraction=0.0)))


def colour_columns(pixels: np.ndarray, name: str) -> np.ndarray:
    return (pixels == COLOURS[name]).all(-1)


def test_tiny_bars_are_three_pixels_a_unit_in_fixed_slots():
    for record in load_records(ChartsSource(count=100, charts=("bar",))):
        pixels = np.asarray(record.image.load())
        assert pixels.shape == (32, 32, 3)
        for slot, (name, value) in enumerate(table(record.facts).items()):
            mask = colour_columns(pixels, name)
            rows, columns = np.nonzero(mask)
            assert (rows.min(), rows.max()) == (32 - 3 * value, 31)
            assert (columns.min(), columns.max()) == (8 * slot + 1, 8 * slot + 6)
            assert mask.sum() == 6 * 3 * value


def test_tiny_lines_have_markers_at_their_heights():
    for record in load_records(ChartsSource(count=100, charts=("line",))):
        pixels = np.asarray(record.image.load())
        for slot, (name, value) in enumerate(table(record.facts).items()):
            rows, columns = np.nonzero(colour_columns(pixels, name))
            assert rows.min() == 31 - 3 * value and len(rows) == 16 and columns.min() // 8 == slot


def test_tiny_pies_have_areas_of_their_tenths():
    for record in load_records(ChartsSource(count=100, charts=("pie",))):
        pixels = np.asarray(record.image.load())
        values = table(record.facts)
        assert sum(values.values()) == 10
        areas = {name: colour_columns(pixels, name).sum() for name in values}
        for name, value in values.items():
            assert abs(10 * areas[name] / sum(areas.values()) - value) < 0.35


def test_other_tiny_sizes_fit():
    for size, items, top in ((64, 6, 9), (36, 6, 15), (32, 4, 4), (64, 4, 15)):
        source = ChartsSource(count=60, size=size, max_items=items, max_value=top)
        for record in load_records(source):
            pixels = np.asarray(record.image.load())
            assert pixels.shape == (size, size, 3)
            assert all(colour_columns(pixels, name).any() for name in table(record.facts))


@pytest.mark.parametrize("chart", ["bar", "line"])
@pytest.mark.parametrize(("scale", "low", "high"), [("tiny", 6, 9), ("full", 52, 77)])
def test_values_are_drawn_from_their_range(scale, chart, low, high):
    source = ChartsSource(scale=scale, count=300, charts=(chart,), values=(low, high), split="test")
    records = load_records(source)
    seen = [value for r in records for value in table(r.facts).values()]
    assert low <= min(seen) < low + 2 and high - 2 < max(seen) <= high
    marks = [v for r in records if not r.image.draw.args[0].labelled for v in table(r.facts).values()]
    assert scale == "tiny" or set(marks) == {55, 60, 65, 70, 75}


def test_a_value_is_drawn_at_the_same_height_whatever_the_range():
    for record in load_records(ChartsSource(count=50, charts=("bar",), values=(6, 9), colours=("red", "cyan"))):
        pixels = np.asarray(record.image.load())
        assert set(table(record.facts)) == {"red", "cyan"}
        for name, value in table(record.facts).items():
            assert np.nonzero(colour_columns(pixels, name))[0].min() == 32 - 3 * value


@pytest.mark.parametrize("kind", ["bar", "line", "pie"])
def test_full_charts_draw_and_differ(kind):
    records = load_records(ChartsSource(scale="full", count=4, charts=(kind,)))
    pictures = [r.image.load() for r in records]
    assert all(p.size == (640, 480) and p.mode == "RGB" for p in pictures)
    assert len({p.tobytes() for p in pictures}) == 4
    assert all(p.getpixel((0, 0)) == (255, 255, 255) for p in pictures)
    assert load_records(ChartsSource(scale="full", count=1, size=320))[0].image.load().size == (320, 240)


def test_full_pictures_are_the_same_from_threads_and_after_pickling():
    records = load_records(ChartsSource(scale="full", count=6))
    alone = [r.image.load().tobytes() for r in records]
    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(lambda r: r.image.load().tobytes(), records)) == alone
    assert pickle.loads(pickle.dumps(records))[2].image.load().tobytes() == alone[2]


def test_full_pies_sum_to_a_hundred_and_plain_values_lie_on_the_grid():
    pies = load_records(ChartsSource(scale="full", count=200, charts=("pie",)))
    assert all(sum(table(r.facts).values()) == 100 for r in pies)
    bars = load_records(ChartsSource(scale="full", count=400, charts=("bar",)))
    plain = [c for r in bars if not (c := r.image.draw.args[0]).labelled]
    assert plain and all(reading.value % 5 == 0 and c.decimals == 0 for c in plain for reading in c.readings)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"count": 0}, "greater than or equal to 1"),
        ({"count": 1, "size": 31}, "size is 31; scale tiny takes 32 to 64"),
        ({"count": 1, "scale": "full", "size": 64}, "size is 64; scale full takes 320"),
        ({"count": 1, "max_items": 6}, "6 columns do not fit 32 pixels"),
        ({"count": 1, "scale": "full", "max_value": 90}, "multiples of 20"),
        ({"count": 1, "kinds": ["median"]}, "'value', 'maximum'"),
        ({"count": 1, "charts": []}, "at least 1"),
        ({"count": 1, "wrong_reading_probability": 1.5}, "less than or equal to 1"),
        ({"count": 1, "colour": "red"}, "Extra inputs"),
        ({"count": 1, "colours": ["red"]}, "at least 2"),
        ({"count": 1, "colours": ["red", "red"]}, "names one twice"),
        ({"count": 1, "colours": ["red", "teal"]}, "'red', 'green'"),
        ({"count": 1, "scale": "full", "colours": ["red", "blue"]}, "leave them out at scale full"),
        ({"count": 1, "values": [2, 5]}, "set charts to bar, line or both"),
        ({"count": 1, "charts": ["bar"], "values": [5, 5]}, "values are 5 to 5"),
        ({"count": 1, "charts": ["bar"], "values": [0, 5]}, "lie in 1 to 9"),
        ({"count": 1, "charts": ["bar"], "values": [5, 10]}, "lie in 1 to 9"),
        ({"count": 1, "scale": "full", "charts": ["bar"], "values": [11, 14]}, "less than two marks"),
    ],
)
def test_settings_that_cannot_be_are_errors(settings, reason):
    with pytest.raises(ValidationError) as error:
        ChartsSource(**settings)
    assert reason in str(error.value)
