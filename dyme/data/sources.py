"""SourceConfig: every source that a configuration may name, and how a run reads it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Annotated

from pydantic import Field

from dyme.data.errors import BadRow, DataError
from dyme.data.mixture import MixtureSource, read_mixture
from dyme.data.plain import AnyPlainSource
from dyme.data.record import Record, RecordSet

SourceConfig = Annotated[AnyPlainSource | MixtureSource, Field(discriminator="source")]
Check = Callable[[Record], str | None]
"""Says why a record is of no use, with the mend, or None."""
NAMED = 10  # bad rows that an error message spells out


def load_records(source: SourceConfig, max_bad_fraction: float = 0.01, check: Check | None = None) -> RecordSet:
    """The records of a source, with its bad rows skipped and kept in `.bad`; a record that `check` refuses is one.

    Pictures are checked by their header only; `LazyImage.load` decodes. Raises `DataError` when more than
    `max_bad_fraction` of the rows are bad (in any part of a mixture), when no row is left, and when the source
    cannot be found.
    """
    if isinstance(source, MixtureSource):
        return read_mixture(source, partial(load_records, max_bad_fraction=max_bad_fraction, check=check))
    records = read_records(source, check)
    total = len(records) + len(records.bad)
    if total == 0:
        raise DataError(f"{records.file}: no rows; correct data path")
    bad = len(records.bad)
    if len(records) == 0 or bad / total > max_bad_fraction:
        rows = "".join(f"\n  {row}" for row in records.bad[:NAMED])
        more = f"\n  and {bad - NAMED} more" if bad > NAMED else ""
        raise DataError(
            f"{records.file}: {bad} of {total} rows are bad ({bad / total:.2%}, allowed {max_bad_fraction:.2%}); "
            f"mend them or raise data.max_bad_fraction:{rows}{more}"
        )
    return records


def read_records(source: SourceConfig, check: Check | None = None) -> RecordSet:
    """As `load_records`, whatever the number of bad rows."""
    if isinstance(source, MixtureSource):
        return read_mixture(source, partial(read_records, check=check))
    try:
        records = source.read()
    except OSError as error:  # an edge: no permission, a share that is gone
        raise DataError(unreadable(error)) from error
    return records if check is None else _checked(records, check)


def unreadable(error: OSError) -> str:
    """One line for an error of the system, with the mend."""
    return f"{error.filename or 'data'}: cannot be opened ({error.strerror}); see its folder, owner and permissions"


def _checked(records: RecordSet, check: Check) -> RecordSet:
    """Without the records that `check` refuses, which become bad rows."""
    reasons = [check(record) for record in records]
    bad = [BadRow(*records.origin(i), records[i].id, reason) for i, reason in enumerate(reasons) if reason]
    if not bad:
        return records
    kept = [i for i, reason in enumerate(reasons) if not reason]
    return replace(
        records,
        records=tuple(records[i] for i in kept),
        bad=tuple(sorted((*records.bad, *bad), key=lambda row: (row.file, row.line))),
        lines=tuple(records.lines[i] for i in kept) if records.lines else (),
        files=tuple(records.files[i] for i in kept) if records.files else (),
    )
