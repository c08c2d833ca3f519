"""MixtureSource: records of several sources in fixed shares, mixed by a seed."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from dyme.data.errors import DataError
from dyme.data.plain import AnyPlainSource, PlainSource
from dyme.data.record import Record, RecordSet
from dyme.settings.schema import Schema


class MixturePart(Schema):
    """One part of a mixture."""

    name: str = Field(pattern=r"^[\w.-]+$")
    """Prefix of the ids of its records: name/id."""
    weight: float = Field(default=1.0, gt=0)
    """Its share of the records, relative to the weights of the other parts."""
    records: PlainSource
    """Where its records come from; a mixture is not allowed."""


class MixtureSource(Schema):
    """Records of several sources, in shares given by weights and in an order given by a seed."""

    source: Literal["mixture"] = "mixture"
    parts: tuple[MixturePart, ...] = Field(min_length=1)
    """The sources with their weights; names differ."""
    count: int = Field(ge=1)
    """Number of records; a part with fewer than its share is repeated."""
    seed: int = 0
    """Seed of the order of the parts and of the records within each part."""

    @field_validator("parts")
    @classmethod
    def _names_differ(cls, parts: tuple[MixturePart, ...]) -> tuple[MixturePart, ...]:
        names = [part.name for part in parts]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"parts: the name {twice!r} is used twice; give every part a different name")
        return parts


def read_mixture(config: MixtureSource, read: Callable[[AnyPlainSource], RecordSet]) -> RecordSet:
    """`count` records of the parts, which `read` loads, and all bad rows of these.

    Raises `DataError` when a part has no record.
    """
    sets = [read(part.records) for part in config.parts]
    for part, found in zip(config.parts, sets):
        if not len(found):
            raise DataError(f"{found.file}: part {part.name!r} of the mixture has no good row; mend or remove it")
    shares = _shares([part.weight for part in config.parts], config.count)
    order = [k for k, share in enumerate(shares) for _ in range(share)]
    random.Random(config.seed).shuffle(order)
    drawn = [_drawn(p, found, n, config.seed) for p, found, n in zip(config.parts, sets, shares)]
    rows = [next(drawn[k]) for k in order]
    return RecordSet(
        records=tuple(record for record, _, _ in rows),
        bad=tuple(row for found in sets for row in found.bad),
        file=next((found.file for found in sets if found.file), None),
        lines=tuple(line for _, _, line in rows),
        files=tuple(file for _, file, _ in rows),
    )


def _shares(weights: list[float], count: int) -> list[int]:
    """Whole numbers that sum to `count`, each less than one away from its exact share."""
    exact = [weight / sum(weights) * count for weight in weights]
    shares = [int(share) for share in exact]
    by_rest = sorted(range(len(weights)), key=lambda k: shares[k] - exact[k])
    for k in by_rest[: count - sum(shares)]:
        shares[k] += 1
    return shares


def _drawn(part: MixturePart, found: RecordSet, count: int, seed: int) -> Iterator[tuple[Record, Path, int]]:
    """Records with file and line, each once before any comes again; the second time its id ends in @2."""
    for start in range(0, count, len(found)):
        order = list(range(len(found)))
        turn = start // len(found) + 1
        random.Random(f"{seed} {part.name} {turn}").shuffle(order)
        again = f"@{turn}" if turn > 1 else ""
        for i in order[: count - start]:
            yield replace(found[i], id=f"{part.name}/{found[i].id}{again}"), *found.origin(i)
