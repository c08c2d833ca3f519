"""Rows of csv and tsv files. A broken row costs itself only, so a quote that is never closed ends with its line."""

from __future__ import annotations

import csv
import re
import sys
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from dyme.data.errors import DataError, RowError
from dyme.data.rows import Item, Row
from dyme.data.sniff import delimiter_of

_TOLD = re.compile(r"sep=(.)\n")  # a first line that Excel writes
_NOT_UTF8 = re.compile("[\udc80-\udcff]")


def table_items(path: Path, delimiter: str | None) -> Iterator[Item]:
    """The rows below the header, each with the line of the file that it starts in; empty cells are None.

    UTF-8 with or without a byte order mark, or UTF-16 with one. Raises `DataError` for a header that cannot be used.
    """
    lines = _lines(path)
    told = _TOLD.fullmatch(lines[0]) if lines else None
    if told:
        lines[0], delimiter = "\n", delimiter or told[1]
    delimiter = delimiter or delimiter_of("".join(lines[:40])) or ","
    try:
        header, start = next(_records(lines, 1 if told else 0, delimiter), ([], 0))
    except csv.Error as error:
        raise DataError(f"{path}:1: the header has a quote that is not closed ({error}); close it") from error
    names = [name.strip() for name in header]
    twice = next((name for name, count in Counter(names).items() if name and count > 1), None)
    if twice is not None:
        raise DataError(f"{path}: the header has {twice!r} twice; give every column a name of its own")
    if any(_NOT_UTF8.search(name) for name in names):
        raise DataError(f"{path}: not UTF-8; save it as UTF-8")
    while start < len(lines):
        try:
            for cells, end in _records(lines, start, delimiter):
                if end > start + 1 and len(cells) != len(names):
                    break  # over several lines and not whole: a quote is open
                yield from _item(path, start, _row(names, cells))
                start = end
        except csv.Error:
            pass  # a quote that is not closed, or one within a cell
        if start < len(lines):
            yield from _item(path, start, _alone(names, lines[start], delimiter))
            start += 1  # reading goes on at the next line, whatever the open quote has swallowed


def _records(lines: list[str], start: int, delimiter: str) -> Iterator[tuple[list[str], int]]:
    """Rows from the line `start`, each with the line after it. Raises `csv.Error` for quotes that are not in order."""
    csv.field_size_limit(sys.maxsize)  # pictures in base64 are longer than its default
    reader = csv.reader((lines[at] for at in range(start, len(lines))), delimiter=delimiter, strict=True)
    for cells in reader:
        yield cells, start + reader.line_num


def _item(path: Path, start: int, row: Row | RowError) -> Iterator[Item]:
    if row:
        raw = partial(_raise, row) if isinstance(row, RowError) else row
        yield Item(path, start + 1, raw, f"{path.stem}-{start + 1}")


def _raise(error: RowError) -> None:
    raise error


def _row(names: list[str], cells: list[str]) -> Row | RowError:
    """The row, {} for a blank line, or why it is none."""
    while len(cells) > len(names) and not cells[-1]:
        cells.pop()
    if len(cells) > len(names):
        return RowError(f"{len(cells)} cells where the header has {len(names)}; quote cells that hold the delimiter")
    if any(_NOT_UTF8.search(cell) for cell in cells):
        return RowError("not UTF-8; save the file as UTF-8")
    return {name: cell or None for name, cell in zip(names, cells) if name} if any(cells) else {}


def _alone(names: list[str], line: str, delimiter: str) -> Row | RowError:
    """The row of one line whose quotes are not in order: "5" inch is read as 5 inch, an open one is an error."""
    cells = next(csv.reader([line], delimiter=delimiter), [])
    if any(cell.endswith("\n") for cell in cells) or len(cells) < len(names):
        return RowError("a quote that is not closed; close it, and double the quotes inside a cell")
    return _row(names, cells)


def _lines(path: Path) -> list[str]:
    """Split at line ends alone: str.splitlines also splits at U+2028 and form feeds, which stand in texts."""
    data = path.read_bytes()
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        text = data.decode("utf-16", errors="replace")
    else:
        text = data.decode("utf-8", errors="surrogateescape").removeprefix("\ufeff")
    lines = text.replace("\r\n", "\n").replace("\r", "\n").replace("\0", "\ufffd").split("\n")
    return [f"{line}\n" for line in (lines if lines[-1] else lines[:-1])]
