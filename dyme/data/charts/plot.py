"""Full charts as pictures, through matplotlib's object interface: no global figure, so threads may draw at once."""

from __future__ import annotations

from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MultipleLocator
from PIL import Image

from dyme.data.charts.chart import Chart, say

_DPI = 100
_PALETTES = (
    ("#4e79a7", "#f28e2b", "#e15759", "#76b7b2", "#59a14f", "#edc948", "#b07aa1", "#9c755f"),
    ("#1b9e77", "#d95f02", "#7570b3", "#e7298a", "#66a61e", "#e6ab02", "#a6761d", "#666666"),
    ("#003f5c", "#bc5090", "#ffa600", "#58508d", "#ff6361", "#2f9e8f", "#8a9a5b", "#7a7a7a"),
    ("#8dd3c7", "#fdb462", "#bebada", "#fb8072", "#80b1d3", "#b3de69", "#fccde5", "#bc80bd"),
)


def draw_plot(chart: Chart, width: int, max_value: int) -> Image.Image:
    """The chart in RGB, `width` pixels wide and 3/4 of that high; the same chart gives the same pixels."""
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12)
    figure = Figure(figsize=(width / _DPI, width * 3 // 4 / _DPI), dpi=_DPI, layout=layout, facecolor="white")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot(facecolor="white")
    axes.set_title(chart.title, fontsize=14, pad=12)
    colours = _PALETTES[chart.style % len(_PALETTES)]
    if chart.kind == "pie":
        _pie(axes, chart, colours)
    elif chart.kind == "bar":
        _bars(axes, chart, colours, max_value)
    else:
        _line(axes, chart, colours, max_value)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())


def _table(chart: Chart) -> tuple[list[str], list[float], list[str]]:
    names = [r.name for r in chart.readings]
    values = [r.value / 10**chart.decimals for r in chart.readings]
    return names, values, [say(r.value, chart.decimals) for r in chart.readings]


def _bars(axes: Axes, chart: Chart, colours: tuple[str, ...], max_value: int) -> None:
    names, values, texts = _table(chart)
    horizontal = chart.style // 4 % 3 == 0
    many = chart.style // 16 % 2 == 0  # one colour for each category, named in a legend, or one colour for all
    fills = list(colours[: len(names)]) if many else [colours[chart.style // 32 % len(colours)]] * len(names)
    labels = names if many else [chart.axis] + [f"_{n}" for n in names[1:]]  # matplotlib hides labels that start with _
    draw = axes.barh if horizontal else axes.bar
    marks = draw(names, values, 0.65, color=fills, label=labels, zorder=2)
    if chart.labelled:
        axes.bar_label(marks, texts, padding=3, fontsize=10)
    if horizontal:
        axes.invert_yaxis()
    _scale(axes, chart, max_value, "x" if horizontal else "y")
    _legend(axes, many)


def _line(axes: Axes, chart: Chart, colours: tuple[str, ...], max_value: int) -> None:
    names, values, texts = _table(chart)
    colour = colours[chart.style // 32 % len(colours)]
    axes.plot(names, values, color=colour, marker="os^D"[chart.style // 4 % 4], linewidth=2, label=chart.axis, zorder=2)
    if chart.labelled:
        for k, (value, text) in enumerate(zip(values, texts)):
            low = all(value < v for v in values[max(0, k - 1) : k] + values[k + 1 : k + 2])
            offset = -17 if low and value > max_value / 8 else 8  # in a valley the line itself is above the mark
            axes.annotate(text, (k, value), (0, offset), textcoords="offset points", ha="center", fontsize=10)
    axes.margins(x=0.08)
    _scale(axes, chart, max_value, "y")
    _legend(axes, False)


def _pie(axes: Axes, chart: Chart, colours: tuple[str, ...]) -> None:
    names, values, texts = _table(chart)
    wedges = axes.pie(
        values, colors=colours[: len(names)], startangle=90, counterclock=False, wedgeprops={"edgecolor": "white"}
    )[0]
    for wedge, text in zip(wedges, texts):
        middle = np.deg2rad((wedge.theta1 + wedge.theta2) / 2)
        axes.text(1.14 * np.cos(middle), 1.14 * np.sin(middle), f"{text}%", ha="center", va="center", fontsize=10)
    axes.legend(wedges, names, loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False)


def _scale(axes: Axes, chart: Chart, max_value: int, which: Literal["x", "y"]) -> None:
    """The value axis: from 0, ticks at tenths of the range, grid lines at twentieths, so that heights can be read."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    axes.set(**{f"{which}lim": (0, max_value * 1.12), f"{which}label": chart.axis})
    axis.set_major_locator(MultipleLocator(max_value / 10))
    axis.set_minor_locator(MultipleLocator(max_value / 20))
    axes.grid(axis=which, which="both", color="#dddddd", linewidth=0.7, zorder=0)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _legend(axes: Axes, outside: bool) -> None:
    if outside:
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    else:
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), frameon=False)
