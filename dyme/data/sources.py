"""SourceConfig: every source that a configuration may name, and how a run reads it."""

from __future__ import annotations

from functools import partial
from typing import Annotated

from pydantic import Field

from dyme.data.errors import DataError
from dyme.data.mixture import MixtureSource, read_mixture
from dyme.data.plain import AnyPlainSource
from dyme.data.record import RecordSet

SourceConfig = Annotated[AnyPlainSource | MixtureSource, Field(discriminator="source")]
NAMED = 10  # bad rows that an error message spells out


def load_records(source: SourceConfig, max_bad_fraction: float = 0.01) -> RecordSet:
    """The records of a source, with its bad rows skipped and kept in `.bad`.

    Pictures are checked by their header only; `LazyImage.load` decodes. Raises `DataError` when more than
    `max_bad_fraction` of the rows are bad (in any part of a mixture), when no row is left, and when the source
    cannot be found.
    """
    if isinstance(source, MixtureSource):
        return read_mixture(source, partial(load_records, max_bad_fraction=max_bad_fraction))
    records = read_records(source)
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


def read_records(source: SourceConfig) -> RecordSet:
    """As `load_records`, whatever the number of bad rows."""
    return read_mixture(source, read_records) if isinstance(source, MixtureSource) else source.read()
