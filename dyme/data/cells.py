"""Cells: the values of a row, as JSON, Arrow, numpy or pandas give them, as text."""

from __future__ import annotations

import math
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

import numpy as np

from dyme.data.errors import RowError
from dyme.text.printable import fault

MAX_TEXT = 1_000_000
"""Characters of a text in a row."""
MAX_ID = 1_000
"""Characters of an id."""


def plain_cell(value: Any) -> Any:
    """`value` as JSON would hold it: no numpy, None where a value is missing (NaN, NaT)."""
    if value is None or type(value) is str:
        return value
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, (np.ndarray, tuple, list)):
        return [plain_cell(each) for each in value]
    if isinstance(value, (float, Decimal, datetime)) and value != value:
        return None
    return value


def cell_text(value: Any, key: str) -> str:
    """A text, number, date or time as stripped text; "" where it is missing. Bytes are text in UTF-8.

    Raises `RowError`, which calls it `key`, for any other type, and for text that cannot be encoded or is too long.
    """
    value = plain_cell(value)
    if value is None:
        return ""
    if isinstance(value, bytes):
        try:
            value = value.decode("utf-8")
        except UnicodeDecodeError as error:
            raise RowError(f"{key} is {len(value)} bytes that are not UTF-8 text ({value[:8]!r}...)") from error
    if isinstance(value, str):
        text = value
    elif isinstance(value, float) and math.isinf(value):
        raise RowError(f"{key} is a number beyond the range of floats; write it as text")
    elif isinstance(value, Decimal) and value.is_finite() and abs(value.adjusted()) < MAX_ID:
        text = f"{value:f}"
    elif isinstance(value, (int, float, Decimal, date, time, timedelta)) and not isinstance(value, bool):
        text = str(value)
    else:
        raise RowError(f"{key} is a {type(value).__name__} ({value!r:.40}); text or a number is needed")
    limit = MAX_ID if key == "id" else MAX_TEXT
    if len(text) > limit:
        raise RowError(f"{key} has {len(text)} characters, the limit is {limit}; shorten it")
    why = fault(text)  # before blanks are removed, one of which may be the \t of \theta
    if why:
        raise RowError(f"{key} has {why}")
    return text.strip()
