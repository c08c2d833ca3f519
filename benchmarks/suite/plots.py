"""Plots of the results page: one for each question, each drawn from what there is of its cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes

from benchmarks.suite.cells import Cell
from benchmarks.suite.methods import LABELS, MAIN
from benchmarks.suite.results import Found, Results
from dyme.report.figure import RUN_COLORS

COLOURS: Mapping[str, str] = {"sft": RUN_COLORS[1], "grpo": RUN_COLORS[0], "two_stage": RUN_COLORS[4]} | {
    "dyme": RUN_COLORS[2],
    "base": "#777777",
}
Named = Sequence[tuple[str, Cell]]
Points = Mapping[str, Sequence[tuple[str, float | None]]]


def curves(ax: Axes, found: Results, cells: Named, key: str, title: str, evals: bool = False) -> None:
    """One quantity over steps, a line for each cell (mean over seeds), thin lines for seeds."""
    ax.set(title=title, xlabel="step", ylim=(0, 1.02))
    for k, (words, cell) in enumerate(cells):
        runs = [got for run in found.runs(cell) if len(got := _points(run, key, evals))]
        if not runs:
            continue
        colour = COLOURS[cell.method] if _by_method(cells) else RUN_COLORS[k % 7]
        for run in runs if len(runs) > 1 else []:
            ax.plot(run[:, 0], run[:, 1], color=colour, lw=0.5, alpha=0.4)
        short = min(map(len, runs))
        ax.plot(runs[0][:short, 0], np.mean([run[:short, 1] for run in runs], axis=0), color=colour, label=words)
    _end(ax, ax.has_data())


def bars(ax: Axes, found: Results, cells: Named, title: str, base: Cell | None = None) -> None:
    """Test accuracy with its interval, a dot for each cell; the base as a line across."""
    ax.set(title=title, xlabel="test accuracy", xlim=(0, 1.02))
    for at, (_, cell) in enumerate(cells):
        value = found.accuracy(cell)
        if value is None:
            ax.text(0.02, at, "not run", va="center", color="#888888", style="italic", fontsize=6)
            continue
        colour = COLOURS.get(cell.method, "#555555")
        if value.low is not None and value.high is not None:
            ax.plot([value.low, value.high], [at, at], color=colour, lw=1.6)
        ax.plot(value.value, at, "o", color=colour, ms=4)
    if base is not None and (level := found.accuracy(base)) is not None:
        ax.axvline(level.value, color=COLOURS["base"], ls="--", lw=0.8)
    ax.set(yticks=range(len(cells)), yticklabels=[words for words, _ in cells], ylim=(len(cells) - 0.5, -0.5))
    ax.grid(True, axis="x")
    ax.grid(False, axis="y")


def stacks(ax: Axes, parts: Mapping[str, Sequence[float] | None], names: Sequence[str], title: str) -> None:
    """Bars of parts that add up, one below the other; what has not run leaves its place empty."""
    ax.set(title=title, xlabel="share of replies", yticks=range(len(parts)), yticklabels=list(parts))
    ax.set(ylim=(len(parts) - 0.5, -0.5), xlim=(0, 1.4), xticks=(0, 0.25, 0.5, 0.75, 1.0))  # room for the legend
    ax.grid(False, axis="y")
    held = [(at, values) for at, values in enumerate(parts.values()) if values is not None]
    for k, name in enumerate(names if held else ()):
        begins = [sum(values[:k]) for _, values in held]
        places, widths = [at for at, _ in held], [values[k] for _, values in held]
        ax.barh(places, widths, left=begins, color=RUN_COLORS[k], height=0.7, label=name)
    _end(ax, ax.has_data(), "upper right")


def lines(ax: Axes, groups: Points, title: str, base: float | None = None) -> None:
    """A line for each group over named places on the x axis; a missing value leaves a gap."""
    ax.set(title=title, ylim=(0, 1.02))
    places = list(dict.fromkeys(place for points in groups.values() for place, _ in points))
    for k, (name, points) in enumerate(groups.items()):
        held = [(places.index(place), value) for place, value in points if value is not None]
        if held:
            colour = COLOURS.get(name, RUN_COLORS[k % len(RUN_COLORS)])
            ax.plot(*zip(*held), "-o", color=colour, ms=3, label=LABELS.get(name, name))
    drawn = ax.has_data()
    if base is not None:
        ax.axhline(base, color=COLOURS["base"], ls="--", lw=0.8, label=LABELS["base"])
    ax.set(xticks=range(len(places)), xticklabels=places, xlim=(-0.3, len(places) - 0.7))
    _end(ax, drawn)


def heat(ax: Axes, values: Mapping[tuple[int, float], float | None], title: str) -> None:
    """DyME minus SFT over records (x) and noise (y); green where DyME is ahead."""
    items, noises = sorted({i for i, _ in values}), sorted({n for _, n in values})
    table = np.array([[values.get((i, n)) for i in items] for n in noises], dtype=float)  # None: nan
    ax.imshow(table, cmap="PRGn", vmin=-0.5, vmax=0.5, aspect="auto", origin="lower")
    for y, noise in enumerate(noises):
        for x, count in enumerate(items):
            value = values.get((count, noise))
            ax.text(x, y, "not run" if value is None else f"{value:+.2f}", ha="center", va="center", fontsize=6)
    ax.set(title=title, xlabel="records", ylabel="traces with a wrong reading")
    ax.set(xticks=range(len(items)), xticklabels=[str(i) for i in items])
    ax.set(yticks=range(len(noises)), yticklabels=[f"{n:.0%}" for n in noises])
    ax.grid(False)


def _points(run: Found, key: str, evals: bool) -> Any:
    return np.array([(p["step"], p[key]) for p in run["evals" if evals else "curve"] if p.get(key) is not None])


def _by_method(cells: Named) -> bool:
    return len({cell.method for _, cell in cells}) == len(cells) and {c.method for _, c in cells} <= set(MAIN)


def _end(ax: Axes, drawn: bool, loc: Literal["best", "upper right"] = "best") -> None:
    if drawn:
        ax.legend(loc=loc, fontsize=6)
    else:
        ax.text(0.5, 0.5, "not run yet", transform=ax.transAxes, ha="center", color="#888888", style="italic")
