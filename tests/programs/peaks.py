"""Peak GPU memory of each phase of a run of one step, as torch counts it, in bytes.

usage: python -m tests.programs.peaks RUN.yaml WIDTHxHEIGHT OUT.json    (one rank; the model's weights are made up)
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

PEAKS: dict[str, int] = {}


@contextmanager
def phase(name: str) -> Iterator[None]:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    yield
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        PEAKS[name] = torch.cuda.max_memory_allocated()
    else:
        PEAKS[name] = 0


def main() -> None:
    from PIL import Image

    from dyme.batching.objective import TrainSequence, resolve
    from dyme.batching.plan import make_plan
    from dyme.config import load_config
    from dyme.engine.train_engine import TrainEngine, init_distributed
    from dyme.engine.update import TrainBatch, run_update
    from dyme.families import load_family
    from dyme.rollout.noise import row_key
    from dyme.rollout.registry import open_engine
    from dyme.rollout.types import RolloutRequest, Sampling
    from dyme.tools.check.report import QUESTION

    cfg, out = load_config(sys.argv[1]), Path(sys.argv[3])
    width, height = map(int, sys.argv[2].split("x"))
    init_distributed(0)
    family, model = load_family(cfg.model.path, dtype=cfg.model.dtype)
    engine = TrainEngine(cfg, family, model, resolve(cfg)[0])
    rollout = open_engine(cfg.rollout.engine, family, engine.rollout_copy)
    question = cfg.prompt.template.replace("{flag}", cfg.prompt.answer_flag).replace("{question}", QUESTION)
    prompt = family.encode(question, [Image.new("RGB", (width, height), "white")])
    reply, size, key = cfg.rollout.max_new_tokens, cfg.rollout.group_size, family.pixel_keys[0]

    def roll(count: int, rows_each: int, temperature: float) -> None:
        # other pixels, so that no two prompts are the same group
        prompts = [replace(prompt, pixels={**prompt.pixels, key: prompt.pixels[key] + n}) for n in range(count)]
        rows = [RolloutRequest(p, row_key(0, 0, str(n), k)) for n, p in enumerate(prompts) for k in range(rows_each)]
        rollout.update_weights()
        rollout.generate(rows, Sampling(reply, temperature, batch_size=cfg.rollout.batch_size))

    def update() -> None:
        rollout.sleep()
        # whole groups up to the token budget, the last cut short so that it is full
        rows, tokens, left = [], [], cfg.train.token_budget
        prompts = []
        while left > len(prompt):
            left -= len(prompt)
            for _ in range(size):
                if left > 0:
                    rows.append(TrainSequence(len(prompts), len(rows), 1.0, 1.0))
                    tokens.append(torch.randint(60, 300, (min(reply, left),)).tolist())
                    left -= len(tokens[-1])
            prompts.append(prompt)
        plan = make_plan(
            [row.group for row in rows],
            [len(t) for t in tokens],
            [len(prompt)] * len(prompts),
            [prompt.modalities] * len(prompts),
            1,
            cfg.train.token_budget,
            first_modules=engine.trainable_modalities,
            share_prompt=family.packs_trees,
            joined=engine.joined,
        )
        assert plan.num_micro_batches == 1
        run_update(engine, TrainBatch(plan, tuple(rows), [1e-3] * len(rows), tokens, prompts.__getitem__), 1.0)

    update()  # makes the optimizer's states
    with phase("rollout"):
        roll(cfg.rollout.prompts_per_step, size, 1.0)
    with phase("update"):
        update()
    with phase("refresh"):
        rollout.update_weights()
    with phase("evaluation"):
        roll(cfg.run.eval_records, 1, 0.0)
    out.write_text(json.dumps(PEAKS))
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
