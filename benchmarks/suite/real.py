"""Tasks nlvr and puzzlevqa, for a GPU: real sets with one kind of trace, or none, and no out-of-distribution split."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from benchmarks.suite.task import Sizes, Split, Task, Tree


def _task(name: str, max_new_tokens: int) -> Task:
    whole: Tree = {"source": "imagefolder", "path": f"${{DYME_DATA}}/{name}", "split": "train"}

    def train(folder: Path, count: int, seed: int, trace: str, noise: float) -> Tree:
        return {**whole, "limit": count}

    def held_out(folder: Path, sizes: Sizes) -> Mapping[str, Split]:
        test = Split({**whole, "split": "test"}, sizes.test)
        return {"validation": Split(whole, sizes.validation), "test": test}

    return Task(
        name,
        lambda folder, steps, prompts: whole,
        train,
        held_out,
        lambda folder: [],
        traces=("own",),
        picture={"image_size": 224, "patch_size": 14, "scale_factor": 2},
        max_new_tokens=max_new_tokens,
    )


NLVR = _task("nlvr", 64)
PUZZLEVQA = _task("puzzlevqa", 192)
