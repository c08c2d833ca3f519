"""Contents: a fingerprint of the records of a run, so that a resumed one notices that they were replaced."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from dyme.data import Record
from dyme.provenance.history import Change

SAMPLED = 64  # pictures whose first bytes are read, all over the records
HEAD = 1 << 16


def fingerprint(records: Sequence[Record]) -> dict[str, Any]:
    """Number of records, a hash of their texts, and one of their picture files: the size of each, and the first bytes
    of some. Neither paths nor times are in it, so data may be moved. Pictures without a file of their own (generated,
    or in a data set of datasets) are counted."""
    texts, pictures = hashlib.blake2b(digest_size=16), hashlib.blake2b(digest_size=16)
    every = max(1, len(records) // SAMPLED)
    for number, r in enumerate(records):
        texts.update(repr((r.id, r.question, r.answers, r.choices, r.hint, r.facts, r.kind)).encode("utf-8", "replace"))
        for image in r.images:
            pictures.update(b"drawn")
            if image.path is None:
                continue
            try:
                pictures.update(str(image.path.stat().st_size).encode())
                if number % every == 0:
                    with image.path.open("rb") as file:
                        pictures.update(file.read(HEAD))
            except OSError:
                pictures.update(b"missing")
    return {"records": len(records), "texts": texts.hexdigest(), "pictures": pictures.hexdigest()}


def fingerprints(train: Sequence[Record], held_out: Sequence[Record] | None) -> dict[str, Any]:
    """Those of both parts of the data by their keys."""
    return {"data.train": fingerprint(train), "data.eval": fingerprint(held_out) if held_out is not None else None}


def changed_data(old: dict[str, Any], new: dict[str, Any]) -> list[Change]:
    """The parts that differ; none where `old` is empty, from a version that kept no fingerprints. Held-out records that
    were none before, or are none now, are a setting alone."""
    parts = [(key, old[key], new.get(key)) for key in old]
    return [Change(f"{key} (records)", a, b) for key, a, b in parts if a is not None and b is not None and a != b]


def describe(changed: Sequence[Change]) -> str:
    """What differs, in words."""
    told = []
    for change in changed:
        old, new = change.old, change.new
        what = [f"{old['records']} records, now {new['records']}"] if old["records"] != new["records"] else []
        what += [f"other {part}" for part in ("texts", "pictures") if old[part] != new[part]]
        told.append(f"{change.key.split()[0]}: {', '.join(what)}")
    return "; ".join(told)
