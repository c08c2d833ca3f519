"""Writes the table of keys in docs/report.md from dyme/metrics/keys.py: `python docs/make_metrics.py`."""

from __future__ import annotations

from pathlib import Path

from dyme.metrics.keys import KEYS

PAGE = Path(__file__).resolve().parent / "report.md"
BEGIN, END = "<!-- table of docs/make_metrics.py -->", "<!-- end of table -->"


def render() -> str:
    """The table."""
    lines = ["| key | definition | reduction | unit |", "|---|---|---|---|"]
    return "\n".join(lines + [f"| `{k.pattern}` | {k.meaning} | {k.reduction} | {k.unit} |" for k in KEYS])


def page(text: str) -> str:
    """The page with the table between its two markers."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n\n{render()}\n\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    print(PAGE)
