"""report.html: the figure, a table of the runs and sample answers before and after, in one file without any request."""

from __future__ import annotations

import base64
import html
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dyme.report.cards import render_samples
from dyme.report.figure import run_color
from dyme.report.runs import Run

CSS = """
:root { color: #1b1f24; background: #fff; font: 15px/1.5 system-ui, sans-serif; }
body { max-width: 1080px; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.6rem; margin: 0 0 .25rem; }
h2 { font-size: 1.15rem; margin: 2.5rem 0 .75rem; border-bottom: 1px solid #ddd; padding-bottom: .25rem; }
h3 { font-size: 1rem; margin: 1.5rem 0 .25rem; }
p { margin: .4rem 0; }
figure { margin: 0; } figure img { width: 100%; height: auto; }
figcaption, .quiet { color: #57606a; font-size: .875rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .75rem; text-align: right; border-bottom: 1px solid #e5e5e5; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } thead th { vertical-align: bottom; }
.swatch { display: inline-block; width: .75em; height: .75em; border-radius: 2px; margin-right: .5em; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 500px), 1fr)); gap: 1rem; }
.card { border: 1px solid #d8dee4; border-radius: 6px; padding: .8rem; min-width: 0; break-inside: avoid; }
.ask { display: flex; gap: .8rem; margin-bottom: .6rem; }
.ask img { width: 128px; height: 128px; object-fit: contain; border: 1px solid #e5e5e5; flex: none; }
.ask img.tiny { image-rendering: pixelated; }
.ask .question { font-weight: 600; overflow-wrap: anywhere; white-space: pre-wrap; }
.answers { display: grid; grid-template-columns: 1fr 1fr; gap: .8rem; }
.answers > div { min-width: 0; border-top: 2px solid #ccc; padding-top: .35rem; }
.answers > .right { border-color: #0072B2; } .answers > .wrong { border-color: #D55E00; }
.when { font-size: .75rem; color: #57606a; }
.verdict { font-weight: 600; } .right .verdict { color: #0072B2; } .wrong .verdict { color: #B04A00; }
.trace { font-size: .8rem; white-space: pre-wrap; overflow-wrap: anywhere; max-height: 9rem; overflow-y: auto; }
.value { overflow-wrap: anywhere; }
@media print { .trace { max-height: none; } }
"""


def esc(value: Any) -> str:
    """`value` as HTML text. Characters no browser prints, lone surrogates among them, show as U+FFFD."""
    text = "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in str(value))
    return html.escape(text, quote=True)


def render_page(runs: Sequence[Run], figure: Path) -> str:
    """The whole page as a string; `figure` is the PNG to put into it. Model text is escaped everywhere."""
    names = ", ".join(run.name for run in runs)
    picture = base64.b64encode(figure.read_bytes()).decode("ascii")
    samples = "".join(render_samples(run, index, esc, alone=len(runs) == 1) for index, run in enumerate(runs))
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>DyME report: {esc(names)}</title>
<style>{CSS}</style>
</head>
<body>
<h1>{esc(names)}</h1>
{"".join(_headline(run) for run in runs)}
{_notes(runs)}
<h2>Training</h2>
<figure>
<img alt="Mode shares, accuracy, rewards, collapse rates, lengths and speed over training"
 src="data:image/png;base64,{picture}">
<figcaption>Lines are running means over a twentieth of the run, the faint lines behind them single steps; dots are
evaluations. A group is one prompt with its K rollouts.</figcaption>
</figure>
<h2>Runs</h2>
{_table(runs)}
<h2>Samples</h2>
{samples}
<h2>Versions</h2>
{"".join(_versions(run) for run in runs)}
</body>
</html>
"""


def _headline(run: Run) -> str:
    first, last = run.summary.get("eval_accuracy_first"), run.summary.get("eval_accuracy")
    if last is None:
        told = "not evaluated yet"
    elif first is None or len(run.evals) < 2:
        told = f"held-out accuracy {_percent(last)}"
    else:
        told = f"held-out accuracy {_percent(first)} before, {_percent(last)} after"
    steps, wall = run.summary.get("steps"), _duration(run.summary.get("wall_s"))
    span = f"{esc(steps)} step{'' if steps == 1 else 's'} in {wall}"
    return f"<p><b>{esc(run.name)}</b> ({esc(run.method)}): {told}, {span}.</p>\n"


def _notes(runs: Sequence[Run]) -> str:
    items = [f"<li><b>{esc(run.name)}</b>: {esc(note)}.</li>" for run in runs for note in run.notes]
    return f'<ul class="quiet">{"".join(items)}</ul>' if items else ""


COLUMNS: tuple[tuple[str, Callable[[Run], str]], ...] = (
    ("method", lambda run: esc(run.method)),
    ("steps", lambda run: esc(run.summary.get("steps"))),
    ("wall time", lambda run: _duration(run.summary.get("wall_s"))),
    ("held-out accuracy<br>first evaluation", lambda run: _percent(run.summary.get("eval_accuracy_first"))),
    ("held-out accuracy<br>last evaluation", lambda run: _percent(run.summary.get("eval_accuracy"))),
    ("rollout accuracy<br>last tenth", lambda run: _percent(run.summary.get("train_accuracy"))),
    ("valid<br>format", lambda run: _percent(run.summary.get("format_rate"))),
    ("memorize / explore / skip<br>first tenth (%)", lambda run: _shares(run, "mode_shares_first_tenth")),
    ("memorize / explore / skip<br>last tenth (%)", lambda run: _shares(run, "mode_shares_last_tenth")),
    ("nobody right<br>(all steps)", lambda run: _percent(run.summary.get("collapse_rate"))),
    ("config", lambda run: esc(run.summary.get("config", "–"))),
)


def _table(runs: Sequence[Run]) -> str:
    head = "".join(f"<th>{title}</th>" for title, _ in COLUMNS)
    rows = []
    for index, run in enumerate(runs):
        swatch = f'<span class="swatch" style="background:{run_color(index)}"></span>'
        cells = "".join(f"<td>{cell(run)}</td>" for _, cell in COLUMNS)
        rows.append(f"<tr><td>{swatch}{esc(run.name)}</td>{cells}</tr>")
    return (
        '<div class="scroll"><table class="runs">'
        f"<thead><tr><th>run</th>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _versions(run: Run) -> str:
    versions = run.summary.get("versions")
    told = ", ".join(f"{key} {value}" for key, value in versions.items()) if isinstance(versions, dict) else ""
    return f'<p class="quiet"><b>{esc(run.name)}</b>: {esc(told or "not recorded")}</p>\n'


def _percent(share: Any) -> str:
    return f"{100 * share:.1f} %" if isinstance(share, int | float) else "–"


def _shares(run: Run, key: str) -> str:
    shares = run.summary.get(key) or {}
    modes = ("memorize", "explore", "skip")
    if any(shares.get(mode) is None for mode in modes):
        return "–"
    return " / ".join(f"{100 * shares[mode]:.0f}" for mode in modes)


def _duration(seconds: Any) -> str:
    if not isinstance(seconds, int | float):
        return "–"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 3 * 3600 else f"{seconds / 3600:.1f} h"
