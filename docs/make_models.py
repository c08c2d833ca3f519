"""Writes the table of docs/models.md from docs/models.json: `python docs/make_models.py`.

The JSON is what the tests said: `make models` runs them and this program.
"""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

from dyme.families import FAMILIES

FOLDER = Path(__file__).resolve().parent
RESULTS, PAGE = FOLDER / "models.json", FOLDER / "models.md"
BEGIN, END = "<!-- table of docs/make_models.py -->", "<!-- end of table -->"
FEATURES = ("loads", "chat template", "multi-image", "packed groups", "rollout", "LoRA", "ZeRO-3, 2 ranks", "export")
MARKS = {"passed": "yes", "skipped": "-", "failed": "**no**"}


def render(runs: list[dict[str, Any]]) -> str:
    """The table and where its outcomes come from. A feature that failed in any run or checkpoint is a no."""
    head = ["family", "checkpoints", "`model_type`", *FEATURES, "tested how"]
    lines = [_row(head), _row(["---"] * len(head))]
    for name, family in sorted(FAMILIES.items()):
        held = [run["results"].get(name, {}) for run in runs]
        cells = [_outcome([result.get(f) for run in held for result in run.values()]) for f in FEATURES]
        tiny = sorted({checkpoint for run in held for checkpoint in run})
        count = sum(f["tests"] for result in (held[0] if held else {}).values() for f in result.values())
        kinds = ", ".join(family.model_types)
        about = (inspect.getdoc(family) or "").splitlines()[0].rstrip(".")
        lines.append(_row([f"`{name}`", about, kinds, *cells, f"{count} tests on {', '.join(tiny)}"]))
    lines += ["", "Outcomes of these runs:", ""]
    for run in runs:
        versions = ", ".join(f"{package} {version}" for package, version in run["versions"].items())
        lines.append(f"- {run['date']}, {run['device']}: {versions}")
    return "\n".join(lines)


def _outcome(held: list[dict[str, Any] | None]) -> str:
    """The worst of the outcomes; "not tested" where a checkpoint has none."""
    if not held or None in held:
        return "not tested"
    outcomes = {entry["outcome"] for entry in held if entry is not None}
    return next(MARKS[kind] for kind in ("failed", "passed", "skipped") if kind in outcomes)


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def page(text: str, runs: list[dict[str, Any]]) -> str:
    """The page with the table between its two markers."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n\n{render(runs)}\n\n{END}{rest.split(END)[1]}"


def main() -> None:
    runs = json.loads(RESULTS.read_text(encoding="utf-8"))
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8"), runs), encoding="utf-8")
    print(PAGE)


if __name__ == "__main__":
    main()
