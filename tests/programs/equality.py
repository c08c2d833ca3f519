"""Runs the scenario through the engine on this many ranks; rank 0 saves gradients and weights, every rank its
collectives.

usage: torchrun --nproc_per_node N -m tests.programs.equality OUT_DIR [key=value of the DeepSpeed ZeRO section ...]
environment: LORA_HEAD=1; LOSS=name of one of scenario.LOSSES; MODEL=JSON of more settings of the section `model`
"""

from __future__ import annotations

import json
import math
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist

TRACE: list[list[object]] = []


def record_collectives() -> None:
    """Wraps torch.distributed before DeepSpeed takes its functions."""
    for name in (
        "all_reduce",
        "all_gather",
        "all_gather_into_tensor",
        "reduce_scatter_tensor",
        "reduce_scatter",
        "broadcast",
        "barrier",
    ):
        original = getattr(dist, name)

        def wrapped(*args, _name=name, _original=original, **kwargs):
            sizes = [a.numel() for a in args if isinstance(a, torch.Tensor)]
            TRACE.append([_name, *sizes])
            return _original(*args, **kwargs)

        setattr(dist, name, wrapped)


def record_gathers(model: torch.nn.Module, head: torch.nn.Parameter) -> list[int]:
    """Wraps ZeRO-3's gather of every parameter; the list it returns grows whenever the head's weight is in it."""
    seen: list[int] = []
    for parameter in model.parameters():
        original = getattr(parameter, "all_gather_coalesced", None)
        if original is None:  # ZeRO-2
            continue

        def wrapped(parameters, *args, _original=original, **kwargs):
            seen.extend(p.ds_id for p in parameters if p is head)
            return _original(parameters, *args, **kwargs)

        parameter.all_gather_coalesced = wrapped
    return seen


def main() -> None:
    record_collectives()
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_grad

    from dyme.batching.plan import make_plan
    from dyme.engine.train_engine import TrainEngine, close_distributed, init_distributed
    from dyme.engine.update import TrainBatch, run_update, with_reference_logprobs
    from tests.helpers import scenario

    out = Path(sys.argv[1])
    rank = init_distributed(0)
    zero = {"stage": 3, "stage3_param_persistence_threshold": 0} | {
        k: json.loads(v) for k, v in (a.split("=") for a in sys.argv[2:])
    }
    ds = out / "ds.json"
    if rank == 0:
        ds.write_text(json.dumps({"zero_optimization": zero}))
    dist.barrier()
    family, model, steps = scenario.build(lora_head=os.environ.get("LORA_HEAD") == "1")
    settings = json.loads(os.environ.get("MODEL", "{}"))
    cfg = scenario.config(deepspeed=str(ds), model={"path": "unused", **settings})
    loss = scenario.LOSSES[os.environ.get("LOSS", "plain")]
    steps = scenario.joint(steps) if loss.joint else steps
    engine = TrainEngine(cfg, family, model, loss.spec)
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    gradients, norms, micro, clipped = [], [], [], 0.0
    gathers, gathered = record_gathers(model, family.head(model).weight), []
    step_engine = engine.step

    def spy(factor: float):
        gradients.append({n: safe_get_full_grad(p).clone() for n, p in trained.items()})
        result = step_engine(factor)
        norms.append(result.grad_norm)
        return result

    engine.step = spy
    for step in steps:
        plan = make_plan(
            [r.group for r in step.rows],
            [len(t) for t in step.tokens],
            [len(p) for p in step.prompts],
            [p.modalities for p in step.prompts],
            engine.world_size,
            step.token_budget,
            first_modules=engine.trainable_modalities,
        )
        micro.append(plan.num_micro_batches)
        before = len(gathers)
        work = TrainBatch(
            plan, tuple(step.rows), step.weights, step.tokens, step.prompts.__getitem__, step.token_shaping,
            kl_share=step.kl_share,
        )  # fmt: skip
        stats = run_update(engine, with_reference_logprobs(engine, work), 1.0, loss.epochs)
        gathered.append(len(gathers) - before)
        if not math.isnan(stats.clipped_low):
            clipped += stats.clipped_low + stats.clipped_high
    weights = {n: safe_get_full_fp32_param(p).clone() for n, p in trained.items()}
    copied = {n: p.clone() for n, p in engine.rollout_copy.refresh().named_parameters()}
    (out / f"trace{rank}.json").write_text(json.dumps(TRACE))
    if rank == 0:
        torch.save(
            {
                "gradients": gradients,
                "weights": weights,
                "copy": copied,
                "norms": norms,
                "micro": micro,
                "clipped": clipped,
                "head_gathers": gathered,
            },
            out / "result.pt",
        )
    close_distributed()
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
