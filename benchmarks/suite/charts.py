"""Task charts: generated pictures of bars. Stage 2 sees four colours and values up to 5."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.suite.task import CAPTION_FRACTION, CAPTIONS_FIRST, Sizes, Split, Task, Tree

KINDS = ["value", "maximum", "minimum", "comparison"]
SEEN = ["red", "green", "blue", "yellow"]
UNSEEN = ("pink", "cyan")
TINY: Tree = {"source": "charts", "kinds": KINDS, "charts": ["bar"], "values": [1, 5], "colours": SEEN}
FULL: Tree = {"source": "charts", "scale": "full", "kinds": KINDS, "charts": ["bar"], "values": [5, 60]}


def _base(scale: str) -> Task:
    whole: Tree = {"source": "charts", "scale": scale, "kinds": KINDS, "charts": ["bar", "line"]}
    narrow = TINY if scale == "tiny" else FULL

    def base(folder: Path, steps: int, prompts: int) -> Tree:
        count = steps * prompts
        first = int(CAPTIONS_FIRST * count)
        return {**whole, "task": "base", "count": count, "captions_first": first, "caption_fraction": CAPTION_FRACTION}

    def train(folder: Path, count: int, seed: int, trace: str, noise: float) -> Tree:
        return {**narrow, "count": count, "seed": seed, "trace": trace, "wrong_reading_probability": noise}

    def held_out(folder: Path, sizes: Sizes) -> Mapping[str, Split]:
        test = {**narrow, "split": "test"}
        large = [6, 9] if scale == "tiny" else [65, 100]
        splits = {
            "validation": Split({**narrow, "seed": 9001, "count": sizes.validation}, sizes.validation),
            "test": Split({**test, "count": sizes.test}, sizes.test),
            "ood larger values": Split({**test, "values": large, "count": sizes.ood}, sizes.ood),
            "ood line charts": Split({**test, "charts": ["line"], "count": sizes.ood}, sizes.ood),
        }
        if scale == "tiny":
            colours = {**test, "colours": [*SEEN, *UNSEEN], "count": 2 * sizes.ood}
            splits["ood unseen colours"] = Split(colours, sizes.ood, UNSEEN)
        return splits

    def tokenizer(folder: Path) -> Sequence[Tree]:
        return [{**whole, "count": 1000, "trace": trace} for trace in ("high", "medium", "low")]

    tiny = scale == "tiny"
    picture = {"patch_size": 8, "scale_factor": 1} if tiny else {"image_size": 224, "patch_size": 14, "scale_factor": 2}
    name = "charts" if tiny else "charts_full"
    return Task(name, base, train, held_out, tokenizer, picture=picture, max_new_tokens=56 if tiny else 128)


CHARTS = _base("tiny")
CHARTS_FULL = _base("full")
