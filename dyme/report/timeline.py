"""profile.png: the last steps, one line each, phases above and the inside of the update below."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from dyme.metrics.profile import Span
from dyme.report.figure import STYLE, TIME_PARTS, WIDTH

COLORS = {**TIME_PARTS, "forward": "#EBAC23", "backward": "#B80058", "optimizer": "#555555"}
LANES = {"phase": (-0.38, 0.42), "update": (0.06, 0.26)}  # offset from the step's line, height


def save_timeline(spans: Sequence[Span], path: Path, dpi: int = 200) -> None:
    """Draws spans of one or more steps into the PNG `path`."""
    with mpl.rc_context(STYLE):
        figure = draw(spans)
        FigureCanvasAgg(figure)
        figure.savefig(path, dpi=dpi, facecolor="white")


def draw(spans: Sequence[Span]) -> Figure:
    """Seconds since the start of its step on the x axis; the legend has the share of each name in the steps shown."""
    begin = {span.step: span.start for span in spans if span.track == "step"}
    total = sum(span.seconds for span in spans if span.track == "step")
    figure = Figure(figsize=(WIDTH, 0.32 * len(begin) + 1.2), layout="constrained")
    ax: Axes = figure.subplots()
    line = {step: at for at, step in enumerate(begin)}
    for span in spans:
        if span.track in LANES:
            offset, height = LANES[span.track]
            where = (span.start - begin[span.step], span.seconds)
            ax.broken_barh([where], (line[span.step] + offset, height), facecolors=COLORS[span.name], linewidth=0)
    ax.set_title("Where the time of a step goes: phases, and below them the inside of the update")
    ax.set(xlabel="seconds since the start of the step", ylabel="step", xlim=(0, None))
    ax.set(ylim=(len(begin) - 0.5, -0.5), yticks=list(line.values()), yticklabels=[str(step + 1) for step in line])
    ax.xaxis.set_major_locator(MaxNLocator(8))
    ax.grid(axis="y", visible=False)
    ax.grid(axis="x")
    names = [name for name in COLORS if any(span.name == name for span in spans)]
    shares = {n: 100 * sum(span.seconds for span in spans if span.name == n) / max(total, 1e-9) for n in names}
    handles = [Patch(color=COLORS[name], label=f"{name} {shares[name]:.0f} %") for name in names]
    figure.legend(handles=handles, loc="outside lower center", ncols=5, handlelength=0.9)
    return figure
