"""Chart: the content of one generated chart, and the split it belongs to."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

ChartKind = Literal["bar", "line", "pie"]
Split = Literal["train", "test"]

TEST_SHARE = 5  # one chart content in five is held out


@dataclass(frozen=True)
class Reading:
    """One category of a chart. `value` counts units of 10^-decimals of its chart (345 with one decimal is 34.5)."""

    name: str
    value: int


@dataclass(frozen=True)
class Chart:
    """What a chart shows, in drawing order.

    `noun` names one category ("city"), `plural` several. `labelled` charts have the value written at each mark. `style`
    picks colours and orientation at full scale and is no part of the content.
    """

    kind: ChartKind
    readings: tuple[Reading, ...]
    decimals: int = 0
    title: str = ""
    axis: str = ""
    noun: str = ""
    plural: str = ""
    labelled: bool = False
    style: int = 0


def say(value: int, decimals: int) -> str:
    """`value` as it is written in questions, traces and on charts: say(345, 1) is "34.5", say(340, 1) is "34"."""
    whole, rest = divmod(abs(value), 10**decimals)
    sign = "-" if value < 0 else ""
    return f"{sign}{whole}.{rest:0{decimals}d}" if rest else f"{sign}{whole}"


def facts(chart: Chart, readings: tuple[Reading, ...] | None = None) -> str:
    """The table of readings in words: "red 3, blue 7, green 2"."""
    return ", ".join(f"{r.name} {say(r.value, chart.decimals)}" for r in readings or chart.readings)


def split_of(chart: Chart) -> Split:
    """The only split this content may occur in.

    Order, chart kind and style do not count: the same readings drawn as a pie would let a model answer from memory.
    The seed does not count either, so splits of different seeds are disjoint too.
    """
    content = ";".join(sorted(f"{r.name}={say(r.value, chart.decimals)}" for r in chart.readings))
    digest = hashlib.sha256(content.encode()).digest()
    return "test" if int.from_bytes(digest[:8], "big") % TEST_SHARE == 0 else "train"
