"""The results as text and as a figure."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.figure import save, unavailable
from benchmarks.kernels.case import Case

HEADER = (
    "provider", "mode", "cache", "median ms", "q1-q3 ms", "MB", "GFLOP", "floor ms", "% of ceiling", "% copy",
    "% matmul", "errors over torch's",
)  # fmt: skip
SUSPECT = 10.0
COLOURS = ("#0072B2", "#999999", "#56B4E9", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#F0E442", "#000000")


def number(value: Any, digits: int = 3) -> str:
    return "-" if value is None else value if isinstance(value, str) else f"{value:.{digits}g}"


def table(data: dict[str, Any], mode: str | None = None) -> str:
    """Every row of the results, case by case; only those of `mode` if given."""
    lines: list[str] = []
    for name in dict.fromkeys(row["name"] for row in data["rows"]):
        lines += ["", f"{name}", "| " + " | ".join(HEADER) + " |", "|---" * len(HEADER) + "|"]
        for row in (r for r in data["rows"] if r["name"] == name):
            if row["reason"] is not None:
                lines.append(f"| {row['provider']} | {row['reason']} |" + " |" * (len(HEADER) - 2))
            elif mode in (None, row["mode"]):
                lines.append("| " + " | ".join(_cells(row)) + " |")
    return "\n".join(lines)


def _cells(row: dict[str, Any]) -> list[str]:
    cells = [row["provider"], row["mode"], row["cache"], number(row["median_ms"], 4)]
    cells += [f"{number(row['q1_ms'], 4)}-{number(row['q3_ms'], 4)}"]
    cells += [number(row["bytes"] / 1e6), number(row["flops"] / 1e9)]
    cells += [number(row[key]) for key in ("floor_ms", "floor_percent", "copy_percent", "matmul_percent")]
    return [*cells, " ".join(f"{k} {number(v, 2)}" for k, v in row["errors_over_torch"].items())]


def compared(data: dict[str, Any]) -> dict[str, dict[str, dict[str, Any]]]:
    """case -> provider -> its row with a cold cache, forward and backward where it has one."""
    out: dict[str, dict[str, dict[str, Any]]] = {}
    for row in sorted((r for r in data["rows"] if r["cache"] == "cold"), key=lambda r: r["mode"] == "forward_backward"):
        out.setdefault(row["name"], {})[row["provider"]] = row
    return {name: out.get(name, {}) for name in dict.fromkeys(r["name"] for r in data["rows"])}


def summary(data: dict[str, Any]) -> str:
    """One line a case: our median, the others' over ours, and for cases with dead tokens ours over all tokens'."""
    lines = ["case | ours ms | % of ceiling | the others over ours"]
    rows = compared(data)
    for name, found in rows.items():
        mine = found.get("ours")
        if mine is None:
            lines.append(f"{name} | no time of ours")
            continue
        others = {p: (r["median_ms"] / mine["median_ms"], doubt(r)) for p, r in found.items() if p != "ours"}
        line = f"{name} | {number(mine['median_ms'], 4)} | {number(mine['floor_percent'])} | "
        line += ", ".join(f"{p} {number(x)}x{unsure}" for p, (x, unsure) in others.items())
        whole = rows.get(name_with_all_live(mine["case"]), {}).get("ours")
        if whole is not None and whole is not mine:
            share = mine["live_tokens"] / mine["case"]["tokens"]
            line += f" | {number(100 * share)} % live: {number(mine['median_ms'] / whole['median_ms'])} of all"
        lines.append(line)
    for row in (r for r in data.get("memory", []) if r.get("reason") is None):
        more = f"{number(row['peak_extra_mb'])} MB, of which gradients {number(row['returned_mb'])}"
        lines.append(f"memory {row['name']} | {row['provider']} | {more}")
    for row in (r for r in data.get("churn", []) if r.get("reason") is None):
        cost = f"{number(row['first_ms'])} ms first, {number(row['again_ms'])} again"
        lines.append(f"{row['lengths']} lengths {row['name']} | {row['provider']} | {cost}")
    return "\n".join(lines)


def doubt(row: dict[str, Any]) -> str:
    """A word on a provider whose errors are far beyond plain PyTorch's: its time is for another result."""
    ratios = [x for x in row["errors_over_torch"].values() if not isinstance(x, str)]
    broken = len(ratios) < len(row["errors_over_torch"])
    if not broken and max(ratios, default=0.0) <= SUSPECT:
        return ""
    return " (result not finite)" if broken else f" (error {number(max(ratios), 2)}x torch's)"


def name_with_all_live(case: dict[str, Any]) -> str:
    """The name of the same case with no dead tokens."""
    group = case["group"] if case["task"] == "advantages" else 0
    return Case(**{**case, "live": 1.0, "group": group}).name


def plot(data: dict[str, Any], path: Path) -> str | None:
    """Bars of forward and backward times with a cold cache, one panel a case, the floor as a line. Returns why there is
    no figure, or None."""
    if (why := unavailable()) is not None:
        return why
    rows = [r for r in data["rows"] if r["mode"] == "forward_backward" and r["cache"] == "cold"]
    names = list(dict.fromkeys(r["name"] for r in rows))
    if not names:
        return "nothing measured: no figure"
    providers = list(dict.fromkeys(r["provider"] for r in rows))

    def panel(name: str, ax: Any) -> None:
        mine = [r for r in rows if r["name"] == name]
        spread = [[r["median_ms"] - r["q1_ms"] for r in mine], [r["q3_ms"] - r["median_ms"] for r in mine]]
        colours = [COLOURS[providers.index(r["provider"]) % len(COLOURS)] for r in mine]
        ax.barh([r["provider"] for r in mine], [r["median_ms"] for r in mine], xerr=spread, color=colours)
        if mine[0]["floor_ms"] is not None:
            ax.axvline(mine[0]["floor_ms"], color="black", linestyle=":", linewidth=1)
        ax.invert_yaxis()
        ax.set(title=name, xlabel="ms, forward and backward; dotted: floor")

    title = f"{data['hardware']['device']}, torch {data['versions']['torch']}"
    save(path, [partial(panel, name) for name in names], (14, 2.1 * -(-len(names) // 3)), title=title, columns=3)
    return None
