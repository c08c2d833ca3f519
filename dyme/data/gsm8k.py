"""Gsm8kSource: grade-school word problems (Cobbe et al. 2021, arXiv 2110.14168), as published or already split."""

from __future__ import annotations

import re
from typing import Literal

from dyme.data.paths import existing_file
from dyme.data.record import RecordSet
from dyme.data.rows import Limit, Row, RowError, read_rows
from dyme.settings.schema import Schema

FLAG = "####"
_ANNOTATION = re.compile(r"<<.*?>>")
_NUMBER = re.compile(r"-?\d+(\.\d+)?")


class Gsm8kSource(Schema):
    """The official JSONL (solution and "#### N" in `answer`), or rows whose `hint` holds the solution already."""

    source: Literal["gsm8k"] = "gsm8k"
    path: str
    """The file. `~` and environment variables are filled in."""
    limit: Limit = None
    """Use only the first rows."""

    def read(self) -> RecordSet:
        """Records with the number as answer and the solution, without <<...>> annotations, as hint."""
        return read_rows(existing_file(self.path), self.limit, {}, _convert)


def _convert(row: Row) -> Row:
    answer, hint = row.get("answer"), row.get("hint")
    if isinstance(answer, str) and FLAG in answer:
        solution, answer = answer.rsplit(FLAG, 1)
        hint = _ANNOTATION.sub("", solution).strip()
    elif hint is None:
        raise RowError(f"no {FLAG!r} in the answer, and no hint")
    number = str(answer).strip().replace(",", "")
    if not _NUMBER.fullmatch(number):
        raise RowError(f"answer {number!r} is not a number")
    return {**row, "answer": number, "hint": hint}
