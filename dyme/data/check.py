"""Check: what a data set holds, and every row that a run would leave out."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dyme.data.errors import BadRow, ImageError
from dyme.data.record import LazyImage, Record
from dyme.data.recordset import RecordSet
from dyme.data.sources import SourceConfig, read_records
from dyme.data.spec import NamedSource

SAMPLE = 200
MAX_BAD_FRACTION = 0.01
_OPTIONAL = ("choices", "hint", "facts", "image", "kind")
_LETTER = re.compile(r"\(?[A-Ha-h]\)?\.?")


@dataclass(frozen=True)
class Report:
    """What the check found. `sizes` counts (width, height) over the decoded pictures; `bad` has broken ones too."""

    total: int
    good: int
    coverage: dict[str, int]
    kinds: dict[str, int]
    answer_types: dict[str, int]
    answer_lengths: tuple[int, ...]
    pictures: int
    decoded: int
    sizes: dict[tuple[int, int], int]
    bad: tuple[BadRow, ...]

    @property
    def bad_fraction(self) -> float:
        return len(self.bad) / self.total if self.total else 1.0


def check(source: SourceConfig, decode_all: bool = False) -> Report:
    """Reads a source and decodes `SAMPLE` of its pictures, evenly spread, or all of them.

    Raises `DataError` when the source cannot be found; bad rows are in the report.
    """
    records = read_records(source)
    pictures = _pictures(records)
    picked = pictures if decode_all else _spread(pictures, SAMPLE)
    sizes: Counter[tuple[int, int]] = Counter()
    broken: dict[LazyImage, str] = {}
    for image in picked:
        try:
            sizes[image.load().size] += 1
        except ImageError as error:
            broken[image] = str(error)
    good = [r for r in records if not broken.keys() & set(r.images)]
    return Report(
        total=len(records) + len(records.bad),
        good=len(good),
        coverage={name: sum(bool(getattr(r, name)) for r in good) for name in _OPTIONAL},
        kinds=_counted(r.kind for r in good if r.kind),
        answer_types=_counted(answer_type(r) for r in good),
        answer_lengths=tuple(sorted(len(r.answer) for r in good)),
        pictures=len(pictures),
        decoded=len(picked),
        sizes=dict(sizes.most_common()),
        bad=tuple(sorted((*records.bad, *_undecodable(records, broken)), key=lambda row: (row.file, row.line))),
    )


def answer_type(record: Record) -> str:
    """The shape of the first answer, which decides what a verifier has to compare."""
    answer = record.answer
    if record.choices:
        return "option"
    if re.fullmatch(r"[-+]?\d{1,3}(,?\d{3})*|[-+]?\d+", answer):
        return "integer"
    if re.fullmatch(r"[-+]?\d*\.\d+|[-+]?\d[\d,]*\.\d*", answer):
        return "decimal"
    if answer.lower() in ("yes", "no", "true", "false"):
        return "yes/no"
    if _LETTER.fullmatch(answer):
        return "choice letter"
    return "phrase" if " " in answer else "word"


def print_report(console: Console, named: NamedSource, report: Report) -> None:
    """The report as tables; every bad row on a line of its own."""
    console.print(f"[bold]{escape(named.label)}[/bold]", soft_wrap=True, highlight=False)
    table = Table(show_header=False)
    table.add_column(no_wrap=True)
    table.add_column()
    table.add_row("rows", f"{report.total}: {report.good} good, {len(report.bad)} bad ({report.bad_fraction:.2%})")
    table.add_row("fields", ", ".join(_share(name, n, report.good) for name, n in report.coverage.items()))
    if report.kinds:
        table.add_row("kinds", _top(report.kinds))
    table.add_row("answer types", _top(report.answer_types))
    if report.answer_lengths:
        low, middle, high = (report.answer_lengths[k] for k in (0, report.good // 2, -1))
        table.add_row("answer length", f"{low} to {high} characters, median {middle}")
    if report.pictures:
        sizes = _top({f"{w}x{h}": n for (w, h), n in report.sizes.items()})
        table.add_row("pictures", f"{report.pictures}, of which {report.decoded} decoded")
        table.add_row("sizes", sizes)
    console.print(table)
    for row in report.bad:
        console.print(f"[red]bad[/red] {escape(str(row))}", soft_wrap=True, highlight=False)
    if report.bad_fraction > MAX_BAD_FRACTION:
        verdict = f"more than {MAX_BAD_FRACTION:.0%} of the rows are bad: a run stops at this data"
        console.print(f"[red]{verdict}; mend the rows or raise data.max_bad_fraction[/red]", soft_wrap=True)


def _pictures(records: RecordSet) -> list[LazyImage]:
    """Every picture once, however many questions share it."""
    return list(dict.fromkeys(image for r in records for image in r.images))


def _spread(items: list[LazyImage], n: int) -> list[LazyImage]:
    return [items[k * len(items) // n] for k in range(n)] if len(items) > n else items


def _undecodable(records: RecordSet, broken: dict[LazyImage, str]) -> list[BadRow]:
    first = [next((broken[image] for image in r.images if image in broken), "") for r in records]
    return [BadRow(*records.origin(i), records[i].id, reason) for i, reason in enumerate(first) if reason]


def _counted(names: Iterable[str]) -> dict[str, int]:
    return dict(Counter(names).most_common())


def _share(name: str, n: int, total: int) -> str:
    return f"{name} {'all' if n == total else 'none' if n == 0 else n}"


def _top(counts: dict[str, int]) -> str:
    shown = [escape(f"{name} {n}") for name, n in list(counts.items())[:10]]
    return ", ".join(shown + ([f"and {len(counts) - 10} more"] if len(counts) > 10 else []))
