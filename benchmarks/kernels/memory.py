"""Peak memory of one provider's calls, in a process of its own: python -m benchmarks.kernels.memory PROVIDER CASE...

CASE is the JSON of a case.Case. Prints one JSON line per case.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.kernels.case import Case, make_inputs
from benchmarks.kernels.provider import Provider
from benchmarks.kernels.results import json_lines, reason
from benchmarks.kernels.sweep import PROVIDERS

SECONDS = 120
NO_GPU = "peak memory is measured on a GPU only"


def peak(provider: Provider, case: Case, device: torch.device) -> dict[str, Any]:
    """peak_extra_mb: MB (10^6 bytes) that one forward and backward takes beyond the inputs, of which returned_mb are
    the gradients it returns in memory of their own; a reason in their place where it cannot be measured."""
    if obstacle := provider.obstacle(device) or (None if device.type == "cuda" else NO_GPU):
        return {"reason": obstacle}
    try:
        inputs = make_inputs(case, device)
        calls = provider.make(inputs)
        call = calls.forward_backward or calls.forward
        for _ in range(2):  # the first one takes workspaces that stay
            calls.reset()
            torch.cuda.empty_cache()
            torch.cuda.synchronize()
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            outcome = call()
            torch.cuda.synchronize()
            extra = torch.cuda.max_memory_allocated() - before
            place = inputs.scratch.untyped_storage().data_ptr()
            own = [g for g in outcome.gradients.values() if g.untyped_storage().data_ptr() != place]
            returned = sum(g.numel() * g.itemsize for g in own)
            del outcome, own
    except Exception as error:  # a provider's, whatever it is
        return {"reason": reason(error)}
    return {"peak_extra_mb": extra / 1e6, "returned_mb": returned / 1e6}


def measure(cases: Sequence[Case], provider: Provider) -> list[dict[str, Any]]:
    """Rows of one provider, from a subprocess, so that no other provider's workspaces are counted."""
    mine = [case for case in cases if case.task in provider.tasks]
    if not mine:
        return []
    if not torch.cuda.is_available():
        return [{"name": case.name, "provider": provider.name, "reason": NO_GPU} for case in mine]
    cases_as_text = [json.dumps(case.as_dict()) for case in mine]
    found, why = json_lines("benchmarks.kernels.memory", provider.name, *cases_as_text, timeout=SECONDS)
    found += [{"reason": why or "no answer"}] * (len(mine) - len(found))
    return [{"name": case.name, "provider": provider.name, **row} for case, row in zip(mine, found)]


def main(arguments: list[str]) -> int:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    provider = next(p for p in PROVIDERS if p.name == arguments[0])
    for text in arguments[1:]:
        print(json.dumps(peak(provider, Case(**json.loads(text)), device)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
