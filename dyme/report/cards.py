"""Sample cards: the same held-out records before and after training, right and wrong in their true proportion."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from PIL import Image

from dyme.report.html import Picture, embed
from dyme.report.runs import Run

SHOWN_ALONE = 12
SHOWN_EACH = 6


@dataclass(frozen=True)
class Pair:
    """One record's lines of samples.jsonl at the first and the last evaluation; `before` is None after only one."""

    before: dict[str, Any] | None
    after: dict[str, Any]


def pair_samples(samples: Sequence[dict[str, Any]]) -> list[Pair]:
    """The records of the last evaluation, by id, each with its answer at the first one."""
    if not samples:
        return []
    first, last = samples[0]["step"], samples[-1]["step"]
    start = {row["id"]: row for row in samples if row["step"] == first} if first != last else {}
    end = {row["id"]: row for row in samples if row["step"] == last}
    return [Pair(start.get(key), end[key]) for key in sorted(end, key=str)]


def choose(pairs: Sequence[Pair], count: int) -> list[Pair]:
    """`count` of `pairs`: right and wrong answers in proportion, at least one of each that occurs, kinds in turn.

    The choice depends on ids, kinds and verdicts only.
    """
    if len(pairs) <= count:
        return list(pairs)
    right = [pair for pair in pairs if pair.after.get("correct")]
    wrong = [pair for pair in pairs if not pair.after.get("correct")]
    share = round(count * len(right) / len(pairs))
    share = max(min(share, count - bool(wrong)), int(bool(right)))
    chosen = _by_kind_in_turn(right)[:share] + _by_kind_in_turn(wrong)[: count - share]
    return sorted(chosen, key=pairs.index)


def choose_cards(run: Run, *, alone: bool) -> tuple[str, list[tuple[Pair, Picture]]]:
    """How the cards of a run were chosen, and their pairs and pictures; more when it is the only run on the page."""
    pairs = pair_samples(run.samples)
    if not pairs:
        return "No sample answers yet", []
    shown = choose(pairs, SHOWN_ALONE if alone else SHOWN_EACH)
    right = sum(bool(pair.after.get("correct")) for pair in pairs)
    chosen = f"{len(shown)} of {len(pairs)} sampled held-out records, chosen by id; {right} of {len(pairs)} are right"
    if run.samples[0]["step"] == run.samples[-1]["step"]:
        chosen += f" at step {run.samples[-1]['step']}, the only evaluation so far"
    return chosen, [(pair, _picture(pair.after.get("image"), run.path)) for pair in shown]


def _by_kind_in_turn(pairs: Sequence[Pair]) -> list[Pair]:
    kinds: dict[str, list[Pair]] = defaultdict(list)
    for pair in pairs:
        kinds[str(pair.after.get("kind", ""))].append(pair)
    turns = zip_longest(*(kinds[kind] for kind in sorted(kinds)))
    return [pair for turn in turns for pair in turn if pair is not None]


def _picture(name: Any, run_dir: Path) -> Picture:
    if not name:
        return Picture()
    # Only the last part of the path is used, so a line of samples.jsonl cannot name a file elsewhere.
    path = run_dir / "samples" / Path(str(name)).name
    try:
        with Image.open(path) as opened:
            return embed(opened)
    except (OSError, Image.DecompressionBombError):
        return Picture(missing="picture missing")
