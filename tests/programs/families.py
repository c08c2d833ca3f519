"""Three steps of tiny checkpoints through the engine; rank 0 saves their gradients and weights.

The steps hold what breaks ZeRO-3 in vision-language models: pictures and text in one step, several pictures in a
prompt, a step of text alone though the vision tower is trained, a rank without a picture in its micro-batch.

usage: torchrun --nproc_per_node N -m tests.programs.families OUT_DIR CHECKPOINT_DIR ...
"""

from __future__ import annotations

import gc
import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist

VARIANTS = {"plain": False, "checkpointing": True}
"""Whether activations are recomputed; then all groups of a micro-batch are one sequence too, as they are on a GPU."""


def steps_of(family) -> list:
    """See the module's docstring. Text-only models get the same steps without pictures."""
    import numpy as np
    from PIL import Image

    from dyme.batching.objective import TrainSequence
    from dyme.families import IMAGE
    from tests.helpers.scenario import Step

    rng = np.random.default_rng(3)

    def prompt(words: int, pictures: int):
        sizes = [(40, 24), (24, 24), (20, 50)]
        images = [
            Image.fromarray(rng.integers(0, 255, (h, w, 3), dtype=np.uint8))
            for w, h in (sizes[rng.integers(3)] for _ in range(pictures))
        ]
        return family.encode("red " * words + "?", images if IMAGE in family.modalities else [])

    def step(prompts: list, live: list[tuple[int, int, float]], micro_batches: int) -> Step:
        rows = [TrainSequence(g, r, a, 1.0) for g, r, a in live]
        tokens = [rng.integers(60, 300, rng.integers(1, 8)).tolist() for _ in rows]
        weights = (rng.random(len(rows)) * 0.2 + 0.01).tolist()
        total = sum(len(prompts[g]) for g in {g for g, _, _ in live}) + sum(map(len, tokens))
        return Step(prompts, rows, tokens, weights, max(1, total // micro_batches))

    mixed = [prompt(3, 1), prompt(9, 0), prompt(1, 2), prompt(2, 0)]
    live = [(0, 0, 1.0), (0, 1, -1.0), (1, -1, 1.0), (2, 8, -0.3), (2, 9, 0.7), (2, -1, 1.0), (3, 12, 2.0)]
    text = [prompt(4, 0), prompt(6, 0)]
    lonely = [prompt(2, 1), *(prompt(n, 0) for n in (3, 5, 7, 8))]
    return [
        step(mixed, live, 3),
        step(text, [(0, -1, 1.0), (1, 4, 0.4), (1, 5, -0.4)], 1),
        step(lonely, [(0, 0, 1.5), *((g, g * 8, 0.3) for g in (1, 2, 3, 4))], 1),
    ]


def train(folder: str, out: Path, checkpointing: bool) -> dict:
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_grad

    from dyme.batching.plan import make_plan
    from dyme.engine.train_engine import TrainEngine
    from dyme.engine.update import TrainBatch, run_update
    from dyme.families import load_family
    from dyme_kernels import LossSpec
    from tests.helpers import scenario

    family, model = load_family(folder)
    cfg = scenario.config(
        deepspeed=str(out / "ds.json"), model={"path": folder, "gradient_checkpointing": checkpointing}
    )
    engine = TrainEngine(cfg, family, model, LossSpec())
    named = dict(model.named_parameters())
    gradients, lonely = [], 0
    plain_step = engine.step

    def spy(factor: float):
        gradients.append({name: safe_get_full_grad(p).clone() for name, p in named.items()})
        return plain_step(factor)

    engine.step = spy
    for step in steps_of(family):
        plan = make_plan(
            [r.group for r in step.rows],
            [len(t) for t in step.tokens],
            [len(p) for p in step.prompts],
            [p.modalities for p in step.prompts],
            engine.world_size,
            step.token_budget,
            first_modules=engine.trainable_modalities,
            share_prompt=family.packs_trees,
            joined=checkpointing and family.packs_trees,
        )
        for items, modules in zip(plan.micro_batches[engine.rank], plan.modules):
            lonely += bool(modules) and not any(step.prompts[item.group].pixels for item in items)
        run_update(engine, TrainBatch(plan, tuple(step.rows), step.weights, step.tokens, step.prompts.__getitem__), 1.0)
    weights = {name: safe_get_full_fp32_param(p).clone() for name, p in named.items()}
    copied = {name: p.clone() for name, p in engine.rollout_copy.refresh().named_parameters()}
    return {"gradients": gradients, "weights": weights, "copy": copied, "lonely": engine.all_reduce([lonely])[0]}


def main() -> None:
    from dyme.engine.train_engine import close_distributed, init_distributed

    out = Path(sys.argv[1])
    rank = init_distributed(0)
    if rank == 0:
        zero = {"stage": 3, "stage3_param_persistence_threshold": 0}
        (out / "ds.json").write_text(json.dumps({"zero_optimization": zero}))
    dist.barrier()
    for folder in sys.argv[2:]:
        for variant, checkpointing in VARIANTS.items():
            print(f"rank {rank}: {folder} {variant}", flush=True)
            result = train(folder, out, checkpointing)
            if rank == 0:
                torch.save(result, out / f"{Path(folder).name}-{variant}.pt")
            gc.collect()
    close_distributed()
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
