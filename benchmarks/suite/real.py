"""Tasks nlvr and puzzlevqa, for a GPU: real sets with the traces they have; NLVR has none, so its answers alone are
memorized. Stage 2 sees no scattered boxes of NLVR and no hexagons of PuzzleVQA."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from benchmarks.suite.task import CAPTION, Sizes, Split, Task, Tree, jsonl, split_of
from dyme.data.paths import expand

_KEYS = ("id", "question", "answer", "choices", "hint", "facts", "kind")


@lru_cache(maxsize=4)
def _rows(name: str, split: str) -> tuple[Mapping[str, Any], ...]:
    """The rows of a split in an order of their own. Raises `DataError` without DYME_DATA."""
    folder = expand(f"${{DYME_DATA}}/{name}") / split
    lines = [json.loads(line) for line in (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]
    random.Random(f"{name}-{split}").shuffle(lines)
    return tuple(
        {key: row[key] for key in _KEYS if key in row} | {"image": str(folder / row["file_name"])} for row in lines
    )


def _task(name: str, unseen: Callable[[str], bool], unseen_name: str, max_new_tokens: int) -> Task:
    """`unseen(kind)`: whether stage 2 sees none of a kind."""

    def narrow(split: str, other: bool = False) -> list[Mapping[str, Any]]:
        return [row for row in _rows(name, split) if unseen(row["kind"]) == other]

    def training() -> tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]]:
        """Rows of stage 2's training, and a fifth for its validation, which no run trains on."""
        rows = narrow("train")
        return rows[len(rows) // 5 :], rows[: len(rows) // 5]

    def base(folder: Path, steps: int, prompts: int) -> Tree:
        def rows() -> Sequence[Mapping[str, Any]]:
            held = {row["id"] for row in training()[1]}
            kept = [row for row in _rows(name, "train") if row["id"] not in held]
            told = [
                {"id": f"{row['id']}-facts", "question": CAPTION, "answer": row["facts"], "image": row["image"]}
                for row in kept
            ]
            return [row for pair in zip(told, kept) for row in pair]

        return jsonl(folder / f"{name}-base.jsonl", rows)

    def train(folder: Path, count: int, seed: int, trace: str, noise: float) -> Tree:
        def rows() -> Sequence[Mapping[str, Any]]:
            pool = training()[0]
            return random.Random(seed).sample(pool, min(count, len(pool)))

        return jsonl(folder / f"{name}-train-{seed}-{count}.jsonl", rows)

    def held_out(folder: Path, sizes: Sizes) -> Mapping[str, Split]:
        def split(title: str, count: int, rows: Callable[[], list[Mapping[str, Any]]]) -> Split:
            return split_of(folder, name, title, count, lambda: rows()[:count])

        return {
            "validation": split("validation", sizes.validation, lambda: training()[1]),
            "test": split("test", sizes.test, lambda: narrow("test")),
            f"ood {unseen_name}": split(f"ood {unseen_name}", sizes.ood, lambda: narrow("test", True)),
        }

    return Task(
        name,
        base,
        train,
        held_out,
        lambda folder: [base(folder, 0, 0)],
        traces=("own",),
        picture={"image_size": 224, "patch_size": 14, "scale_factor": 2},
        max_new_tokens=max_new_tokens,
    )


NLVR = _task("nlvr", lambda kind: kind == "scatter", "scattered boxes", 64)
PUZZLEVQA = _task("puzzlevqa", lambda kind: "hexagon" in kind, "hexagons", 192)
