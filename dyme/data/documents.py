"""JSON documents that hold rows: which of their values are the rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dyme.data.errors import DataError
from dyme.data.json_text import entries_of
from dyme.data.layouts import DIALOGUES


def read_json(path: Path) -> Any:
    """The value of a JSON document, NaN as null. An entry that is too deep, or holds a number too long, comes as its
    text in bytes, so that it costs itself only. Raises `DataError` naming place and mend."""
    # bytes that are not UTF-8 become lone surrogates, for which their rows are bad
    text = path.read_bytes().decode("utf-8-sig", "surrogateescape")
    try:
        return _loads(text)
    except json.JSONDecodeError as error:
        several = error.msg == "Extra data"
        mend = "it holds several documents: write one to a line, or a list" if several else "write the file again"
        raise DataError(f"{path}:{error.lineno}: broken JSON ({error.msg}); {mend}") from error
    except (ValueError, RecursionError) as error:
        whole = text.strip()
        entries = entries_of(f"[{whole[1:-1]}]") if whole[:1] + whole[-1:] in ("{}", "[]") else None
        if not entries:
            raise DataError(f"{path}: broken JSON ({error}); write the file again") from error
    return _by_entry(entries) if whole[0] == "{" else [_entry(entry) for entry in entries]


def _by_entry(entries: list[str]) -> dict[str, Any]:
    found = {}
    for entry in entries:
        key, end = json.JSONDecoder().raw_decode(entry.lstrip())
        found[key] = _entry(entry.lstrip()[end:].lstrip().removeprefix(":"))
    return found


def _entry(text: str) -> Any:
    try:
        return _loads(text)
    except (ValueError, RecursionError):
        return text.encode("utf-8", "surrogateescape")


def _loads(text: str) -> Any:
    return json.loads(text, parse_constant=lambda _: None)


def holds_rows(value: object) -> bool:
    """Whether an object holds rows rather than being one: rows by id, columns, or a list of rows under a name."""
    if not isinstance(value, dict) or not value:
        return False
    by_id = sum(isinstance(entry, (dict, bytes)) for entry in value.values()) > len(value) / 2
    return (
        (by_id and "question" not in value)
        or rows_under_a_name(value) is not None
        or columns_as_rows(value) is not None
    )


def rows_under_a_name(value: dict[str, object]) -> list[object] | None:
    """The rows of {"info": .., "questions": [{..}, ..]}: its only list of objects, where it has no question itself."""
    lists = [v for v in value.values() if isinstance(v, list) and v and all(isinstance(entry, dict) for entry in v)]
    beside = ("question", "answer", "answers", "image", "images", "choices", *DIALOGUES)
    return lists[0] if len(lists) == 1 and not any(key in value for key in beside) else None


def lists_of_rows(value: dict[str, object]) -> list[str]:
    """The names of the lists of objects in {"train": [{..}, ..], "test": [..]}, where these are all it holds."""
    names = [k for k, v in value.items() if isinstance(v, list) and v and all(isinstance(e, dict) for e in v)]
    return names if len(names) == len(value) > 1 and "messages" not in names else []


def columns_as_rows(value: dict[str, object]) -> list[dict[str, object]] | None:
    """Rows of {"question": [..], "answer": [..]} or {"question": {"0": ..}, "answer": {"0": ..}} as pandas writes."""
    columns = [column for column in value.values() if isinstance(column, list)]
    if len(value) == len(columns) > 1:
        same = len({len(column) for column in columns}) == 1 and not any(key in value for key in DIALOGUES)
        return [dict(zip(value, cells)) for cells in zip(*columns)] if same else None
    indexed = [column for column in value.values() if isinstance(column, dict)]
    if not len(value) == len(indexed) > 1 or not indexed[0] or any(list(c) != list(indexed[0]) for c in indexed):
        return None
    if not all(key.isdecimal() for key in indexed[0]):
        return None
    return [dict(zip(value, cells)) for cells in zip(*(column.values() for column in indexed))]
