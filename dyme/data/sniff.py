"""What a data file is, told by its content and never by its name."""

from __future__ import annotations

import csv
import json
import sys
from io import StringIO
from itertools import islice
from pathlib import Path
from typing import Literal

from dyme.data.documents import holds_rows, read_json
from dyme.data.errors import DataError

Format = Literal["parquet", "csv", "json", "jsonl"]
NAMES: dict[Format, str] = {
    "parquet": "a parquet file",
    "csv": "a table with a header (csv, tsv)",
    "json": "one JSON document",
    "jsonl": "JSON lines",
}
DELIMITERS = ",\t;|"
_LOOK = 40  # lines
_LINE = 32 << 20  # bytes of a line that are looked at: pictures may be in it
_KNOWN = (
    (b"ARROW1", "an Arrow file", "name the folder that save_to_disk wrote, or write it as parquet"),
    (b"\xff\xff\xff\xff", "an Arrow stream", "name the folder that save_to_disk wrote, or write it as parquet"),
    (b"\x1f\x8b", "compressed by gzip", "unpack it by gunzip"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd", "unpack it by unzstd"),
    (b"PK\x03\x04", "a zip archive or an Excel sheet", "unpack it, or save the sheet as csv"),
    (b"SQLite format 3", "an SQLite database", "write the table as csv"),
    (b"\x89HDF", "an HDF5 file", "write the rows as parquet"),
    (b"%PDF", "a PDF", "name the file of the questions"),
    (b"\x89PNG", "a picture", "name the file of the questions"),
    (b"\xff\xd8\xff", "a picture", "name the file of the questions"),
    (b"version https://git-lfs", "a pointer of git-lfs, not the data", "fetch the data by git lfs pull"),
)


def format_of(path: Path) -> Format:
    """The format of a file. Raises `DataError` where it is another one or cannot be told, with what to write.

    JSON lines need one line that holds an object, among the first 40; a table needs a header of two or more columns.
    """
    lines = _first_lines(path)
    if not lines:
        return "jsonl"  # the reader says that there are no rows
    head = b"".join(lines)
    if head.startswith(b"PAR1"):
        return "parquet"
    _refuse_utf16(path, head)
    objects = sum(_is_object(line) for line in lines)
    if objects >= 2:
        return "jsonl"
    for magic, what, mend in _KNOWN:
        if head.startswith(magic) and not objects:
            raise DataError(f"{path}: is {what}; {mend}")
    if head[257:262] == b"ustar" and not objects:
        raise DataError(f"{path}: is a tar archive; unpack it")
    text = lines[0].removeprefix(b"\xef\xbb\xbf").lstrip()
    if text[:1] in (b"{", b"["):
        return _json_or_lines(path, lines, objects)
    if objects:
        return "jsonl"
    if head.startswith((b"\xff\xfe", b"\xfe\xff")) or (b"\0" not in head and delimiter_of(_decoded(head)) is not None):
        return "csv"
    if b"\0" in head:
        raise DataError(f"{path}: is a binary file of an unknown kind; write its rows as parquet or JSON lines")
    raise DataError(
        f"{path}: neither JSON nor a table with a header of several columns; if it holds JSON lines write "
        f"jsonl:path={path}, if it is a table write files:path={path},format=csv,delimiter=<character>"
    )


def refuse_other_formats(path: Path) -> None:
    """Raises `DataError` where a file that is named as JSON lines is something else, with what to write."""
    lines = _first_lines(path)
    kind: Format = "jsonl" if lines and _is_value(lines[0]) else format_of(path)
    if kind != "jsonl":
        raise DataError(f"{path}: is {NAMES[kind]}, not JSON lines; source files reads it as data: files:path={path}")


def delimiter_of(text: str) -> str | None:
    """The character that splits the header into most columns; None where none splits it into two or more."""
    csv.field_size_limit(sys.maxsize)  # a header of many columns is one field for the delimiters that it lacks
    counts = {d: len(next(csv.reader(StringIO(text, newline=""), delimiter=d), [])) for d in DELIMITERS}
    best = max(counts, key=lambda d: counts[d])
    return best if counts[best] > 1 else None


def _json_or_lines(path: Path, lines: list[bytes], objects: int) -> Format:
    """Whether a file that starts with a bracket is one document, or lines of which the first may be broken."""
    if _is_object(lines[0]):
        return "json" if len(lines) == 1 and holds_rows(json.loads(lines[0].decode("utf-8-sig"))) else "jsonl"
    try:
        if isinstance(read_json(path), (dict, list)):
            return "json"
    except DataError:
        pass  # whoever reads it as what it is says so with the place
    second = lines[1].lstrip()[:1] if len(lines) > 1 else b"{"
    starts_object = lines[0].removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"{"
    return "jsonl" if objects or (starts_object and second == b"{") else "json"


def _first_lines(path: Path) -> list[bytes]:
    if not path.is_file():  # reading a pipe would wait for ever
        raise DataError(f"{path}: is no regular file but a folder, pipe or device; name a file")
    with path.open("rb") as file:
        return [line for line in islice(iter(lambda: file.readline(_LINE), b""), _LOOK) if line.strip()]


def _refuse_utf16(path: Path, head: bytes) -> None:
    """UTF-16, as Windows writes it, is read for tables with a byte order mark only."""
    marked = head.startswith((b"\xff\xfe", b"\xfe\xff"))
    if not marked and (head[:4].count(0) != 2 or head[0] == head[1]):
        return
    if not marked or head[:4096].replace(b"\0", b"")[2:].lstrip()[:1] in (b"{", b"["):
        kind = "JSON in UTF-16" if marked else "text in UTF-16 without a byte order mark"
        raise DataError(f"{path}: is {kind}; save it as UTF-8, as by iconv -f UTF-16 -t UTF-8")


def _is_value(line: bytes) -> bool:
    try:
        json.loads(line.decode("utf-8-sig"))
    except (json.JSONDecodeError, UnicodeDecodeError):
        return False
    except (ValueError, RecursionError):  # a number too long, or too deep: the reader counts it as a bad row
        return True
    return True


def _is_object(line: bytes) -> bool:
    text = line.removeprefix(b"\xef\xbb\xbf").strip()
    if not (text.startswith(b"{") and text.endswith(b"}")):
        return False
    try:
        return isinstance(json.loads(text.decode("utf-8")), dict)
    except (ValueError, RecursionError):
        return False


def _decoded(head: bytes) -> str:
    return head.decode("utf-8-sig", errors="replace")
