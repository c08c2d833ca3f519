"""CUDA graphs of the decode step: one for each shape of the batch, after a step or two of it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable
from typing import Any

import torch

WORTH = 32  # steps below which a rollout is not worth capturing
EAGER = 2  # steps that run as they are before the first capture: they build what libraries build once; one for others


class StepGraphs:
    """Runs a step that reads and writes tensors with fixed addresses (for each shape) and nothing else: on CUDA through
    a captured graph of the shape, elsewhere as it is."""

    def __init__(self, device: torch.device, steps: int) -> None:
        """steps: how many a row takes at most."""
        self.on = device.type == "cuda" and steps >= WORTH
        self.graphs: dict[Hashable, torch.cuda.CUDAGraph] = {}
        self.eager: dict[Hashable, int] = {}
        self.pool: Any = None

    def run(self, shape: Hashable, step: Callable[[], None]) -> None:
        if self.on and shape not in self.graphs:
            self._prepare(shape, step)
        if shape in self.graphs:
            self.graphs[shape].replay()
        else:
            step()

    def _prepare(self, shape: Hashable, step: Callable[[], None]) -> None:
        """Captures the shape when it has run often enough. Capturing runs nothing."""
        self.eager[shape] = self.eager.get(shape, 0) + 1
        if self.eager[shape] <= (1 if self.graphs else EAGER):
            return
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        try:
            with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):  # others may allocate
                step()
        except RuntimeError as error:  # an edge: a model may do in its forward what a graph cannot hold
            self.on = False
            torch.cuda.set_stream(stream)  # torch leaves that of the capture current where it cannot end it
            said = str(error.__context__ or error)  # what the capture ends with only says that something was wrong
            reason = next(iter(said.strip().splitlines()), type(error).__name__)
            print(f"[rollout] decoding goes on without CUDA graphs: {reason}", file=sys.stderr, flush=True)
            return
        self.pool = self.pool or graph.pool()
        self.graphs[shape] = graph
