"""Counts what 50 batches of different lengths compile: `python -m tests.programs.compilations [--without-gpu]`.

Prints {kernel: [compilations of the first batch, of all batches]}. Without a GPU the kernels are compiled for sm_90 as
ever but not launched: Triton's own launcher keys, compiles and caches, it only stops before the last step.
"""

from __future__ import annotations

import json
import os
import sys

import torch

LENGTHS = (
    48,
    1,
    16,
    17,
    *range(2, 16),
    *range(30, 48),
    50,
    64,
    80,
    96,
    111,
    112,
    113,
    127,
    128,
    160,
    200,
    201,
    256,
    333,
)


def compile_without_gpu() -> None:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.runtime.jit import JITFunction

    class Driver:
        def get_current_device(self) -> int:
            return 0

        def get_current_stream(self, device: int) -> int:
            return 0

        def get_current_target(self) -> GPUTarget:
            return GPUTarget("cuda", 90, 32)

    triton.runtime.driver.set_active(Driver())
    launch = JITFunction.run
    JITFunction.run = lambda self, *args, warmup, **kwargs: launch(self, *args, warmup=True, **kwargs)


def batch(n: int, device: str) -> None:
    """Every kernel, with vectors that begin in the middle of others and numbers that are whole."""
    from dyme_kernels import LossSpec, group_advantages, linear_policy_loss, policy_loss, sample_tokens, token_logprobs

    g = torch.Generator().manual_seed(n)

    def vector(offset: int) -> torch.Tensor:
        return torch.rand(n + offset, generator=g).to(device)[offset:]

    hidden = vector(0)[:, None].expand(n, 8).clone().requires_grad_()
    weight = torch.rand(257, 8, generator=g).to(device).requires_grad_()
    t = {name: vector(n % 5) for name in ("advantages", "weights", "old_logprobs", "ref_logprobs")}
    t |= {"targets": (256 * vector(n % 3)).long(), "memorize": (vector(0) < 0.5)[:]}
    live = torch.arange(0, n, 2).to(device)
    spec = LossSpec(beta=1 if n % 2 else 0.5, delta=2 if n % 3 else 1.5, sapo_tau_pos=1 if n % 2 else 2.0)
    for chosen in (None, live):
        logits = hidden @ weight.T
        policy_loss(logits, **t, live=chosen, spec=spec, backend="triton")
        linear_policy_loss(hidden, weight, **t, live=chosen, spec=spec, backend="triton", logits_budget_mb=7.5 / 1000)
    token_logprobs(hidden @ weight.T, t["targets"], 1 if n % 2 else 0.7, backend="triton").logprobs.sum().backward()
    rows = LossSpec(surrogate="gspo")
    policy_loss(hidden @ weight.T, **t, segments=live.repeat_interleave(2)[:n], spec=rows, backend="triton")
    keys, temperature = (256 * vector(n % 3)).long(), 1 if n % 2 else 0.7
    sample_tokens(
        hidden.detach() @ weight.T.detach(), keys, vector(n % 5).long(), temperature=temperature, backend="triton"
    )
    offsets = torch.tensor([0, n // 3, n]).to(device)
    group_advantages(vector(n % 4), offsets, epsilon=1 if n % 2 else 0.5, backend="triton")


def counts() -> dict[str, int]:
    from dyme_kernels import triton_groups, triton_rows, triton_sampling

    kernels = {
        name: getattr(triton_rows, name) for name in ("_losses_kernel", "_statistics_kernel", "_gradient_kernel")
    }
    kernels["_groups_kernel"] = triton_groups._groups_kernel
    kernels |= {name: getattr(triton_sampling, name) for name in ("_slices_kernel", "_merge_kernel")}
    return {name: sum(len(entry[0]) for entry in kernel.device_caches.values()) for name, kernel in kernels.items()}


def main() -> None:
    device = "cuda"
    if "--without-gpu" in sys.argv:
        device = "cpu"
        compile_without_gpu()
        from dyme_kernels import triton_groups, triton_rows, triton_sampling  # noqa: F401  built as for a GPU

        os.environ["TRITON_INTERPRET"] = "1"  # for our dispatcher, which else keeps CPU tensors from Triton
    assert len(set(LENGTHS)) == 50
    batch(LENGTHS[0], device)
    first = counts()
    for n in LENGTHS[1:]:
        batch(n, device)
    last = counts()
    print(json.dumps({name: [first[name], last[name]] for name in first}))


if __name__ == "__main__":
    main()
