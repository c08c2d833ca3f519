"""Gold answers of a record, as verifiers read them."""

from __future__ import annotations

from dyme.data.record import Record


def gold_answers(record: Record) -> tuple[str, ...]:
    """The accepted answers, each once. Raises `ValueError` for a record that has none."""
    return tuple(dict.fromkeys(gold_votes(record)))


def gold_votes(record: Record) -> tuple[str, ...]:
    """The accepted answers, repeated where people agree. Raises `ValueError` for a record that has none."""
    if not record.answers:
        raise ValueError(f"record {record.id!r} has no gold answer: give it one or drop it from the data")
    return record.answers
