"""The table an evaluation prints: columns side by side, then one line for each kind of question."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def render(summary: Mapping[str, Any]) -> str:
    """The summary as a short table; intervals are 95 %."""
    names = list(summary["columns"])
    head = ["", *names, *(["think - direct"] if "difference" in summary else [])]
    left_out = f", {summary['bad']} left out" if summary["bad"] else ""
    parts = [
        f"{summary['model']}: {summary['n']} records{left_out}",
        _align([head, *_overall(summary, names)]),
    ]
    if len(summary["kinds"]) > 1:
        kinds = [[kind or "(no kind)", *_kind(part, names)] for kind, part in summary["kinds"].items()]
        title = ["kind", "n", *names, *head[len(names) + 1 :], *(["faithfulness"] if "think" in names else [])]
        parts.append(_align([title, *kinds]))
    if "eval_majority_rate" in summary:
        parts.append(
            f"commonest answer {summary['eval_majority_rate']:.3f}, "
            f"commonest answer of each kind {summary['eval_majority_rate_by_kind']:.3f}"
        )
    parts += [f"warning: {line}" for line in summary.get("warnings", ())]
    speed = summary.get("tokens_per_s")
    parts.append(
        f"{summary['seconds']:.0f} s on {summary['ranks']} rank{'s' * (summary['ranks'] > 1)}"
        + (f", {speed:.0f} tokens/s" if speed else "")
    )
    return "\n\n".join(parts)


def _overall(summary: Mapping[str, Any], names: Sequence[str]) -> list[list[str]]:
    held = [summary["columns"][name] for name in names]
    rows = [["accuracy", *(_rate(column["accuracy"]) for column in held)]]
    if "difference" in summary:
        p = summary["difference"].get("p_value")
        said = "" if p is None else f"  p={p:.2g}" if p else "  p<1e-300"
        rows[0].append(_rate(summary["difference"], sign=True) + said)
    if summary["samples"] > 1:
        for k in held[0]["pass_at"]:
            rows.append([f"pass@{k}", *(_rate(column["pass_at"][k]) for column in held)])
    for label, key in (
        ("valid format", "format_rate"),
        ("guessed", "guessed_rate"),
        ("thinks all the same", "flagged_rate"),
        ("cut off", "truncated_rate"),
        ("tokens", "tokens"),
        ("thinking tokens", "thinking_tokens"),
        ("readings", "readings"),
        ("faithfulness", "faithfulness"),
    ):
        if any(key in column for column in held):
            rows.append([label, *(_cell(column.get(key), key) for column in held)])
    rows.append(["scored", *(str(column["accuracy"]["n"]) for column in held)])
    if any(column["unscored"] for column in held):
        rows.append(["unscored replies", *(str(column["unscored"]) for column in held)])
    return rows


def _kind(part: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    cells = [str(part["n"]), *(_rate(part["columns"][name]["accuracy"]) for name in names)]
    if "difference" in part:
        cells.append(_rate(part["difference"], sign=True))
    if "think" in names:
        cells.append(_rate(part["columns"]["think"]["faithfulness"]))
    return cells


def _cell(value: Any, key: str) -> str:
    if isinstance(value, Mapping):
        return f"{_rate(value)}  n={value['n']}" if value["value"] is not None else "-"
    if value is None:
        return "-"
    return f"{value:.3f}" if key.endswith("_rate") else f"{value:.1f}"


def _rate(rate: Mapping[str, Any], *, sign: bool = False) -> str:
    if rate["value"] is None:
        return "-"
    number = "+.3f" if sign else ".3f"
    interval = rate["interval"]
    bounds = f" [{interval[0]:{number}}, {interval[1]:{number}}]" if interval else ""
    return f"{rate['value']:{number}}{bounds}"


def _align(rows: Sequence[Sequence[str]]) -> str:
    width = [max(len(row[i]) for row in rows if i < len(row)) for i in range(max(map(len, rows)))]
    return "\n".join("  ".join(cell.ljust(width[i]) for i, cell in enumerate(row)).rstrip() for row in rows)
