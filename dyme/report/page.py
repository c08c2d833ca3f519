"""report.html: the figure, a table of the runs and sample answers before and after, in one file without any request."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dyme.report.cards import choose_cards
from dyme.report.figure import run_color
from dyme.report.html import render
from dyme.report.runs import Run

MODES = ("memorize", "explore", "skip")


def render_page(runs: Sequence[Run], figure: Path) -> str:
    """The whole page as a string; `figure` is the PNG to put into it."""
    return render(
        "report.html.j2",
        names=", ".join(run.name for run in runs),
        figure=base64.b64encode(figure.read_bytes()).decode("ascii"),
        runs=[(run, run_color(index), choose_cards(run, alone=len(runs) == 1)) for index, run in enumerate(runs)],
        notes=[(run.name, note) for run in runs for note in run.notes],
        headline=_headline,
        versions=_versions,
        percent=_percent,
        shares=_shares,
        duration=_duration,
    )


def _headline(run: Run) -> str:
    first, last = run.summary.get("eval_accuracy_first"), run.summary.get("eval_accuracy")
    if last is None:
        told = "not evaluated yet"
    elif first is None or len(run.evals) < 2:
        told = f"held-out accuracy {_percent(last)}"
    else:
        told = f"held-out accuracy {_percent(first)} before, {_percent(last)} after"
    steps = run.summary.get("steps")
    return f"{told}, {steps} step{'' if steps == 1 else 's'} in {_duration(run.summary.get('wall_s'))}"


def _versions(run: Run) -> str:
    versions = run.summary.get("versions")
    told = ", ".join(f"{key} {value}" for key, value in versions.items()) if isinstance(versions, dict) else ""
    return told or "not recorded"


def _percent(share: Any) -> str:
    return f"{100 * share:.1f} %" if isinstance(share, int | float) else "–"


def _shares(shares: Any) -> str:
    if not shares or any(shares.get(mode) is None for mode in MODES):
        return "–"
    return " / ".join(f"{100 * shares[mode]:.0f}" for mode in MODES)


def _duration(seconds: Any) -> str:
    if not isinstance(seconds, int | float):
        return "–"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 3 * 3600 else f"{seconds / 3600:.1f} h"
