"""The contract of a rollout engine, and what the engines of this process share. docs/rollout.md says how to add one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

from torch import nn

from dyme.families.base import Family
from dyme.rollout.types import Finished, Rollout, RolloutRequest, Sampling, ignore


class Weights(Protocol):
    """Where an engine finds the weights: a plain model (not partitioned, without adapters, in eval mode), whole on
    every rank. In training it is a copy that follows the trained weights."""

    @property
    def model(self) -> nn.Module:
        """The model, wherever it lies and however old its weights."""
        ...

    @property
    def version(self) -> int:
        """Grows each time `begin_refresh` writes something, so that an engine sends nothing twice."""
        ...

    def begin_refresh(self) -> None:
        """Starts to write what training has changed; nothing where nothing has changed. All ranks call it together. On
        a GPU the host and the default stream go on meanwhile."""
        ...

    def place(self) -> nn.Module:
        """The model on the device, with all that `begin_refresh` has begun to write. No collective."""
        ...

    def park(self) -> None:
        """Takes the model off the device where `rollout.offload` asks for it. No collective."""
        ...


@dataclass(frozen=True)
class FixedWeights:
    """The `Weights` of a model that is not trained."""

    model: nn.Module
    version: int = 0

    def begin_refresh(self) -> None: ...

    def place(self) -> nn.Module:
        return self.model

    def park(self) -> None: ...


class RolloutEngine(Protocol):
    """Makes completions. Each rank starts one, for a family and its weights as they are, and closes it at the end.

    Only `update_weights` may be collective. Ranks generate at different times and for different requests, so nothing
    else may wait for another rank. Methods with a default here need no code in an engine without use for them.
    """

    tells_logprobs: ClassVar[bool]
    """Whether `Rollout.logprobs` is filled; some selectors need it."""

    def __init__(self, family: Family, weights: Weights) -> None: ...

    @classmethod
    def obstacle(cls, family: Family) -> str:
        """Why this engine cannot serve the family, and the mend; empty where it can."""
        return ""

    def update_weights(self) -> None:
        """Starts to take over what training has changed; all ranks call it together, after each update and before
        `generate`. It may return before the work is done: `generate` waits for it. Where nothing has changed it costs
        nothing. It works in an engine that sleeps, and need not wake it."""
        ...

    def generate(
        self, requests: Sequence[RolloutRequest], sampling: Sampling, finished: Finished = ignore
    ) -> list[Rollout]:
        """Completions of the requests, in their order, from the weights of the last `update_weights`. Wakes an engine
        that sleeps. `finished` gets the index of each request and its completion as soon as the engine knows it, while
        others still decode. The tokens of a request depend on its prompt, its key and `sampling` alone."""
        ...

    def sleep(self) -> None:
        """Gives back the device memory that only rollouts need: called before each update."""

    def wake(self) -> None:
        """Takes the memory again."""

    def close(self) -> None:
        """Ends what the engine has started. Nothing is called after it."""


class LocalEngine(RolloutEngine):
    """An engine of this process: it runs the model of its weights."""

    def __init__(self, family: Family, weights: Weights) -> None:
        self.family, self.weights = family, weights

    def update_weights(self) -> None:
        self.weights.begin_refresh()

    def sleep(self) -> None:
        self.weights.park()

    def wake(self) -> None:
        self.weights.place()
