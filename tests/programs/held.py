"""What an engine of a tiny model holds on this rank, in bytes, after one optimizer step.

usage: torchrun --nproc_per_node N -m tests.programs.held OUT_DIR DTYPE [key=value of the DeepSpeed ZeRO section ...]
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist


def size(tensors: object) -> int:
    """Bytes of the storages, each counted once."""
    held = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}  # type: ignore[attr-defined]
    return sum(held.values())


def main() -> None:
    from dyme.batching.plan import make_plan
    from dyme.engine.train_engine import TrainEngine, close_distributed, init_distributed
    from dyme.engine.update import TrainBatch, run_update, with_reference_logprobs
    from dyme_kernels import LossSpec
    from tests.helpers import scenario

    out, dtype = Path(sys.argv[1]), sys.argv[2]
    rank = init_distributed(0)
    zero = {"stage": 3, "stage3_param_persistence_threshold": 0, "reduce_bucket_size": 1000} | {
        k: json.loads(v) for k, v in (a.split("=") for a in sys.argv[3:])
    }
    ds = out / "ds.json"
    if rank == 0:
        ds.write_text(json.dumps({"zero_optimization": zero}))
    dist.barrier()
    family, model, steps = scenario.build()
    model = model.to({"fp32": torch.float32, "bf16": torch.bfloat16}[dtype])
    cfg = scenario.config(deepspeed=str(ds), model={"path": "unused", "dtype": dtype, "freeze": ["vision"]})
    engine = TrainEngine(cfg, family, model, LossSpec(beta=0.1))
    step = steps[0]
    plan = make_plan(
        [r.group for r in step.rows],
        [len(t) for t in step.tokens],
        [len(p) for p in step.prompts],
        [p.modalities for p in step.prompts],
        engine.world_size,
        step.token_budget,
        first_modules=engine.trainable_modalities,
    )
    work = TrainBatch(plan, tuple(step.rows), step.weights, step.tokens, step.prompts.__getitem__)
    run_update(engine, with_reference_logprobs(engine, work), 1.0)
    optimizer = engine.ds.optimizer
    three = zero["stage"] == 3
    states = [v for s in optimizer.optimizer.state.values() for v in s.values() if isinstance(v, torch.Tensor)]
    masters = optimizer.fp32_partitioned_groups_flat if three else optimizer.single_partition_of_fp32_groups
    gradients = [optimizer.grad_partitions_flat_buffer] if three else engine.local_gradients()
    held = {
        "weights": size(p.ds_tensor if three else p.data for p in model.parameters()),
        "gradients": size(gradients),
        "master": size(masters),
        "moments": size(t for t in states if t.ndim),
        "buckets": size(b.buffer for b in optimizer.ipg_buckets.values()) if three else 0,
        "rollout_copy": size(engine.rollout_copy.model.parameters()),
        "reference": size(p.ds_tensor for p in engine.reference.module.model.parameters()),
        "parameters": engine.parameters,
        "trained": sum(p.ds_numel if three else p.numel() for p in model.parameters() if p.requires_grad),
    }
    (out / f"held{rank}.json").write_text(json.dumps(held))
    close_distributed()
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
