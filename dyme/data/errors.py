"""Errors of the data sources: a bad row is counted, a bad source stops the run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dyme.text.printable import printable


class DataError(ValueError):
    """A source that cannot be used; the message names the file, the rows where there are any, and the mend."""


class RowError(Exception):
    """Why one row cannot become a record."""


class ImageError(Exception):
    """A picture that cannot be decoded; the message names the file or record and the mend."""


@dataclass(frozen=True)
class BadRow:
    """One row that was left out. `line` counts from 1; `record_id` is "" where the row has none."""

    file: Path
    line: int
    record_id: str
    reason: str

    def __str__(self) -> str:
        name = f" ({self.record_id})" if self.record_id else ""
        return printable(f"{self.file}:{self.line}{name}: {self.reason}".replace("\n", " "))
