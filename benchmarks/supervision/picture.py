"""supervision.png: accuracy, contradicted readings and collapse with and without supervision."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import figure
from dyme.report.figure import STYLE, WIDTH

TITLES = {"accuracy": "held-out accuracy", "contradicted": "contradicted readings", "collapse": "groups all wrong"}


def save(arms: Mapping[str, Any], path: Path) -> None:
    """A dot for each seed; mean and 95 % interval over seeds beside them."""
    panels = [partial(_panel, arms, name, title) for name, title in TITLES.items()]
    figure.save(path, panels, (WIDTH, 2.6), style={**STYLE, "savefig.dpi": 200})


def _panel(arms: Mapping[str, Any], name: str, title: str, ax: Any) -> None:
    for at, found in enumerate(arms.values()):
        ax.plot([at] * len(found["runs"]), [run[name] for run in found["runs"]], "o", color=f"C{at}", ms=4)
        mean, half = found[name]["mean"], found[name]["half_width"]
        ax.errorbar(at + 0.18, mean, yerr=half, fmt="_", color=f"C{at}", capsize=4, ms=10)
    ax.set(title=title, xticks=range(len(arms)), xticklabels=list(arms), xlim=(-0.5, len(arms) - 0.4), ylim=(0, 1.02))
