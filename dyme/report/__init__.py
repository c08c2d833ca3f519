"""The report of one or several runs: a figure (report.png) and one self-contained page (report.html)."""

from __future__ import annotations

from pathlib import Path

from dyme.report.runs import ReportError, Run, load_runs

__all__ = ["ReportError", "Run", "load_runs", "write_report"]


def write_report(runs: list[Path], out: Path) -> tuple[Path, Path]:
    """Draw the run folders `runs` into `out` (created when missing); returns report.png and report.html.

    Works on unfinished runs too. Raises `ReportError` when a folder is not a run or a file of it is unreadable.
    """
    from dyme.report.figure import save_figure  # matplotlib takes a second to import
    from dyme.report.page import render_page

    loaded = load_runs(runs)
    out.mkdir(parents=True, exist_ok=True)
    png, page = out / "report.png", out / "report.html"
    save_figure(loaded, png)
    page.write_text(render_page(loaded, png), encoding="utf-8")
    return png, page
