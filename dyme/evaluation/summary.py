"""Summary of evaluated items: rates with 95 % bootstrap intervals over items, for all and for each kind of question."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from dyme.evaluation.files import COLUMNS
from dyme.evaluation.items import scored
from dyme.evaluation.statistics import bootstrap_interval, mcnemar, paired_interval, pass_at_k

Line = Mapping[str, Any]


@dataclass(frozen=True)
class _Options:
    pass_at: tuple[int, ...]
    resamples: int
    seed: int


def summarize(
    lines: Sequence[Line], *, pass_at: Sequence[int] = (1,), resamples: int = 10_000, seed: int = 0
) -> dict[str, Any]:
    """The figures of summary.json that follow from the lines of items.jsonl; None where there is nothing to average.

    Shares are in [0, 1], lengths in tokens. `n` counts items with a scored reply.
    """
    options = _Options(tuple(pass_at), resamples, seed)
    good = [line for line in lines if "error" not in line]
    names = [name for name in COLUMNS if any(line[name] for line in good)]
    kinds = sorted({line["kind"] for line in good})
    return {
        "records": len(lines),
        "bad": len(lines) - len(good),
        "bad_records": {line["id"]: line["error"] for line in lines if "error" in line},
        **_part(good, names, options),
        "kinds": {kind: _part([line for line in good if line["kind"] == kind], names, options) for kind in kinds},
    }


def _part(lines: Sequence[Line], names: Sequence[str], options: _Options) -> dict[str, Any]:
    part: dict[str, Any] = {"n": len(lines), "columns": {name: _column(lines, name, options) for name in names}}
    if len(names) == 2:
        part["difference"] = _difference(lines, options)
    return part


def _column(lines: Sequence[Line], name: str, options: _Options) -> dict[str, Any]:
    replies = [reply for line in lines for reply in line[name]]
    judged = [scored(line[name]) for line in lines]
    out = {
        "accuracy": _rate([_mean(r["score"] for r in some) for some in judged], options),
        "format_rate": _mean(r["format"] for r in replies),
        "truncated_rate": _mean(r["truncated"] for r in replies),
        "tokens": _mean(r["tokens"] for r in replies),
        "unscored": len(replies) - sum(map(len, judged)),
        "pass_at": {
            str(k): _rate(
                [pass_at_k(len(some), sum(r["correct"] for r in some), k) for some in judged if len(some) >= k], options
            )
            for k in options.pass_at
        },
    }
    if name == "think":
        faith = [_mean(r["faithfulness"] for r in line[name] if r["faithfulness"] is not None) for line in lines]
        out |= {
            "guessed_rate": _mean(r["guessed"] for r in replies),
            "thinking_tokens": _mean(r["thinking_tokens"] for r in replies),
            "thinking_chars": _mean(r["thinking_chars"] for r in replies),
            "readings": _mean(r["readings"] for r in replies),
            "faithfulness": _rate(faith, options),
        }
    else:
        out["flagged_rate"] = _mean(r["flagged"] for r in replies)
    return out


def _difference(lines: Sequence[Line], options: _Options) -> dict[str, Any]:
    """think minus direct over the items that both columns scored, with its interval and p-value."""
    pairs = [
        (think, direct)
        for line in lines
        if (think := _mean(r["score"] for r in scored(line["think"]))) is not None
        and (direct := _mean(r["score"] for r in scored(line["direct"]))) is not None
    ]
    thinks, directs = [think for think, _ in pairs], [direct for _, direct in pairs]
    out: dict[str, Any] = {
        "value": _mean(think - direct for think, direct in pairs),
        "interval": _interval(lambda: paired_interval(directs, thinks, options.resamples, options.seed)),
        "n": len(pairs),
    }
    if all(len(line[name]) == 1 for line in lines for name in COLUMNS):
        only_think = sum(think > 0.5 >= direct for think, direct in pairs)
        only_direct = sum(direct > 0.5 >= think for think, direct in pairs)
        out |= {"only_think": only_think, "only_direct": only_direct, "p_value": mcnemar(only_direct, only_think)}
    return out


def _rate(values: Sequence[float | None], options: _Options) -> dict[str, Any]:
    """Mean over items, its interval, and the number of items with a value."""
    held = [value for value in values if value is not None]
    interval = _interval(lambda: bootstrap_interval(held, options.resamples, options.seed))
    return {"value": _mean(held), "interval": interval, "n": len(held)}


def _interval(make: Callable[[], Any]) -> list[float] | None:
    interval = make()
    return None if interval is None else list(asdict(interval).values())


def _mean(values: Any) -> float | None:
    held = [float(value) for value in values]
    return sum(held) / len(held) if held else None
