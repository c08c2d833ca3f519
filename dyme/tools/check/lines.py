"""The lines that the check prints."""

from __future__ import annotations

from collections.abc import Iterable

from dyme.tools.check.report import Picture, Report


def lines(report: Report) -> list[str]:
    """The report as text."""
    shares = [f"{name} {_millions(count)}" for name, count in report.parts.items()]
    tied = " (shared with the embedding)" if report.tied else ""
    return [
        f"{report.path}: {report.model_type}, family {report.family}",
        *table(
            [
                ("parameters", f"{_millions(report.parameters)}: {', '.join(shares)}{tied}"),
                ("weights", _weights(report)),
                ("decoder", f"{report.layers} layers, context of {report.context or 'unknown'} tokens"),
                ("chat template", report.chat_template),
                ("text prompt", f"{report.text_prompt} tokens"),
                *(("picture", _picture(picture, report.context)) for picture in report.pictures),
                *report.special.items(),
                ("packed groups", "yes" if report.packs else "no: each reply trains with its own prompt"),
            ]
        ),
        "",
        f"memory per GPU, an estimate ({report.run}, {_millions(report.trained)} parameters trained)",
        *_estimate(report),
    ]


def _weights(report: Report) -> str:
    if report.files is None or report.dtypes is None:
        return "missing"
    kinds = ", ".join(f"{name} {_millions(count)}" for name, count in report.dtypes.items())
    unused = f"; {len(report.unused)} tensors are not used, first {report.unused[0]}" if report.unused else ""
    files = len(report.files)
    return f"{files} file{'s' if files > 1 else ''}, {in_bytes(sum(report.files.values()))}, {kinds}{unused}"


def _picture(picture: Picture, context: int | None) -> str:
    resized = f", resized to {picture.resized[0]}x{picture.resized[1]}" if picture.resized else ""
    over = ", MORE THAN THE CONTEXT" if context and picture.prompt > context else ""
    return (
        f"{picture.size[0]}x{picture.size[1]}{resized}: {picture.tokens} image tokens, prompt of {picture.prompt}{over}"
    )


def _estimate(report: Report) -> list[str]:
    estimate = report.estimate
    rows: list[tuple[str, str]] = []
    for title, part in (
        ("stays", estimate.stays),
        ("in an update", estimate.update),
        ("in a rollout", estimate.rollout),
        ("in a refresh", estimate.refresh),
        ("in an evaluation", estimate.evaluation),
        ("on the host", estimate.host),
    ):
        if part:
            rows.append((title, in_bytes(sum(part.values()))))
            rows += [(f"  {name}", in_bytes(size)) for name, size in part.items()]
    return table([*rows, ("peak", f"{in_bytes(estimate.peak)} (what stays, and the largest of what comes and goes)")])


def table(rows: Iterable[tuple[str, str]]) -> list[str]:
    rows = list(rows)
    width = max(len(name) for name, _ in rows)
    return [f"  {name:<{width}}  {text}" for name, text in rows]


def _millions(count: int) -> str:
    return f"{count / 1e9:.2f}B" if count >= 1e9 else f"{count / 1e6:.2f}M" if count >= 1e4 else str(count)


def in_bytes(size: int) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**29 else f"{size / 2**20:.2f} MiB"
