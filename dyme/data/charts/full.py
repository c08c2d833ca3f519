"""Full charts: content in words, with themes, larger values and decimals."""

from __future__ import annotations

import random
from dataclasses import dataclass

from dyme.data.charts.chart import Chart, ChartKind, Reading
from dyme.data.charts.config import ChartSettings
from dyme.data.charts.tiny import parts_of


@dataclass(frozen=True)
class Theme:
    """What a chart is about; `names` has more categories than a chart shows. `ordered` names keep their order;
    `shares` says that the categories add up to something, as a pie needs."""

    title: str
    axis: str
    noun: str
    plural: str
    names: tuple[str, ...]
    ordered: bool = False
    shares: bool = True


_MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October")
_SEASONS = ("Spring", "Summer", "Autumn", "Winter")
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_CITIES = ("Lisbon", "Oslo", "Rome", "Vienna", "Athens", "Dublin", "Prague", "Madrid", "Berlin", "Warsaw")
_FRUITS = ("Apples", "Pears", "Cherries", "Plums", "Grapes", "Oranges", "Lemons", "Peaches", "Melons")
_TRADES = ("Farming", "Mining", "Retail", "Transport", "Education", "Health", "Finance", "Energy", "Tourism")
_COUNTRIES = ("Brazil", "Canada", "Egypt", "France", "India", "Japan", "Kenya", "Mexico", "Norway", "Poland")
_SPORTS = ("Football", "Tennis", "Swimming", "Cycling", "Rowing", "Boxing", "Hockey", "Judo", "Running")
_FUELS = ("Coal", "Gas", "Oil", "Wind", "Solar", "Hydro", "Nuclear", "Biomass")

THEMES = (
    Theme("Rainfall by month", "Rainfall (mm)", "month", "months", _MONTHS, ordered=True),
    Theme("Visitors of the museum", "Visitors (thousands)", "day", "days", _DAYS, ordered=True),
    Theme("Books lent by the library", "Books lent (hundreds)", "month", "months", _MONTHS, ordered=True),
    Theme("Trains that ran late", "Late trains (%)", "day", "days", _DAYS, ordered=True, shares=False),
    Theme("Ice cream sold at the beach", "Sold (hundreds)", "month", "months", _MONTHS, ordered=True),
    Theme("Guests of the mountain hotel", "Guests (hundreds)", "season", "seasons", _SEASONS, ordered=True),
    Theme("Air quality index", "Index", "city", "cities", _CITIES, shares=False),
    Theme("Rent of a flat compared with 2010", "Rise (%)", "city", "cities", _CITIES, shares=False),
    Theme("Fruit sold at the market", "Sold (tonnes)", "fruit", "fruits", _FRUITS),
    Theme("Jobs by industry", "Jobs (thousands)", "industry", "industries", _TRADES),
    Theme("Exports of machinery", "Exports (billion USD)", "country", "countries", _COUNTRIES),
    Theme("Members of sports clubs", "Members (thousands)", "sport", "sports", _SPORTS),
    Theme("Electricity by source", "Output (TWh)", "source", "sources", _FUELS),
)
PIE_TOTAL = 100


def draw_content(config: ChartSettings, rng: random.Random) -> Chart:
    """A random themed chart of 2 to `max_items` categories.

    Values without labels lie on a grid of max_value / 20, so that they can be read off the axis; with decimals they are
    always written at their marks.
    """
    kind: ChartKind = rng.choice(config.charts)
    # as in real charts, lines need ordered categories and pies need shares of a whole
    suits = {"bar": THEMES, "line": [t for t in THEMES if t.ordered], "pie": [t for t in THEMES if t.shares]}
    theme = rng.choice(suits[kind])
    n = min(rng.randint(min(3, config.max_items), config.max_items), len(theme.names))
    first = rng.randint(0, len(theme.names) - n) if theme.ordered else 0
    names = list(theme.names[first : first + n]) if theme.ordered else rng.sample(theme.names, n)
    decimals, labelled = 0, True
    low, high = config.value_range
    if kind == "pie":
        values = [3 + part for part in parts_of(PIE_TOTAL - 3 * len(names), len(names), rng)]
    elif rng.random() < 0.4:
        decimals = 1
        values = [rng.randint(10 * low, 10 * high) for _ in names]
    elif rng.random() < 0.5:
        values = [rng.randint(low, high) for _ in names]
    else:
        labelled = False
        mark = config.max_value // 20
        values = [mark * rng.randint(-(-low // mark), high // mark) for _ in names]
    title = f"{theme.title}, share in %" if kind == "pie" else theme.title
    readings = tuple(Reading(name, value) for name, value in zip(names, values))
    style = rng.randrange(1 << 16)
    return Chart(kind, readings, decimals, title, theme.axis, theme.noun, theme.plural, labelled, style)
