"""The rollout copy of engines of a tiny model on this many ranks, after optimizer steps: is it, to the bit, what the
gathered weights give, and what was gathered for it?

usage: torchrun --nproc_per_node N -m tests.programs.copies OUT_DIR
"""

from __future__ import annotations

import copy
import itertools
import json
import os
import sys
from pathlib import Path

import deepspeed
import torch
import torch.distributed as dist

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def record_gathers() -> list[list[int]]:
    """The sizes of what is gathered, one list for each use of GatheredParameters."""
    seen: list[list[int]] = []
    plain = deepspeed.zero.GatheredParameters

    def gathered(parameters, *args, enabled=True, **kwargs):
        parameters = list(parameters)
        if enabled:
            seen.append([p.ds_numel for p in parameters])
        return plain(parameters, *args, enabled=enabled, **kwargs)

    deepspeed.zero.GatheredParameters = gathered
    return seen


def expected(model: torch.nn.Module, scaling: float, stage: int) -> dict[str, torch.Tensor]:
    """Of the plain model, from weights that are gathered all at once."""
    with deepspeed.zero.GatheredParameters(list(model.parameters()), enabled=stage == 3):
        held = {name: p.detach().clone() for name, p in model.named_parameters()}
    weights = {name.replace(".base_layer", ""): p for name, p in held.items() if ".lora_" not in name}
    for name, down in held.items():
        if ".lora_A." in name:
            weight = name.partition(".lora_A.")[0] + ".weight"
            up = held[name.replace("lora_A", "lora_B")]
            change = scaling * (up.float() @ down.float())
            weights[weight] = (weights[weight].float() + change).to(weights[weight].dtype)
    return weights


def wrong(copied: torch.nn.Module, weights: dict[str, torch.Tensor]) -> list[str]:
    own = dict(copied.named_parameters())
    return sorted(own.keys() ^ weights.keys()) + [n for n, p in weights.items() if not torch.equal(own[n], p)]


def main() -> None:
    gathers = record_gathers()
    from dyme.batching.plan import make_plan
    from dyme.engine.train_engine import TrainEngine, close_distributed, init_distributed
    from dyme.engine.update import TrainBatch, run_update
    from dyme.rollout.registry import open_engine
    from dyme_kernels import LossSpec
    from tests.helpers import scenario

    out = Path(sys.argv[1])
    rank = init_distributed(0)
    for stage in (2, 3):
        if rank == 0:
            zero = {"stage": stage, "stage3_param_persistence_threshold": 0}
            (out / f"ds{stage}.json").write_text(json.dumps({"zero_optimization": zero}))
    dist.barrier()
    family, built, steps = scenario.build()
    results = []
    for stage, lora, dtype, offload in itertools.product((2, 3), (False, True), DTYPES, (False, True)):
        if offload and (stage, dtype) != (3, "bf16"):
            continue
        settings = {"path": "unused", "dtype": dtype, "freeze": ["vision"]}
        settings |= {"lora": {"r": 4, "alpha": 64, "targets": ["q_proj", "up_proj"]}} if lora else {}
        cfg = scenario.config(deepspeed=str(out / f"ds{stage}.json"), model=settings, rollout={"offload": offload})
        engine = TrainEngine(cfg, family, copy.deepcopy(built).to(DTYPES[dtype]), LossSpec())
        if offload:
            engine.rollout_copy.pin()  # the engine does so on a GPU
        rollout = open_engine("auto", family, engine.rollout_copy)
        rollout.update_weights()
        rollout.wake()
        model, copied = engine.module.model, engine.rollout_copy.model
        addresses = {p.data_ptr() for p in copied.parameters()}
        started = {name: p.clone() for name, p in copied.named_parameters()}
        parked = []
        for step in steps[:2]:
            plan = make_plan(
                [r.group for r in step.rows],
                [len(t) for t in step.tokens],
                [len(p) for p in step.prompts],
                [p.modalities for p in step.prompts],
                engine.world_size,
                step.token_budget,
                first_modules=engine.trainable_modalities,
            )
            rollout.sleep()
            run_update(
                engine, TrainBatch(plan, tuple(step.rows), step.weights, step.tokens, step.prompts.__getitem__), 1.0
            )
            parked.append(addresses.isdisjoint(p.data_ptr() for p in copied.parameters()))
            gathers.clear()
            rollout.update_weights()
            seen = list(gathers)
            rollout.update_weights()
            again = len(gathers) - len(seen)
        assert engine.rollout_copy.refresh() is copied
        weights = expected(model, 64 / 4, stage)
        result = {
            "case": [stage, lora, dtype, offload],
            "wrong": wrong(copied, weights),
            "moved": sum(not torch.equal(started[n], p) for n, p in copied.named_parameters()),
            "dtypes": sorted({str(p.dtype) for p in copied.parameters()}),
            "gathers": seen,
            "again": again,
            "parked": parked,
            "layers": [sum(p.numel() for p in m.parameters()) for m in family.decoder_layers(copied)],
            "largest": max(p.numel() for p in copied.parameters()),
        }
        with (
            torch.no_grad(),
            deepspeed.zero.GatheredParameters(list(model.parameters()), modifier_rank=0, enabled=stage == 3),
        ):
            for p in model.parameters():
                p += 1
        engine.rollout_copy.outdated()
        result["frozen"] = wrong(engine.rollout_copy.refresh(), weights := expected(model, 64 / 4, stage))
        engine.rollout_copy.outdated(whole=True)
        result["loaded"] = wrong(engine.rollout_copy.refresh(), weights)
        results.append(result)
    (out / f"copies{rank}.json").write_text(json.dumps(results))
    close_distributed()
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
