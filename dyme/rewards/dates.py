"""Dates with the month in words, or in the order of ISO 8601: the same fields however they are arranged."""

from __future__ import annotations

import re

_MONTH_TEXT = "january february march april may june july august september october november december"
_MONTHS = {name[:n]: i for i, name in enumerate(_MONTH_TEXT.split(), 1) for n in (3, len(name))} | {"sept": 9}
_MONTH = r"(?P<month>[a-z]{3,9})\.?"
_DAY = r"(?P<day>\d{1,2})(?:st|nd|rd|th)?"
_YEAR = r"(?P<year>\d{4})"
_LAYOUTS = [
    re.compile(rf"{_MONTH} {_DAY}(?:,? {_YEAR})?", re.IGNORECASE),
    re.compile(rf"(?:the )?{_DAY} (?:of )?{_MONTH}(?:,? {_YEAR})?", re.IGNORECASE),
    re.compile(rf"{_MONTH},? {_YEAR}", re.IGNORECASE),
    re.compile(rf"{_YEAR}-(?P<month>\d{{2}})-(?P<day>\d{{2}})"),
]


def read_date(text: str) -> tuple[str, tuple[str, ...], str] | None:
    """("date", (year, month, day), "") with "" for a field that is left out; None for text that is no such date."""
    for layout in _LAYOUTS:
        match = layout.fullmatch(text)
        if match:
            fields = match.groupdict()
            month = _MONTHS.get(fields["month"].lower()) if fields["month"].isalpha() else int(fields["month"])
            day = int(fields.get("day") or 0)
            if month and month <= 12 and day <= 31:
                return "date", (fields.get("year") or "", str(month), str(day) if day else ""), ""
    return None
