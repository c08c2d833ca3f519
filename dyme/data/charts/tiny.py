"""Tiny charts: content drawn at random, and a picture small enough for a model of a million parameters.

Reading values is the only difficulty: columns have fixed slots, one unit is a whole number of pixels, colours are
corners of the RGB cube.
"""

from __future__ import annotations

import random

from PIL import Image, ImageDraw

from dyme.data.charts.chart import Chart, ChartKind, Reading
from dyme.data.charts.config import ChartSettings

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (255, 0, 0),
    "green": (0, 255, 0),
    "blue": (0, 0, 255),
    "yellow": (255, 255, 0),
    "pink": (255, 0, 255),
    "cyan": (0, 255, 255),
}
PIE_PARTS = 10
_GREY = (150, 150, 150)


def draw_content(config: ChartSettings, rng: random.Random) -> Chart:
    """A random chart of 2 to `max_items` of the source's colours."""
    kind: ChartKind = rng.choice(config.charts)
    names = rng.sample(config.colours, rng.randint(2, min(config.max_items, len(config.colours))))
    if kind == "pie":
        values = parts_of(PIE_PARTS, len(names), rng)
    else:
        values = [rng.randint(*config.value_range) for _ in names]
    return Chart(kind, tuple(Reading(n, v) for n, v in zip(names, values)), noun="colour", plural="colours")


def parts_of(total: int, n: int, rng: random.Random) -> list[int]:
    """`total` cut into `n` whole parts of at least 1, every cut equally likely."""
    cuts = sorted(rng.sample(range(1, total), n - 1))
    return [b - a for a, b in zip([0, *cuts], [*cuts, total])]


def draw_picture(chart: Chart, size: int, slots: int, max_value: int) -> Image.Image:
    """The chart as a `size` x `size` RGB picture with `slots` columns; value v ends v units above the bottom edge."""
    image = Image.new("RGB", (size, size), "white")
    pen = ImageDraw.Draw(image)
    if chart.kind == "pie":
        _pie(pen, chart, size)
        return image
    unit = (size - 2) // max_value
    slot = size // slots
    tops = [size - unit * r.value for r in chart.readings]
    if chart.kind == "bar":
        for k, (r, top) in enumerate(zip(chart.readings, tops)):
            pen.rectangle((k * slot + 1, top, (k + 1) * slot - 2, size - 1), fill=COLOURS[r.name])
        return image
    side = max(unit + 1, 4)
    centres = [(k * slot + slot // 2, top + unit - side // 2) for k, top in enumerate(tops)]
    pen.line(centres, fill=_GREY)
    for r, (x, y) in zip(chart.readings, centres):
        left, top = x - side // 2, y - side // 2
        pen.rectangle((left, top, left + side - 1, top + side - 1), fill=COLOURS[r.name])
    return image


def _pie(pen: ImageDraw.ImageDraw, chart: Chart, size: int) -> None:
    start = -90.0  # twelve o'clock, then clockwise
    for r in chart.readings:
        end = start + 360.0 * r.value / PIE_PARTS
        pen.pieslice((1, 1, size - 2, size - 2), start, end, fill=COLOURS[r.name])
        start = end
