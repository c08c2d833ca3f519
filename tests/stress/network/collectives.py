"""Which collectives a step makes."""

from __future__ import annotations

import functools
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist

OPS = (
    "all_reduce",
    "all_gather",
    "all_gather_into_tensor",
    "reduce_scatter",
    "reduce_scatter_tensor",
    "reduce",
    "broadcast",
    "barrier",
    "gather",
    "scatter",
    "all_to_all",
    "all_to_all_single",
)
Call = tuple[str, int]
"""Name of a collective and the elements of its largest tensor."""


class Recorder:
    """The collectives of this process in the order of their calls. Make it before deepspeed is imported, which keeps
    torch.distributed's functions."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self._inside = threading.local()
        for name in OPS:
            wrapped = self._wrap(name, getattr(dist, name))
            setattr(dist, name, wrapped)
            setattr(dist.distributed_c10d, name, wrapped)

    @contextmanager
    def step(self) -> Iterator[list[Call]]:
        """A list that holds the calls of its body afterwards."""
        first, found = len(self.calls), list[Call]()
        yield found
        found += self.calls[first:]

    def _wrap(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            if getattr(self._inside, "a_collective", False):  # made of another one: counted once
                return original(*args, **kwargs)
            self.calls.append((name, max((t.numel() for t in _tensors([*args, *kwargs.values()])), default=0)))
            self._inside.a_collective = True
            try:
                return original(*args, **kwargs)
            finally:
                self._inside.a_collective = False

        return wrapped


def _tensors(values: Any) -> Iterator[torch.Tensor]:
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


def count(calls: list[Call]) -> dict[str, int]:
    return dict(sorted(Counter(name for name, _ in calls).items()))
