"""report.png: mode shares of each run on top, then small panels that overlay the runs."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, SubFigure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from dyme.metrics.keys import MODES
from dyme.report.runs import Run, Series

# Okabe and Ito's palette for the runs and lighter tints for the modes: both stay apart for colour-blind readers.
RUN_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MODE_COLORS = {"memorize": "#EE9C6B", "explore": "#6FA8DC", "joint": "#B79FD6", "skip": "#DDDDDD"}
TIME_PARTS = {
    "rollout": "#4477AA",
    "score": "#66CCEE",
    "gather": "#228833",
    "refine": "#999933",
    "plan": "#CCBB44",
    "update": "#EE6677",
    "refresh": "#AA3377",
}
STYLE: dict[Any, Any] = {
    "font.size": 7,
    "axes.titlesize": 7.5,
    "axes.titlelocation": "left",
    "axes.labelsize": 7,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.6,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "lines.linewidth": 1.3,
    "text.parse_math": False,
}
WIDTH = 7.2
PER_ROW = 3


@dataclass(frozen=True)
class Panel:
    """One quantity over the run: its key in metrics.jsonl times `scale`, from the training lines or the evaluations.

    `top` is the upper end of the axis, None to fit the data; `clock` puts wall time on the x axis in place of steps.
    """

    key: str
    title: str
    label: str
    scale: float = 1.0
    top: float | None = 1.0
    evals: bool = False
    clock: bool = False


PANELS = (
    Panel("eval/accuracy", "Accuracy on held-out records", "right answers (%)", 100, 100, evals=True),
    Panel("eval/accuracy", "The same accuracy over wall time", "right answers (%)", 100, 100, evals=True, clock=True),
    Panel("eval/format_rate", "Valid format, held-out records", "answers (%)", 100, 100, evals=True),
    Panel("reward/accuracy_mean", "Accuracy reward of rollouts", "mean reward"),
    Panel("reward/thinking_mean", "Thinking reward of rollouts", "mean reward"),
    Panel("reward/format_mean", "Format reward of rollouts", "mean reward"),
    Panel("collapse/all_wrong", "Collapse: no right answer in the group", "groups (%)", 100, 100),
    Panel("collapse/shaped_only", "Spread from shaping rewards only", "groups (%)", 100, 100),
    Panel("collapse/zero_std_reward", "No spread: all rewards equal", "groups (%)", 100, 100),
    Panel("rollout/length_mean", "Length of completions", "tokens per completion", top=None),
    Panel("tokens_per_s", "Throughput", "tokens per second", top=None),
)
LOSS = Panel("loss", "Loss", "weighted loss (nats)", top=None)
"""Shown only when another panel has no data: with rewards its scale depends on the advantages and says little."""


def run_color(index: int) -> str:
    """The colour of the run at `index`, the same in every panel and on the page."""
    return RUN_COLORS[index % len(RUN_COLORS)]


def save_figure(runs: Sequence[Run], path: Path, dpi: int = 300) -> None:
    """Draw all panels of `runs` into the PNG `path`, a double-column figure (7.2 inches wide)."""
    with mpl.rc_context(STYLE):
        figure = draw(runs)
        FigureCanvasAgg(figure)
        figure.savefig(path, dpi=dpi, facecolor="white")


def draw(runs: Sequence[Run]) -> Figure:
    """The figure itself; `save_figure` sets the fonts and line widths it is made for.

    Panels for which no run has a number are left out, and a line at the bottom says so.
    """
    panels = [panel for panel in (*PANELS, *_user_panels(runs)) if _has_data(panel, runs)]
    if not all(_has_data(panel, runs) for panel in PANELS) and _has_data(LOSS, runs):
        panels.append(LOSS)
    rows, mode_rows = len(panels) // PER_ROW + 1, -(-len(runs) // PER_ROW)
    top_height, rest_height = (1.45 if len(runs) == 1 else 1.6) * mode_rows + 0.2, 1.5 * rows + 0.4
    spacing = ConstrainedLayoutEngine(w_pad=0.05, h_pad=0.05, hspace=0.03)
    figure = Figure(figsize=(WIDTH, top_height + rest_height), layout=spacing)
    parts: Any = figure.subfigures(2, 1, height_ratios=[top_height, rest_height])
    _draw_modes(parts[0], runs)
    axes = parts[1].subplots(rows, PER_ROW, squeeze=False).ravel()
    for ax, panel in zip(axes, panels):
        _overlay(ax, runs, panel)
    _draw_times(axes[len(panels)], runs)
    for ax in axes[len(panels) + 1 :]:
        ax.remove()
    if len(runs) > 1:
        handles = [Line2D([], [], color=run_color(i), label=f"{r.name} ({r.method})") for i, r in enumerate(runs)]
        parts[1].legend(handles=handles, loc="outside upper center", ncols=min(len(runs), 3))
    if left_out := [panel.title for panel in PANELS if panel not in panels]:
        told = textwrap.fill("Not shown, nothing logged: " + "; ".join(left_out), 140)
        parts[1].supxlabel(told, fontsize=6, color="#777777")
    return figure


def _user_panels(runs: Sequence[Run]) -> list[Panel]:
    """A panel for each user reward that a run has logged."""
    keys = {key for run in runs for line in run.train for key in line if key.startswith("reward/user/")}
    titles = sorted(key.split("/")[2].removesuffix("_weight") for key in keys if key.endswith("_weight"))
    return [Panel(f"reward/user/{t}_mean", f"Your reward: {t}", "mean value", top=None) for t in titles]


def _series(panel: Panel, run: Run) -> Series:
    return run.series(panel.key, panel.scale, evals=panel.evals)


def _has_data(panel: Panel, runs: Sequence[Run]) -> bool:
    return any(len(_series(panel, run)) for run in runs)


def _draw_modes(figure: SubFigure, runs: Sequence[Run]) -> None:
    """Stacked mode shares, one panel a run, with one legend above."""
    rows = -(-len(runs) // PER_ROW)
    axes = figure.subplots(rows, min(len(runs), PER_ROW), squeeze=False, sharey=True).ravel()
    joint = any(np.any(run.series("mode/joint_ratio").values > 0) for run in runs)
    shown = [mode for mode in MODE_COLORS if mode != "joint" or joint]
    for ax, run in zip(axes, runs):
        shares = {mode: run.series(f"mode/{mode}_ratio", 100.0) for mode in MODES}
        shift = _shift(run)
        if len(runs) == 1:
            ax.set_title("Share of groups by mode" + (f" ({shift})" if shift else ""))
        else:
            ax.set_title(f"{run.name}\n{shift}" if shift else run.name)
        ax.set_xlabel("optimizer step")
        if not len(shares["memorize"]):
            _note(ax, "no mode shares" if run.train else "no step yet")
            continue
        steps = shares["memorize"].steps
        stacked = [_smooth(_aligned(shares[mode], steps)) for mode in shown]
        ax.stackplot(steps, stacked, colors=[MODE_COLORS[mode] for mode in shown], linewidth=0)
        ax.set(xlim=(steps[0], max(steps[-1], steps[0] + 1)), ylim=(0, 100))
        ax.grid(False)
        ax.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10], integer=True))
    for ax in axes[:: min(len(runs), PER_ROW)]:
        ax.set_ylabel("groups (%)")
    for ax in axes[len(runs) :]:
        ax.remove()
    handles = [Patch(color=MODE_COLORS[mode], label=mode) for mode in shown]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), handlelength=1.2)


def _overlay(ax: Axes, runs: Sequence[Run], panel: Panel) -> None:
    """One quantity of all runs: dots on a line for evaluations, else a running mean over the faint raw values."""
    every = [_series(panel, run) for run in runs]
    divisor, unit = _time_unit(max(np.nanmax(series.times, initial=0.0) for series in every))
    ax.set(title=panel.title, ylabel=panel.label)
    ax.set_xlabel(f"wall time ({unit})" if panel.clock else "optimizer step")
    for index, series in enumerate(every):
        x = series.times / divisor if panel.clock else series.steps
        color = run_color(index)
        if panel.evals:
            ax.plot(x, series.values, color=color, marker="o", markersize=2.4, clip_on=False, zorder=3)
        else:
            ax.plot(x, series.values, color=color, alpha=0.22, linewidth=0.6)
            ax.plot(x, _smooth(series.values), color=color, clip_on=panel.top is None, zorder=3)
    if panel.top is None:
        # Percentiles, so that one slow step or one spike does not flatten the rest.
        smallest, largest = np.percentile(np.concatenate([series.values for series in every]), [1, 99])
        ax.set_ylim(min(0.0, smallest * 1.15), max(largest * 1.15, 1e-9))
    else:
        ax.set(ylim=(0, panel.top * 1.02), yticks=np.linspace(0, panel.top, 5))
    ax.set_xlim(left=0)
    ax.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10], integer=not panel.clock))


def _draw_times(ax: Axes, runs: Sequence[Run]) -> None:
    """Mean seconds a step spends in each phase, one bar a run."""
    ax.set_title("Where the time of a step goes")
    ax.set_xlabel("mean seconds per step")
    parts = [part for part in TIME_PARTS if any(len(run.series(f"time/{part}")) for run in runs)]
    if not parts:
        _note(ax, "no times logged")
        return
    left = np.zeros(len(runs))
    every = {part: [_mean(run.series(f"time/{part}")) for run in runs] for part in parts}
    total = sum(means[0] for means in every.values())
    for part, means in every.items():
        label = f"{part} {100 * means[0] / total:.0f} %" if len(runs) == 1 and total else part
        ax.barh(np.arange(len(runs)), means, left=left, height=0.45, color=TIME_PARTS[part], label=label)
        left = left + means
    if len(runs) > 1:
        for index, run in enumerate(runs):
            # Above the bar: beside it, a long name would push the whole column aside.
            ax.text(0, index - 0.27, run.name, color=run_color(index), fontsize=6, va="bottom", clip_on=True)
    ax.set(ylim=(len(runs) - 0.6, -0.75), yticks=[])
    ax.spines["left"].set_visible(False)
    ax.grid(False)
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.36), ncols=3, fontsize=6, handlelength=0.9, columnspacing=0.9)


def _shift(run: Run) -> str:
    """Change of the shares from first to last tenth: 'memorize 100→19 %, explore 0→41 %'; '' if not logged."""
    first, last = run.summary.get("mode_shares_first_tenth") or {}, run.summary.get("mode_shares_last_tenth") or {}
    moves = [
        f"{mode} {100 * first[mode]:.0f}→{100 * last[mode]:.0f} %"
        for mode in ("memorize", "explore")
        if first.get(mode) is not None and last.get(mode) is not None
    ]
    return ", ".join(moves)


def _aligned(series: Series, steps: np.ndarray) -> np.ndarray:
    """The values at `steps`, 0 at those that the series lacks."""
    found = dict(zip(series.steps.tolist(), series.values.tolist()))
    return np.array([found.get(step, 0.0) for step in steps.tolist()])


def _smooth(values: np.ndarray) -> np.ndarray:
    """A centred running mean over about 1/20 of the run, with shorter windows at both ends."""
    half = len(values) // 40
    total = np.concatenate([[0.0], np.cumsum(values)])
    position = np.arange(len(values))
    start, end = np.maximum(position - half, 0), np.minimum(position + half + 1, len(values))
    return (total[end] - total[start]) / (end - start)


def _mean(series: Series) -> float:
    return float(series.values.mean()) if len(series) else 0.0


def _time_unit(longest: float) -> tuple[float, str]:
    """Seconds in a unit that fits a span of `longest` seconds, and the name of the unit."""
    if longest > 3 * 3600:
        return 3600.0, "hours"
    return (60.0, "minutes") if longest > 180 else (1.0, "seconds")


def _note(ax: Axes, text: str) -> None:
    ax.text(0.5, 0.5, text, transform=ax.transAxes, ha="center", va="center", color="#888888", style="italic")
    ax.set(xticks=[], yticks=[])
    ax.grid(False)
