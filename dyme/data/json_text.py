"""JSON of one row or of a list of rows, read so that one of them can be bad without the others."""

from __future__ import annotations

import json
import re
from typing import Any

from dyme.data.errors import RowError

MAX_DEPTH = 100
"""Lists and objects within each other in a row."""
_TOKEN = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{},]', re.DOTALL)
# pandas writes missing values as NaN, which must not become the answer "nan"
_DECODER = json.JSONDecoder(parse_constant=lambda _: None)


def parse(raw: bytes) -> Any:
    """The value of a row's JSON, with null for NaN and infinities. Raises `RowError`."""
    try:
        return _DECODER.decode(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise RowError(f"not UTF-8 at byte {error.start}; save the file as UTF-8") from error
    except json.JSONDecodeError as error:
        raise RowError(f"broken JSON at column {error.colno}: {error.msg}{_mend(error)}") from error
    except RecursionError as error:
        raise RowError(_DEEP) from error
    except ValueError as error:  # Python converts no longer numbers
        raise RowError("a number of more than 4300 digits; write it as text") from error


def _mend(error: json.JSONDecodeError) -> str:
    rest = error.doc[error.pos :].lstrip()
    if error.msg == "Extra data":
        return "; remove the comma at its end" if rest.strip() == "," else "; write one object a line and nothing else"
    if error.doc.lstrip()[:1] not in ("{", "["):
        return "; write one object a line, without comments"
    quoted = rest[:1] == "'" or rest[:4] in ("True", "None") or rest[:5] == "False"
    return "; this is Python, write it by json.dumps" if quoted else ""


def check_depth(value: Any) -> None:
    """Raises `RowError` where lists and objects lie more than `MAX_DEPTH` deep: whatever walks or writes such a row
    would fail later."""
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [
            inner
            for each in level
            if isinstance(each, (list, dict))
            for inner in (each.values() if isinstance(each, dict) else each)
        ]
        if not level:
            return
    raise RowError(_DEEP)


def entries_of(text: str) -> list[str] | None:
    """The text of each entry of a JSON list, found by its brackets alone; None where `text` is no whole list."""
    if not text.lstrip().startswith("["):
        return None
    entries, depth, begin = [], 0, 0
    for token in _TOKEN.finditer(text):
        mark = token[0]
        if mark in "[{":
            depth += 1
            begin = token.end() if depth == 1 else begin
        elif mark in "]}" or (mark == "," and depth == 1):
            depth -= mark != ","
            if depth == 0 or mark == ",":
                entries.append(text[begin : token.start()])
                begin = token.end()
            if depth == 0:
                whole = not text[token.end() :].strip()
                return [entry for entry in entries if entry.strip()] if whole else None
    return None


_DEEP = f"lists or objects more than {MAX_DEPTH} deep; write the row flat"
