"""SourceConfig: every source that a configuration may name, and how a run reads it."""

from __future__ import annotations

from dyme.data.errors import DataError
from dyme.data.plain import PlainSource as SourceConfig
from dyme.data.plain import read_plain
from dyme.data.recordset import RecordSet

__all__ = ["SourceConfig", "load_records", "read_records"]
NAMED = 10  # bad rows that an error message spells out


def load_records(source: SourceConfig, max_bad_fraction: float = 0.01) -> RecordSet:
    """The records of a source, with its bad rows skipped and kept in `.bad`.

    Pictures are checked by their header only; `LazyImage.load` decodes. Raises `DataError` when more than
    `max_bad_fraction` of the rows are bad, when no row is left, and when the source cannot be found.
    """
    records = read_records(source)
    total = len(records) + len(records.bad)
    if total == 0:
        raise DataError(f"{records.file}: no rows; correct data path")
    if len(records) == 0 or len(records.bad) / total > max_bad_fraction:
        raise DataError(_too_many(records, total, max_bad_fraction))
    return records


def read_records(source: SourceConfig) -> RecordSet:
    """As `load_records`, whatever the number of bad rows."""
    return read_plain(source)


def _too_many(records: RecordSet, total: int, max_bad_fraction: float) -> str:
    bad = len(records.bad)
    more = f"\n  and {bad - NAMED} more" if bad > NAMED else ""
    rows = "".join(f"\n  {row}" for row in records.bad[:NAMED])
    return (
        f"{records.file}: {bad} of {total} rows are bad ({bad / total:.2%}, allowed {max_bad_fraction:.2%}); "
        f"mend them or raise data.max_bad_fraction:{rows}{more}"
    )
