"""Compares the vocabulary-parallel loss with the unsharded one on this many ranks; a wrong number ends with an error.

usage: torchrun --nproc_per_node N -m tests.programs.vocab_parallel torch|triton
"""

from __future__ import annotations

import sys
from dataclasses import replace

import torch
import torch.distributed as dist

from dyme_kernels import (
    SURROGATES,
    LossSpec,
    linear_policy_loss,
    vocab_parallel_linear_policy_loss,
    vocabulary_shard,
)

FULL = LossSpec(beta=0.1, entropy_coef=0.05, temperature=0.7, delta=1.3, token_shaping="p(1-p)", logit_softcap=4.0)
STATS = ("loss", "logprobs", "entropy", "ratio", "clipped_low", "clipped_high", "kl", "argmax_match")


def compare(backend: str, dtype: torch.dtype, spec: LossSpec, drop: dict[str, None]) -> None:
    from tests.helpers.kernel_oracle import make_inputs

    n, v, width = 23, 37, 8  # 37 does not divide by the ranks
    g = torch.Generator().manual_seed(3)
    hidden, weight, bias = (torch.randn(s, generator=g).to(dtype) for s in ((n, width), (v, width), (v,)))
    t = {
        k: x.to(torch.promote_types(dtype, torch.float32)) if x is not None and x.is_floating_point() else x
        for k, x in make_inputs(n, v, **drop).items()
    }
    shard = vocabulary_shard(v)
    mine = slice(shard.first, shard.first + shard.size)
    whole = [x.clone().requires_grad_() for x in (hidden, weight, bias)]
    part = [x.clone().requires_grad_() for x in (hidden, weight[mine], bias[mine])]
    one = linear_policy_loss(whole[0], whole[1], **t, bias=whole[2], spec=spec, backend=backend)
    many = vocab_parallel_linear_policy_loss(
        part[0], part[1], **t, bias=part[2], shard=shard, spec=spec, backend=backend, logits_budget_mb=0.002
    )
    tight = dtype == torch.float64
    rtol, atol = (1e-9, 1e-12) if tight else (2e-5, 2e-6)
    for name in STATS:
        assert torch.allclose(getattr(many, name), getattr(one, name), rtol=rtol, atol=atol), (name, spec)
    expected = torch.autograd.grad(one.loss * 3, whole)
    got = torch.autograd.grad(many.loss * 3, part)
    for name, x, y in zip(("hidden", "weight", "bias"), got, (expected[0], expected[1][mine], expected[2][mine])):
        error = (x - y).norm() / y.norm()
        assert error < (1e-10 if tight else 1e-5 if dtype == torch.float32 else 2e-2), (name, float(error), spec)


def main() -> None:
    backend = sys.argv[1]
    if backend == "triton":
        from tests.helpers.interpreter import interpret_triton

        interpret_triton()  # before Triton is imported
    dist.init_process_group("gloo")
    interpreted = backend == "triton"  # slow
    dtypes = (torch.float32, torch.float16) if interpreted else (torch.float64, torch.bfloat16)
    count = 0
    for surrogate in SURROGATES:
        for base in (FULL,) if interpreted else (LossSpec(), FULL):
            for drop in ({},) if interpreted else ({}, {"old_logprobs": None}, {"live": None, "memorize": None}):
                for dtype in dtypes if not drop else dtypes[:1]:
                    compare(backend, dtype, replace(base, surrogate=surrogate), drop)
                    count += 1
    nothing = {"live": torch.zeros(0, dtype=torch.int64)}
    compare_nothing(nothing["live"], backend)
    if dist.get_rank() == 0:
        print(f"{count} cases equal on {dist.get_world_size()} ranks")
    dist.destroy_process_group()


def compare_nothing(live: torch.Tensor, backend: str) -> None:
    """No live token: a zero that reaches hidden and weight."""
    shard = vocabulary_shard(11)
    hidden = torch.randn(4, 8).requires_grad_()
    weight = torch.randn(shard.size, 8).requires_grad_()
    one = torch.ones(4)
    out = vocab_parallel_linear_policy_loss(
        hidden, weight, torch.zeros(4, dtype=torch.int64), one, one, shard, live=live, backend=backend
    )
    out.loss.backward()
    assert out.loss == 0 and hidden.grad is not None and weight.grad is not None
    assert hidden.grad.eq(0).all() and weight.grad.eq(0).all()


if __name__ == "__main__":
    main()
