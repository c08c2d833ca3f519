"""What a new length costs: a kernel that takes lengths as compile-time constants compiles again for each of them."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import torch

from benchmarks.kernels.case import Case, make_inputs
from benchmarks.kernels.provider import Provider
from benchmarks.kernels.results import reason
from benchmarks.kernels.timing import Clock


def churn(case: Case, lengths: int, provider: Provider, device: torch.device, seconds: float = 20.0) -> dict[str, Any]:
    """Wall time of the first and of the second call at each of `lengths` different row lengths, after a warm-up at
    another; it stops after `seconds`. first_ms, again_ms: sums; slowest_ms: the slowest first call."""
    row: dict[str, Any] = {"name": case.name, "provider": provider.name, "reason": provider.obstacle(device)}
    if row["reason"] is not None:
        return row
    clock = Clock(device)
    rows, longest = case.tokens // case.length, case.length
    torch.compiler.reset()
    first: list[float] = []
    again: list[float] = []
    begin = time.monotonic()
    try:
        for i in range(lengths + 1):
            length = longest - i if longest > lengths else longest + i
            inputs = make_inputs(replace(case, tokens=rows * length, row=length), device)
            calls = provider.make(inputs)
            call = calls.forward_backward or calls.forward
            wall = []
            for _ in range(2):
                calls.reset()
                clock.synchronize()
                start = time.perf_counter()
                call()
                clock.synchronize()
                wall.append((time.perf_counter() - start) * 1e3)
            if i:
                first.append(wall[0])
                again.append(wall[1])
            if time.monotonic() - begin > seconds:
                break
    except Exception as error:  # a provider's, whatever it is
        return row | {"reason": reason(error)}
    return row | {
        "lengths": len(first),
        "first_ms": sum(first),
        "again_ms": sum(again),
        "slowest_ms": max(first, default=0.0),
    }
