"""Check: what a data set holds, and every row that a run would leave out."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dyme.data.errors import BadRow, ImageError
from dyme.data.record import LazyImage, Record
from dyme.data.renames import Kind, suggested, written
from dyme.data.sheet import spread
from dyme.data.sources import Check, SourceConfig, read_records
from dyme.data.spec import NamedSource
from dyme.text.printable import printable

SAMPLE = 200
MAX_BAD_FRACTION = 0.01
_OPTIONAL = ("choices", "hint", "facts", "image", "kind")
MANY = 20  # bad rows alike from which on they are folded
FIRST = 3  # of these that are shown
_VARIES = re.compile(r"'[^']*'|\"[^\"]*\"|\S*[\d/\\]\S*")
_PICTURE_ID = re.compile(r"(image|img|picture|photo)[ _]?(id|name|source|key|number)", re.IGNORECASE)
_LETTER = re.compile(r"\(?[A-Ha-h]\)?\.?")


@dataclass(frozen=True)
class Report:
    """What the check found. `sizes` counts (width, height) over the decoded pictures; `bad` has broken ones too."""

    total: int
    good: int
    coverage: dict[str, int]
    kinds: Counter[str]
    answer_types: Counter[str]
    answer_lengths: tuple[int, ...]
    pictures: int
    decoded: int
    sizes: Counter[tuple[int, int]]
    bad: tuple[BadRow, ...]
    keys: Mapping[str, Kind] = field(default_factory=dict)
    """The keys of the rows as they lie in the file."""

    @property
    def bad_fraction(self) -> float:
        return len(self.bad) / self.total if self.total else 1.0


def check(source: SourceConfig, decode_all: bool = False, usable: Check | None = None) -> Report:
    """Reads a source and decodes `SAMPLE` of its pictures, evenly spread, or all of them. A record that `usable`
    refuses is a bad row.

    Raises `DataError` when the source cannot be found; bad rows are in the report.
    """
    records = read_records(source, usable)
    pictures = list(dict.fromkeys(image for r in records for image in r.images))  # however many questions share one
    picked = pictures if decode_all else spread(pictures, SAMPLE)
    sizes: Counter[tuple[int, int]] = Counter()
    broken: dict[LazyImage, str] = {}
    for image in picked:
        try:
            sizes[image.load().size] += 1
        except ImageError as error:
            broken[image] = str(error)
    good: list[Record] = []
    bad = list(records.bad)
    for i, r in enumerate(records):
        reason = next((broken[image] for image in r.images if image in broken), None)
        if reason is None:
            good.append(r)
        else:
            bad.append(BadRow(*records.origin(i), r.id, reason))
    return Report(
        total=len(records) + len(records.bad),
        good=len(good),
        coverage={name: sum(bool(getattr(r, name)) for r in good) for name in _OPTIONAL},
        kinds=Counter(r.kind for r in good if r.kind),
        answer_types=Counter(answer_type(r) for r in good),
        answer_lengths=tuple(sorted(len(r.answer) for r in good)),
        pictures=len(pictures),
        decoded=len(picked),
        sizes=sizes,
        bad=tuple(sorted(bad, key=lambda row: (row.file, row.line))),
        keys=records.keys,
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
    """The report as tables; every bad row on a line of its own, or its kind where many are bad alike."""
    console.print(f"[bold]{escape(printable(named.label))}[/bold]", soft_wrap=True, highlight=False)
    table = Table(show_header=False)
    table.add_column(no_wrap=True)
    table.add_column()
    table.add_row("rows", f"{report.total}: {report.good} good, {len(report.bad)} bad ({report.bad_fraction:.2%})")
    table.add_row("fields", ", ".join(_share(name, n, report.good) for name, n in report.coverage.items()))
    if report.kinds:
        table.add_row("kinds", _top(report.kinds))
    if report.answer_types:
        table.add_row("answer types", _top(report.answer_types))
    if report.answer_lengths:
        low, middle, high = (report.answer_lengths[k] for k in (0, report.good // 2, -1))
        table.add_row("answer length", f"{low} to {high} characters, median {middle}")
    if report.pictures:
        table.add_row("pictures", f"{report.pictures}, of which {report.decoded} decoded")
        table.add_row("sizes", _top(Counter({f"{w}x{h}": n for (w, h), n in report.sizes.items()})))
    console.print(table)
    for line in folded(report.bad):
        console.print(f"[red]bad[/red] {escape(line)}", soft_wrap=True, highlight=False)
    for line in _notes(named, report):
        console.print(escape(printable(line)), soft_wrap=True, highlight=False)
    if report.bad_fraction > MAX_BAD_FRACTION:
        verdict = f"more than {MAX_BAD_FRACTION:.0%} of the rows are bad: a run stops at this data"
        console.print(f"[red]{verdict}; mend the rows or raise data.max_bad_fraction[/red]", soft_wrap=True)


def folded(bad: Sequence[BadRow]) -> list[str]:
    """A line for each bad row; of more than `MANY` that differ only in numbers and quoted words, the first ones and
    one line with the count of the others."""
    alike: dict[str, list[BadRow]] = {}
    for row in bad:
        alike.setdefault(_VARIES.sub("", row.reason), []).append(row)
    shown: list[tuple[BadRow, str]] = []
    for rows in alike.values():
        first = rows if len(rows) <= MANY else rows[:FIRST]
        shown += [(row, str(row)) for row in first]
        if len(rows) > MANY:
            last = rows[-1]
            line = f"{len(rows) - FIRST} more like it up to {last.file}:{last.line}; {len(rows)} in all"
            shown.append((first[-1], line))
    order = {id(row): at for at, row in enumerate(bad)}
    return [line for _, line in sorted(shown, key=lambda pair: order[id(pair[0])])]


def _notes(named: NamedSource, report: Report) -> list[str]:
    """What the keys of the rows suggest."""
    if "fields" not in type(named.source).model_fields:
        return []
    mapped = getattr(named.source, "fields", {})
    free = {key: kind for key, kind in report.keys.items() if key not in mapped.values()}
    renames = suggested(free, [name for name in _empty_fields(report) if name not in mapped])
    notes = []
    if renames:
        pairs = ", ".join(f"{ours}: {theirs}" for ours, theirs in renames.items())
        notes.append(f"keys of another name? {written(renames)}   (in a configuration: fields: {{{pairs}}})")
    if (
        report.coverage["hint"]
        and "hint" in free
        and "hint" not in mapped
        and ({"A", "B"} <= set(free) or "lecture" in free)
    ):
        other = " (or hint=solution)" if "solution" in free else ""
        notes.append(f"hint is taken for the thinking; where it is context of the question write --fields hint={other}")
    named_only = next((key for key in free if _PICTURE_ID.fullmatch(key)), None)
    if report.good and not report.coverage["image"] and "image" not in renames and named_only:
        notes.append(
            f"no row has a picture: {named_only!r} is no file; write the picture of each row under the key image"
        )
    return notes


def _empty_fields(report: Report) -> list[str]:
    """Our names that no good row has; question and answer where there is no good row."""
    return [name for name, n in report.coverage.items() if n == 0] + ([] if report.good else ["question", "answer"])


def _share(name: str, n: int, total: int) -> str:
    return f"{name} {'none' if n == 0 else 'all' if n == total else n}"


def _top(counts: Counter[str]) -> str:
    shown = [escape(printable(f"{name} {n}")) for name, n in counts.most_common(10)]
    return ", ".join(shown + ([f"and {len(counts) - 10} more"] if len(counts) > 10 else []))
