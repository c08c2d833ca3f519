"""Failures: counts of rows whose verifier or reward failed, over all ranks; each kind is reported once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any


class Failures:
    """`counts`: failed rows of all ranks by "name: kind"."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._noted: dict[str, tuple[int, str]] = {}

    def note(self, errors: Mapping[str, int], examples: Mapping[str, str]) -> None:
        """Keeps failures of this rank, with an example of each kind, for `share`."""
        for kind, count in errors.items():
            before, example = self._noted.get(kind, (0, examples.get(kind, "")))
            self._noted[kind] = before + count, example

    def share(self, gather: Callable[[Any], list[Any]], say: Callable[[str], None]) -> None:
        """Collective, through `TrainEngine.gather_json`. Counts the noted failures of all ranks and reports the first
        of each kind."""
        for part in gather(self._noted):
            for kind, (count, example) in part.items():
                if kind not in self.counts:
                    told = f" ({example})" if example else ""
                    say(f"reward failed, {kind}{told}: its rows stay unscored (said once)")
                self.counts[kind] += count
        self._noted.clear()
