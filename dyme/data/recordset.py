"""RecordSet: the records of a source, and the rows that were left out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

from dyme.data.errors import BadRow
from dyme.data.record import Record


@dataclass(frozen=True)
class RecordSet(Sequence[Record]):
    """Records in file order, without the `bad` rows. Can be pickled for data workers.

    `file` and `lines` (from 1, one for each record) say where records were read; generated records have neither.
    `files` (one for each record) is set where records come from several files.
    """

    records: tuple[Record, ...]
    bad: tuple[BadRow, ...] = ()
    file: Path | None = None
    lines: tuple[int, ...] = ()
    files: tuple[Path, ...] = ()

    def origin(self, index: int) -> tuple[Path, int]:
        """File and line of a record; an empty path and 0 for generated records."""
        file = self.files[index] if self.files else self.file or Path()
        return file, self.lines[index] if self.lines else 0

    def __len__(self) -> int:
        return len(self.records)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Record]: ...
    def __getitem__(self, index: int | slice) -> Record | Sequence[Record]:
        return self.records[index]

    def __iter__(self) -> Iterator[Record]:
        return iter(self.records)
